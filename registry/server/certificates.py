"""The certificate of HTTPS: read at the start and again on SIGHUP, and told of before it ends."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from registry.config import Settings
from registry.core.settings_files import read_file
from registry.errors import SettingsError

TOLD_BEFORE_S = 14 * 86_400
"""How long before its end a certificate is warned of, in the log and in /health."""
LOOKED_AT_EVERY_S = 3600.0
TOLD_EVERY_S = 86_400.0

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18

log = logging.getLogger("registry")


class Certificate:
    """The certificate that new connections are shown.

    Raises:
        SettingsError: it cannot be used, or does not fit its key. The message names the files.
    """

    def __init__(self, chain: Path, key: Path | None) -> None:
        self._chain = chain
        self._key = key
        self._problem: str | None = None
        self._context, self.ends_at = self._read()
        self.front = self._context
        """What a server is to be made with: it hands each connection on to what was read last."""
        self.front.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _front: ssl.SSLContext
    ) -> None:
        connection.context = self._context

    @property
    def files(self) -> str:
        """The certificate, and its key if that has a file of its own."""
        return str(self._chain) if self._key is None else f"{self._chain} or {self._key}"

    def read_again(self) -> Callable[[], None]:
        """Read the files, in any thread. What comes of it is for the event loop: it takes them for
        new connections. What cannot be used changes nothing."""
        try:
            context, ends_at = self._read()
        except SettingsError as error:
            return partial(self._keep, logging.ERROR, str(error))
        return partial(self._take, context, ends_at)

    def _take(self, context: ssl.SSLContext, ends_at: int | None) -> None:
        self._context, self.ends_at = context, ends_at
        self._problem = None
        log.info("read the certificate %s again; it ends at %s", self._chain, _shown(self.ends_at))
        self.tell()

    def keep(self, reason: str) -> None:
        """Say why it was not read again."""
        self._keep(logging.WARNING, reason)

    def _keep(self, level: int, reason: str) -> None:
        self._problem = f"the certificate stays the one before: {reason}"
        log.log(level, "%s", self._problem)

    def warning(self) -> str | None:
        """What somebody should do about it, or None: nothing."""
        if self._problem is not None:
            return f"{self._problem} That one ends at {_shown(self.ends_at)}."
        left = float("inf") if self.ends_at is None else self.ends_at - time.time()
        if left > TOLD_BEFORE_S:
            return None
        when = "has ended" if left <= 0 else "ends"
        return (
            f"the certificate {self._chain} {when} at {_shown(self.ends_at)}. Put a new one in its "
            "place, then send SIGHUP to the service"
        )

    def tell(self) -> None:
        """Put the warning into the log, if there is one."""
        warning = self.warning()
        if warning is not None:
            log.warning("%s", warning)

    async def watch(self) -> None:
        """Tell once a day, from the second day on."""
        told_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOKED_AT_EVERY_S)
            if time.monotonic() - told_at > TOLD_EVERY_S and self.warning() is not None:
                told_at = time.monotonic()
                self.tell()

    def _read(self) -> tuple[ssl.SSLContext, int | None]:
        # First, as OpenSSL would wait for a FIFO, and read a device.
        content, _ = read_file(self._chain, "tls_certificate")
        if self._key is not None:
            read_file(self._key, "tls_key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except OSError as error:  # ssl.SSLError is one.
            raise SettingsError(
                f"The certificate {self._chain} with the key {self._key or self._chain} cannot be "
                f"used: {error.strerror or error}. tls_certificate must be a PEM file with the "
                "certificate and its chain, tls_key one with its private key, without a password."
            ) from error
        return context, first_end(content)


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate that the settings name, if they name one.

    Raises:
        SettingsError: it cannot be used, or there is a key without one.
    """
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise SettingsError(
                "tls_key is given without a certificate. Give one with --tls-certificate."
            )
        return None
    key = None if settings.tls_key is None else Path(settings.tls_key)
    return Certificate(Path(settings.tls_certificate), key)


@contextmanager
def watched(certificate: Certificate | None) -> Iterator[None]:
    """Tells of a certificate that ends, now and once a day, while the block runs in the event
    loop."""
    if certificate is None:
        yield
        return
    certificate.tell()
    watching = asyncio.create_task(certificate.watch())
    try:
        yield
    finally:
        watching.cancel()


def first_end(content: bytes) -> int | None:
    """When the first of the certificates in a PEM file ends, in seconds since 1970. None: the file
    does not say so in a way that is understood here."""
    try:
        ends = [
            _end_of(ssl.PEM_cert_to_DER_cert(block.decode("ascii")))
            for block in _BLOCK.findall(content)
        ]
        return min(ends) if ends else None
    except (ValueError, IndexError):
        return None


def _end_of(der: bytes) -> int:
    """`notAfter` of a certificate (RFC 5280, 4.1): the second time in the field `validity`."""
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, end = _element(der, at)
    fields = 3 if tag != _VERSION else 4  # The serial number, the algorithm and the issuer.
    for _ in range(fields - 1):
        _, _, end = _element(der, end)
    _, at, _ = _element(der, end)
    _, _, at = _element(der, at)
    tag, at, end = _element(der, at)
    text = der[at:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of an element of DER, and where its content begins and ends."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[at : at + count])
        at += count
    return tag, at, at + length


def _shown(seconds: int | None) -> str:
    if seconds is None:
        return "an unknown time"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _no_password(*_: Any) -> str:
    """Answers where OpenSSL would ask at the terminal."""
    return ""
