"""The client for asyncio: the same calls of `protocol`, sent without blocking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx2

from registry.client import protocol
from registry.client.download import Receiver
from registry.client.protocol import Answer, Call, Endpoint, OwnerDetails
from registry.client.retries import RetryPolicy
from registry.client.transport import (
    CHUNK_BYTES,
    TIMEOUT_S,
    AnswerBody,
    Attempts,
    OnBytes,
    Source,
    checked_url,
    failures_of,
    headers_with,
    timeout_of,
    tls,
)
from registry.core.records import (
    ArtifactKey,
    Drained,
    Entry,
    EventFilter,
    EventOrder,
    EventPage,
    Explanation,
    Model,
    Offer,
    Owner,
    OwnerRecord,
    Receipt,
    Registered,
    Renewed,
)
from registry.errors import RegistryError
from registry.wire.messages import DRAIN_DEFAULT_S

T = TypeVar("T")

EVERY_EVENT = EventFilter()


class AsyncRegistryClient:
    """One registry service, spoken to over HTTP from an event loop.

    What `RegistryClient` promises holds here as well, method by method; its lists are asynchronous
    iterators. Belongs to the event loop in which it was first used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = checked_url(url)
        self._retries = retries or RetryPolicy()
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers_with(token),
            timeout=timeout_of(timeout_s),
            verify=tls(),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `RegistryClient.close`."""
        await self._http.aclose()

    async def register(
        self,
        owner: Owner,
        offers: Sequence[Offer],
        *,
        lease_ttl_s: float | None,
        worker_name: str | None = None,
    ) -> Registered:
        """As `RegistryClient.register`."""
        return await self._send(
            protocol.register(owner, offers, lease_ttl_s=lease_ttl_s, worker_name=worker_name)
        )

    async def upload(
        self, checksum: str, content: bytes | Path, *, on_bytes: OnBytes | None = None
    ) -> None:
        """As `RegistryClient.upload`."""
        source = await asyncio.to_thread(Source, content, on_bytes)
        await self._send(protocol.put_blob(checksum), source)

    async def has_blob(self, checksum: str) -> bool:
        """As `RegistryClient.has_blob`."""
        return await self._send(protocol.has_blob(checksum))

    async def unregister_for_owner(self, owner: Owner) -> Receipt:
        """As `RegistryClient.unregister_for_owner`."""
        return await self._send(protocol.unregister_for_owner(owner))

    async def renew(self, owner: Owner) -> Renewed:
        """As `RegistryClient.renew`."""
        return await self._send(protocol.renew(owner))

    async def drain(self, owner: Owner, *, deadline_s: float = DRAIN_DEFAULT_S) -> Drained:
        """As `RegistryClient.drain`."""
        return await self._send(protocol.drain(owner, deadline_s))

    async def owner(self, owner: Owner) -> OwnerDetails:
        """As `RegistryClient.owner`."""
        return await self._send(protocol.owner(owner))

    def owners(self) -> AsyncIterator[OwnerRecord]:
        """As `RegistryClient.owners`."""
        return self._pages(protocol.owners_page)

    def artifacts(
        self,
        *,
        slug: str | None = None,
        suffix: str | None = None,
        filename: str | None = None,
        checksum: str | None = None,
    ) -> AsyncIterator[Entry]:
        """As `RegistryClient.artifacts`."""
        filters = {"slug": slug, "suffix": suffix, "filename": filename, "checksum": checksum}
        return self._pages(lambda after: protocol.artifacts_page(filters, after))

    def models(self) -> AsyncIterator[Model]:
        """As `RegistryClient.models`."""
        return self._pages(protocol.models_page)

    async def events(
        self,
        wanted: EventFilter = EVERY_EVENT,
        *,
        order: EventOrder = EventOrder.OLDEST,
        after: int | None = None,
        limit: int = protocol.PAGE_LIMIT,
    ) -> EventPage:
        """As `RegistryClient.events`."""
        return await self._send(protocol.events_page(wanted, order, after, limit))

    async def explain(self, key: ArtifactKey) -> Explanation:
        """As `RegistryClient.explain`."""
        return await self._send(protocol.explain(key))

    async def is_held(self, key: ArtifactKey, endpoint: Endpoint | None = None) -> bool:
        """As `RegistryClient.is_held`."""
        return await self._send(protocol.is_held(key, endpoint))

    async def download(
        self,
        key: ArtifactKey,
        checksum: str,
        size: int,
        into: BinaryIO,
        *,
        endpoint: Endpoint | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """As `RegistryClient.download`."""
        path = protocol.content_path(key, endpoint)
        receiver = Receiver(path, checksum, size, into, on_bytes=on_bytes)
        receiver.restart()
        await self.receive(path, receiver)

    async def receive(self, path: str, receiver: Receiver) -> None:
        """Bring in what a receiver still lacks of the file at a path of the service."""

        async def once() -> None:
            with failures_of(self.url):
                await receive(self._http, path, receiver)

        await repeated(self._retries, once)

    async def _pages(
        self, page: Callable[[str | None], Call[protocol.Page[T]]]
    ) -> AsyncIterator[T]:
        after: str | None = None
        while True:
            answer = await self._send(page(after))
            for row in answer.rows:
                yield row
            after = answer.next
            if after is None:
                return

    async def _send(self, call: Call[T], source: Source | None = None) -> T:
        return await repeated(self._retries, lambda: self._send_once(call, source))

    async def _send_once(self, call: Call[T], source: Source | None) -> T:
        headers = dict(call.headers)
        content: bytes | AsyncIterator[bytes] = call.body
        if source is not None:
            headers["content-length"] = str(source.size)
            content = _chunks(source.chunks())
        async with self._opened(call.method, call.path, call.params, headers, content) as response:
            answer = await _answer(response)
        return call.read(answer)

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        with failures_of(self.url):
            async with self._http.stream(
                method, path, params=params or None, headers=headers, content=content or None
            ) as response:
                yield response


async def repeated(policy: RetryPolicy, once: Callable[[], Awaitable[T]]) -> T:
    """Do something that may be repeated, as often as a policy says."""
    attempts = Attempts(policy)
    while True:
        try:
            return await once()
        except RegistryError as error:
            pause_s = attempts.pause_s_after(error)
        await asyncio.sleep(pause_s)


async def receive(http: httpx2.AsyncClient, url: str, receiver: Receiver) -> None:
    """Ask once for what a receiver still lacks, and let it take what comes.

    Raises:
        RegistryError: the error that was answered.
        ChecksumMismatch: other bytes came.
        httpx2.RequestError: no answer came, or it broke off.
    """
    if not receiver.complete:
        async with http.stream("GET", url, headers=receiver.headers()) as response:
            if not receiver.accepts(response.status_code, response.headers):
                raise protocol.error_of(await _answer(response))
            async for chunk in response.aiter_bytes():
                receiver.take(chunk)
    receiver.finish()


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A slow disk must not hold up the event loop.
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


async def _answer(response: httpx2.Response) -> Answer:
    body = AnswerBody(response.url)
    async for chunk in response.aiter_bytes(CHUNK_BYTES):
        body.take(chunk)
    return body.answer(response.status_code, response.headers)
