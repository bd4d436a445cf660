"""The client for asyncio: the same calls of `protocol`, sent without blocking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx2

from registry.client import administration, protocol
from registry.client.answers import Answer, error_of
from registry.client.download import Receiver
from registry.client.endpoint import Endpoint
from registry.client.pages import Page, Pages
from registry.client.protocol import Call, OwnerDetails
from registry.client.retries import RetryPolicy
from registry.client.transport import (
    CHUNK_BYTES,
    TIMEOUT_S,
    AnswerBody,
    Attempts,
    OnBytes,
    checked_timeout,
    cookies,
    failures_of,
    longest_s,
    service_at,
    timeout_of,
    too_late,
)
from registry.client.upload import UploadBody
from registry.core.events import EventFilter, EventOrder, EventPage
from registry.core.findings import Explanation
from registry.core.forks import Birthplace
from registry.core.listings import Entry, Model, OwnerRecord
from registry.core.model_revisions import OnConflict
from registry.core.records import ArtifactKey, Drained, Offer, Owner, Receipt, Registered, Renewed
from registry.errors import RegistryError
from registry.network.transports import AsyncTransport
from registry.wire.reports import AuditResponse, HealthResponse, SqlResponse, SweptResponse
from registry.wire.requests import (
    DRAIN_DEFAULT_S,
    RENEWALS_MAX,
    SQL_ROWS_DEFAULT,
    SQL_TIMEOUT_MAX_S,
)

T = TypeVar("T")

EVERY_EVENT = EventFilter()


class AsyncRegistryClient:
    """One registry service, spoken to over HTTP from an event loop.

    What `RegistryClient` promises holds here as well, method by method; its lists are asynchronous
    iterators. Belongs to the event loop in which it was first used, and to its process.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        ca_file: str | os.PathLike[str] | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        service = service_at(url, token)
        self.url = service.url
        self._timeout_s = checked_timeout(timeout_s)
        self._retries = retries or RetryPolicy()
        self._birthplace = Birthplace("registry client")
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers=service.headers,
            timeout=timeout_of(timeout_s),
            cookies=cookies(),
            transport=transport or AsyncTransport(None if ca_file is None else os.fspath(ca_file)),
            trust_env=False,
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
        if self._birthplace.is_here:
            await self._http.aclose()

    async def register(
        self,
        owner: Owner | str,
        offers: Sequence[Offer],
        *,
        lease_ttl_s: float | None,
        worker_name: str | None = None,
        on_conflict: OnConflict | str = OnConflict.REFUSE,
        as_revision: bool = False,
    ) -> Registered:
        """As `RegistryClient.register`."""
        return await self._send(
            protocol.register(
                owner,
                offers,
                lease_ttl_s=lease_ttl_s,
                worker_name=worker_name,
                on_conflict=on_conflict,
                as_revision=as_revision,
            )
        )

    async def upload(
        self,
        checksum: str,
        content: bytes | str | os.PathLike[str],
        *,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """As `RegistryClient.upload`."""
        source = await asyncio.to_thread(UploadBody, content, on_bytes)
        await self._send(protocol.put_blob(checksum), source)

    async def has_blob(self, checksum: str) -> bool:
        """As `RegistryClient.has_blob`."""
        return await self._send(protocol.has_blob(checksum))

    async def unregister_for_owner(self, owner: Owner | str) -> Receipt:
        """As `RegistryClient.unregister_for_owner`."""
        return await self._send(protocol.unregister_for_owner(owner))

    async def renew(self, owner: Owner | str) -> Renewed:
        """As `RegistryClient.renew`."""
        return await self._send(protocol.renew(owner))

    async def renew_many(self, owners: Iterable[Owner | str]) -> list[Renewed | RegistryError]:
        """As `RegistryClient.renew_many`."""
        wanted = [Owner.of(owner) for owner in owners]
        outcomes: list[Renewed | RegistryError] = []
        for start in range(0, len(wanted), RENEWALS_MAX):
            call = protocol.renew_many(wanted[start : start + RENEWALS_MAX])
            page = await self._send(call)
            outcomes += page
        return outcomes

    async def drain(self, owner: Owner | str, *, deadline_s: float = DRAIN_DEFAULT_S) -> Drained:
        """As `RegistryClient.drain`."""
        return await self._send(protocol.drain(owner, deadline_s))

    async def owner(self, owner: Owner | str) -> OwnerDetails:
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

    async def health(self) -> HealthResponse:
        """As `RegistryClient.health`."""
        return await self._send(protocol.health())

    async def remove(self, slug: str, suffix: str) -> Receipt:
        """As `RegistryClient.remove`."""
        return await self._send(administration.remove(slug, suffix))

    async def audit(self, finding: str | None = None, *, discovery: bool = False) -> AuditResponse:
        """As `RegistryClient.audit`."""
        return await self._send(administration.audit(finding, discovery))

    async def rehearse_sweep(self, *, release_brake: bool = False) -> SweptResponse:
        """As `RegistryClient.rehearse_sweep`."""
        return await self._send(administration.rehearse_sweep(release_brake))

    async def sql(
        self,
        query: str,
        *,
        timeout_s: float = SQL_TIMEOUT_MAX_S,
        max_rows: int = SQL_ROWS_DEFAULT,
    ) -> SqlResponse:
        """As `RegistryClient.sql`."""
        return await self._send(administration.sql(query, timeout_s, max_rows))

    async def send(self, call: Call[T]) -> T:
        """As `RegistryClient.send`."""
        return await self._send(call)

    async def explain(self, key: ArtifactKey | str) -> Explanation:
        """As `RegistryClient.explain`."""
        return await self._send(protocol.explain(key))

    async def is_held(self, key: ArtifactKey | str, endpoint: Endpoint | str | None = None) -> bool:
        """As `RegistryClient.is_held`."""
        held = await self._send(protocol.is_held(key, endpoint))
        if held is None:
            held = await self._send(protocol.is_held_unserveable(key, endpoint))
        return held

    async def download(
        self,
        key: ArtifactKey | str,
        checksum: str,
        size: int,
        into: BinaryIO,
        *,
        endpoint: Endpoint | str | None = None,
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
            async with _bounded(self.url, self._timeout_s, receiver.missing):
                await receive(self._http, path, receiver, self.url)

        self._birthplace.check()
        await repeated(self._retries, once)

    async def _pages(self, page: Callable[[str | None], Call[Page[T]]]) -> AsyncIterator[T]:
        pages = Pages()
        while not pages.complete:
            with pages.waiting():
                answer = await self._send(page(pages.after))
            pages.take(answer)
            for row in answer.rows:
                yield row

    async def _send(self, call: Call[T], source: UploadBody | None = None) -> T:
        self._birthplace.check()
        return await repeated(self._retries, lambda: self._send_once(call, source))

    async def _send_once(self, call: Call[T], source: UploadBody | None) -> T:
        headers = dict(call.headers)
        content: bytes | AsyncIterator[bytes] = call.body
        content_bytes = 0
        if source is not None:
            content_bytes = source.size
            headers["content-length"] = str(source.size)
            content = _chunks(source.chunks())
        async with (
            _bounded(self.url, self._timeout_s, content_bytes),
            self._http.stream(
                call.method,
                call.path,
                params=call.params or None,
                headers=headers,
                content=content or None,
            ) as response,
        ):
            answer = await _answer(response, self.url)
        return call.read(answer)


@asynccontextmanager
async def _bounded(url: str, timeout_s: float, content_bytes: int) -> AsyncIterator[None]:
    try:
        with failures_of(url):
            async with asyncio.timeout(longest_s(timeout_s, content_bytes)):
                yield
    except TimeoutError:
        raise too_late(url) from None


async def repeated(policy: RetryPolicy, once: Callable[[], Awaitable[T]]) -> T:
    """Do something that may be repeated, as often as a policy says."""
    attempts = Attempts(policy)
    while True:
        try:
            return await once()
        except RegistryError as error:
            pause_s = attempts.pause_s_after(error)
        await asyncio.sleep(pause_s)


async def receive(
    http: httpx2.AsyncClient,
    url: str,
    receiver: Receiver,
    service_url: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Ask once for what a receiver still lacks, and let it take what comes.

    Raises:
        RegistryError: the error that was answered.
        ChecksumMismatch: other bytes came.
        httpx2.RequestError: no answer came, or it broke off.
    """
    if not receiver.complete:
        asked = {**(headers or {}), **receiver.headers()}
        async with http.stream("GET", url, headers=asked) as response:
            if not receiver.accepts(response.status_code, response.headers):
                raise error_of(await _answer(response, service_url))
            async for chunk in response.aiter_bytes():
                receiver.take(chunk)
    receiver.finish()


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A slow disk must not hold up the event loop.
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


async def _answer(response: httpx2.Response, url: str) -> Answer:
    body = AnswerBody(url, response.headers)
    async for chunk in response.aiter_bytes(CHUNK_BYTES):
        body.take(chunk)
    return body.answer(response.status_code)
