"""A blocking client of the registry service: the calls of `protocol`, sent over HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx2
from blake3 import blake3

from registry.client import protocol
from registry.client.protocol import Answer, Call, Endpoint, OwnerDetails
from registry.client.retries import RetryPolicy
from registry.errors import (
    ChecksumMismatch,
    FileUnreadable,
    RegistryError,
    ServiceUnreachable,
    SettingsError,
)
from registry.records import (
    ArtifactKey,
    Entry,
    Explanation,
    Offer,
    Owner,
    OwnerRecord,
    Receipt,
    Registered,
)

T = TypeVar("T")

OnBytes = Callable[[int], None]
"""Called with the number of bytes sent or received so far; a repeated call begins again at 0."""

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0
ANSWER_MAX_BYTES = 64 << 20
CHUNK_BYTES = 256 << 10


class RegistryClient:
    """One registry service, spoken to over HTTP.

    Every method raises the error class that the service answered with, and `ServiceUnreachable`
    when no answer came. A call that failed for a passing reason is repeated as `retries` says; a
    repeated call may answer `unchanged` or a receipt of zeros for what its first attempt did.
    May be used by several threads.

    Args:
        url: where the service is, like `http://127.0.0.1:8090`; a path prefix is kept.
        timeout_s: longest silence of the service before a call fails.

    Raises:
        SettingsError: `url` is not an HTTP URL.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url)
        self._retries = retries or RetryPolicy()
        self._http = httpx2.Client(
            base_url=self.url,
            # What is served must arrive byte for byte.
            headers={"accept-encoding": "identity"},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def register(
        self,
        owner: Owner,
        offers: Sequence[Offer],
        *,
        lease_ttl_s: float | None,
        worker_name: str | None = None,
    ) -> Registered:
        """Register a manifest for an owner, all of it or nothing. A lease of None is no lease.

        Raises:
            ContentMissing: content must be uploaded first; `missing` lists the checksums.
            Conflict: another owner holds a key with other content; `conflicts` lists all.
        """
        return self._send(
            protocol.register(owner, offers, lease_ttl_s=lease_ttl_s, worker_name=worker_name)
        )

    def upload(
        self, checksum: str, content: bytes | Path, *, on_bytes: OnBytes | None = None
    ) -> None:
        """Upload content, from memory or streamed from a file; content that is there is fine.

        Raises:
            ChecksumMismatch: it is not what `checksum` says.
            TooLarge: it is larger than the service takes.
            FileUnreadable: the file cannot be read, or changed while it was read.
        """
        source = _Source(content, on_bytes)
        self._send(protocol.put_blob(checksum), source)

    def has_blob(self, checksum: str) -> bool:
        """Whether the service holds a copy of this content."""
        return self._send(protocol.has_blob(checksum))

    def unregister_for_owner(self, owner: Owner) -> Receipt:
        """End an owner and release all that it holds; fine for an unknown owner as well."""
        return self._send(protocol.unregister_for_owner(owner))

    def owner(self, owner: Owner) -> OwnerDetails:
        """An owner and what it holds.

        Raises:
            UnknownOwner: there is none, and no tombstone of one.
        """
        return self._send(protocol.owner(owner))

    def owners(self) -> Iterator[OwnerRecord]:
        """Every owner, by identity; pages are asked for as they are needed."""
        return self._pages(protocol.owners_page)

    def artifacts(
        self,
        *,
        slug: str | None = None,
        suffix: str | None = None,
        filename: str | None = None,
        checksum: str | None = None,
    ) -> Iterator[Entry]:
        """The entries that match every filter given; pages are asked for as they are needed."""
        filters = {"slug": slug, "suffix": suffix, "filename": filename, "checksum": checksum}
        return self._pages(lambda after: protocol.artifacts_page(filters, after))

    def explain(self, key: ArtifactKey) -> Explanation:
        """Content, holders and last events of a key; `entry` is None when nobody holds it."""
        return self._send(protocol.explain(key))

    def is_held(self, key: ArtifactKey, endpoint: Endpoint | None = None) -> bool:
        """Whether a key is held; with an endpoint, whether an owner of that endpoint holds it."""
        return self._send(protocol.is_held(key, endpoint))

    def download(
        self,
        key: ArtifactKey,
        checksum: str,
        size: int,
        into: BinaryIO,
        *,
        endpoint: Endpoint | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write the bytes of a key to an empty file; they are exactly what checksum and size say.

        After an error the file holds anything, but never more than `size` bytes.

        Raises:
            NotRegistered: nobody holds the key (any more).
            ChecksumMismatch: other bytes came.
            Unserveable: it is held, but no holder's bytes are right.
        """
        path = protocol.content_path(key, endpoint)
        self._repeated(lambda: self._download(path, checksum, size, into, on_bytes))

    def _download(
        self, path: str, checksum: str, size: int, into: BinaryIO, on_bytes: OnBytes | None
    ) -> None:
        into.seek(0)
        into.truncate()
        with self._opened("GET", path) as response:
            if response.status_code != 200:
                raise protocol.error_of(_answer(response))
            if response.headers.get("etag", f'"{checksum}"') != f'"{checksum}"':
                raise _changed(path)
            hasher = blake3()
            received = 0
            for chunk in response.iter_bytes(CHUNK_BYTES):
                received += len(chunk)
                if received > size:
                    raise _changed(path)
                hasher.update(chunk)
                into.write(chunk)
                if on_bytes is not None:
                    on_bytes(received)
        if received != size or f"blake3:{hasher.hexdigest()}" != checksum:
            raise _changed(path)

    def _pages(self, page: Callable[[str | None], Call[protocol.Page[T]]]) -> Iterator[T]:
        after: str | None = None
        while True:
            answer = self._send(page(after))
            yield from answer.rows
            after = answer.next
            if after is None:
                return

    def _send(self, call: Call[T], source: _Source | None = None) -> T:
        return self._repeated(lambda: self._send_once(call, source))

    def _send_once(self, call: Call[T], source: _Source | None) -> T:
        headers = dict(call.headers)
        content: bytes | Iterable[bytes] = call.body
        if source is not None:
            headers["content-length"] = str(source.size)
            content = source.chunks()
        with self._opened(call.method, call.path, call.params, headers, content) as response:
            answer = _answer(response)
        return call.read(answer)

    def _repeated(self, once: Callable[[], T]) -> T:
        started = time.monotonic()
        attempt = 1
        while True:
            try:
                return once()
            except RegistryError as error:
                elapsed_s = time.monotonic() - started
                pause_s = self._retries.find_pause_s(attempt, elapsed_s, error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[httpx2.Response]:
        try:
            with self._http.stream(
                method, path, params=params or None, headers=headers, content=content or None
            ) as response:
                yield response
        except httpx2.TimeoutException as error:
            raise ServiceUnreachable(
                f"The registry service at {self.url} does not answer in time. What was asked may "
                "have happened; ask again."
            ) from error
        except httpx2.RequestError as error:
            raise ServiceUnreachable(
                f"The registry service at {self.url} does not answer: {error}. Check that it runs "
                "and that --url is right."
            ) from error


class _Source:
    """Content to upload, as often as it takes."""

    def __init__(self, content: bytes | Path, on_bytes: OnBytes | None) -> None:
        self._content = content
        self._on_bytes = on_bytes
        self.size = len(content) if isinstance(content, bytes) else _size_of(content)

    def chunks(self) -> Iterator[bytes]:
        """The content from its beginning, exactly `size` bytes.

        Raises:
            FileUnreadable: the file became shorter or longer, or cannot be read.
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
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileUnreadable(f"{path} cannot be read: {error.strerror}.") from error


def _answer(response: httpx2.Response) -> Answer:
    """The answer with its body, which is bounded because the service may be anything."""
    body = bytearray()
    for chunk in response.iter_bytes(CHUNK_BYTES):
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            raise ServiceUnreachable(
                f"What answers at {response.url} sends more than {ANSWER_MAX_BYTES} bytes; that "
                "is no answer of a metadata registry."
            )
    return Answer(response.status_code, response.headers, bytes(body))


def _changed(path: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{path} is served with other bytes than were listed: it was registered anew meanwhile. "
        "Try again."
    )


def _checked_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise SettingsError(f"{url!r} is not a URL: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(
            f"{url!r} is not the URL of a service; it must look like http://127.0.0.1:8090."
        )
    return url.rstrip("/")
