"""What the blocking and the asyncio client share: where the service is, what goes out with every
request, and what failures mean. The clients themselves only send."""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx2

from registry.client.protocol import Answer
from registry.client.retries import RetryPolicy
from registry.core.hashing import looking_at
from registry.errors import FileUnreadable, RegistryError, ServiceUnreachable, SettingsError

OnBytes = Callable[[int], None]
"""Called with the number of bytes sent or received so far; a repeated call begins again at 0."""

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0
ANSWER_MAX_BYTES = 64 << 20
CHUNK_BYTES = 256 << 10


def checked_url(url: str) -> str:
    """The URL of a service, without a slash at its end.

    Raises:
        SettingsError: it is not an HTTP URL.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise SettingsError(f"{url!r} is not a URL: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(
            f"{url!r} is not the URL of a service; it must look like http://127.0.0.1:8090."
        )
    return url.rstrip("/")


def headers_with(token: str | None) -> dict[str, str]:
    """The headers of every request.

    Raises:
        SettingsError: the token cannot be sent.
    """
    # What is served must arrive byte for byte.
    headers = {"accept-encoding": "identity"}
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise SettingsError(
                "The access token has characters that no token has. Copy it again, and nothing "
                "around it."
            )
        headers["authorization"] = f"Bearer {token}"
    return headers


def timeout_of(timeout_s: float) -> httpx2.Timeout:
    """The longest silence, and a shorter one until a connection stands."""
    return httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


@functools.cache
def tls() -> ssl.SSLContext:
    """What every client checks certificates with. Reading the authorities takes a while: once."""
    return httpx2.create_ssl_context()


@contextmanager
def failures_of(url: str) -> Iterator[None]:
    """Turns what a transport raises into ServiceUnreachable."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise ServiceUnreachable(
            f"The service at {url} does not answer in time. What was asked may have happened; ask "
            "again."
        ) from error
    except httpx2.TooManyRedirects as error:
        raise ServiceUnreachable(f"The service at {url} sends callers on in a circle.") from error
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise ServiceUnreachable(
            f"The service at {url} does not answer: {error}. Check that it runs, and the URL."
        ) from error


class Attempts:
    """The attempts at one call, the first of which begins now."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._started = time.monotonic()
        self._made = 0

    def pause_s_after(self, error: RegistryError) -> float:
        """How long to wait after a failed attempt. Raises the error when there shall be no more."""
        self._made += 1
        elapsed_s = time.monotonic() - self._started
        pause_s = self._policy.find_pause_s(self._made, elapsed_s, error)
        if pause_s is None:
            raise error
        return pause_s


class AnswerBody:
    """The body of an answer as it comes in, bounded because the service may be anything."""

    def __init__(self, url: object) -> None:
        self._url = url
        self._body = bytearray()

    def take(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > ANSWER_MAX_BYTES:
            raise ServiceUnreachable(
                f"What answers at {self._url} sends more than {ANSWER_MAX_BYTES} bytes; that is "
                "no answer of a metadata registry."
            )

    def answer(self, status: int, headers: Mapping[str, str]) -> Answer:
        """The whole answer."""
        return Answer(status, headers, bytes(self._body))


class Source:
    """Content to upload, as often as it takes.

    Raises:
        FileUnreadable: the file cannot be read.
        Busy: it cannot be looked at now.
    """

    def __init__(self, content: bytes | Path, on_bytes: OnBytes | None) -> None:
        self._content = content
        self._on_bytes = on_bytes
        self.size = len(content) if isinstance(content, bytes) else _size_of(content)

    def chunks(self) -> Iterator[bytes]:
        """The content from its beginning, exactly `size` bytes.

        Raises:
            FileUnreadable: the file became shorter or longer, or cannot be read.
            Busy: it cannot be looked at now.
        """
        sent = 0
        for chunk in self._read():
            sent += len(chunk)
            if sent > self.size:
                break
            yield chunk
            if self._on_bytes is not None:
                self._on_bytes(sent)
        if sent != self.size:
            raise FileUnreadable(f"{self._content!s} changed while it was uploaded. Try again.")

    def _read(self) -> Iterator[bytes]:
        if isinstance(self._content, bytes):
            for start in range(0, self.size, CHUNK_BYTES):
                yield self._content[start : start + CHUNK_BYTES]
            return
        with _opened_file(self._content) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _size_of(path: Path) -> int:
    with _opened_file(path) as file:
        return os.fstat(file.fileno()).st_size


@contextmanager
def _opened_file(path: Path) -> Iterator[BinaryIO]:
    with looking_at(str(path)), path.open("rb") as file:
        yield file
