"""Files of workers: from the URLs and paths that cards name, each verified while it comes in.

Nothing of it is believed. A source is asked for `/v1/metadata/...` and nothing else, gets no
credentials, may send on to its own host only, and has a bounded time for a bounded number of bytes;
then the next one is tried. Paths are those of a host: they are opened only below directories that
were named for that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

import httpx2
from blake3 import blake3

from registry.client.transport import cookies, failures_of, headers_with, raw_only, timeout_of
from registry.core.hashing import looking_at
from registry.core.regular import open_regular
from registry.core.text import shown, shown_url
from registry.errors import RegistryError, ServiceUnreachable
from registry.mirror.mirrored_card import CONTENT_PREFIX, is_url
from registry.network.deadline import at_most, seconds_left
from registry.network.transports import Transport

READ_BYTES = 256 << 10
REDIRECTS_MAX = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SILENCE_MAX_S = 5.0
SOURCE_MAX_S = 15.0
SLOWEST_BYTES_PER_S = 1 << 20
"""A source gets a second more for each of these that a file may have."""

SLOW_S = 2.0
SHUNNED_S = 10.0
SHUNNED_MAX = 1000

NAMED_MAX = 400
"""How many characters of the URL of a source stand whole in a message."""


class NotFetched(Exception):
    """No source had the right bytes; the text says why."""


class _Unusable(Exception):
    """Why a source is not used."""


class Origins:
    """Where files come from.

    Args:
        local_roots: directories below which paths are opened.
        max_bytes: what a file has at most.
    """

    def __init__(
        self, *, local_roots: Sequence[str] = (), max_bytes: int, ca_file: str | None = None
    ) -> None:
        self._roots = tuple(os.path.realpath(root) for root in local_roots)
        self._max_bytes = max_bytes
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._shunned: dict[str, float] = {}

    def fetch(self, checksum: str, size: int | None, sources: Sequence[str], into: BinaryIO) -> int:
        """Write the content of a checksum to an empty file, from the first source that has it; how
        many bytes that are. `size` is what it has at most, if that is known.

        Raises:
            NotFetched: none has it.
        """
        most = self._max_bytes if size is None else size
        if most > self._max_bytes:
            raise NotFetched(f"it has {most} bytes, and at most {self._max_bytes} are taken")
        if not sources:
            raise NotFetched("nothing says where it may be had")
        reasons = []
        for source in sources:
            try:
                with at_most(SOURCE_MAX_S + most / SLOWEST_BYTES_PER_S):
                    return self._fetch_from(source, checksum, most, into)
            except (_Unusable, RegistryError, TimeoutError) as error:
                detail = getattr(error, "detail", None) or str(error)
                reasons.append(_with_source(source, detail))
            into.seek(0)
            into.truncate()
        raise NotFetched("; ".join(reasons))

    def _fetch_from(self, source: str, checksum: str, most: int, into: BinaryIO) -> int:
        hasher, size = blake3(), 0
        with self._opened(source) as parts:
            for part in parts:
                size += len(part)
                if size > most:
                    raise _Unusable(f"it has more than {most} bytes")
                hasher.update(part)
                into.write(part)
        if f"blake3:{hasher.hexdigest()}" != checksum:
            raise _Unusable("it has other bytes than the card says")
        return size

    @contextmanager
    def _opened(self, source: str) -> Iterator[Iterator[bytes]]:
        if not is_url(source):
            with self._opened_path(source) as parts:
                yield parts
            return
        authority = urlsplit(source).netloc
        self._check_shunned(authority)
        started = time.monotonic()
        try:
            with failures_of(source), self._opened_url(source) as parts:
                yield parts
        except (ServiceUnreachable, TimeoutError):
            # The files of many cards may be on one host that hangs. One that refuses is just not
            # there yet, and costs nothing.
            with self._lock:
                if time.monotonic() - started < SLOW_S:
                    raise
                if len(self._shunned) >= SHUNNED_MAX:
                    self._shunned.clear()
                self._shunned[authority] = time.monotonic() + SHUNNED_S
            raise

    def _check_shunned(self, authority: str) -> None:
        with self._lock:
            if self._shunned.get(authority, 0.0) > time.monotonic():
                raise _Unusable("its host did not answer a moment ago")

    # By URL

    @contextmanager
    def _opened_url(self, url: str) -> Iterator[Iterator[bytes]]:
        host = _checked_host(url)
        # A client for each file: what hosts are named, and how many, is up to others.
        with httpx2.Client(
            headers=headers_with(None),
            timeout=timeout_of(SILENCE_MAX_S),
            cookies=cookies(),
            transport=Transport(self._ca_file),
            trust_env=False,
        ) as http:
            for _ in range(REDIRECTS_MAX + 1):
                with http.stream("GET", url) as response:
                    if response.status_code in REDIRECTS:
                        url = urljoin(url, response.headers.get("location", ""))
                        if _checked_host(url) != host:
                            raise _Unusable("it sends on to another host")
                        continue
                    if response.status_code != 200:
                        raise _Unusable(f"it answers {response.status_code}")
                    raw_only(response.headers)
                    yield response.iter_raw(READ_BYTES)
                    return
        raise _Unusable("it sends on and on")

    # By path

    @contextmanager
    def _opened_path(self, path: str) -> Iterator[Iterator[bytes]]:
        if not self._roots:
            raise _Unusable("it is a path, perhaps of another host, and no --local-root is set")
        with looking_at(path):
            found = os.path.realpath(path, strict=True)
            if not any(found.startswith(os.path.join(root, "")) for root in self._roots):
                raise _Unusable("it is not below a --local-root")
            descriptor = open_regular(found)
            try:
                if os.readlink(f"/proc/self/fd/{descriptor}") != found:
                    raise _Unusable("it leads elsewhere by now")
                yield _read(descriptor)
            finally:
                with suppress(OSError):
                    os.close(descriptor)


def _read(descriptor: int) -> Iterator[bytes]:
    while part := os.read(descriptor, READ_BYTES):
        seconds_left(None)
        yield part


def _with_source(source: str, detail: str) -> str:
    """What is wrong with a source, with its name, once."""
    name = shown_url(source)
    if name in detail:
        return detail
    return f"{ascii(name) if len(name) <= NAMED_MAX else shown(name)}: {detail}"


def _checked_host(url: str) -> str:
    """The host of a URL that may be asked."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _Unusable("it is no URL") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise _Unusable("it is not the URL of a file over HTTP")
    if "@" in parts.netloc:
        raise _Unusable("it has a user in it")
    segments = unquote(parts.path).split("/")
    if not parts.path.startswith(CONTENT_PREFIX) or {".", ".."} & set(segments):
        raise _Unusable(f"its path is not one of {CONTENT_PREFIX}")
    return host
