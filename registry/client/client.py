"""A blocking client of the registry service: the calls of `protocol`, sent over HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
)
from registry.client.upload import UploadBody
from registry.core.events import EventFilter, EventOrder, EventPage
from registry.core.findings import Explanation
from registry.core.forks import Birthplace
from registry.core.listings import Entry, Model, OwnerRecord
from registry.core.model_revisions import OnConflict
from registry.core.records import ArtifactKey, Drained, Offer, Owner, Receipt, Registered, Renewed
from registry.errors import RegistryError
from registry.network.deadline import at_most
from registry.network.transports import Transport
from registry.wire.reports import AuditResponse, HealthResponse, SqlResponse, SweptResponse
from registry.wire.requests import (
    DRAIN_DEFAULT_S,
    RENEWALS_MAX,
    SQL_ROWS_DEFAULT,
    SQL_TIMEOUT_MAX_S,
)

T = TypeVar("T")

EVERY_EVENT = EventFilter()


class RegistryClient:
    """One registry service, spoken to over HTTP.

    Every method raises the error class that the service answered with, and `ServiceUnreachable`
    when no answer came. A call that failed for a passing reason is repeated as `retries` says; a
    repeated call may answer `unchanged` or a receipt of zeros for what its first attempt did.
    May be used by several threads, but not in a forked child: make one there. Proxies are used as
    the environment says, but never for this host. `AsyncRegistryClient` is the same for asyncio.

    Args:
        url: where the service is, like `http://127.0.0.1:8090`; a path prefix is kept. A user and
            password in it are sent as basic authentication and shown nowhere.
        token: the access token that is sent along, if the service asks for one.
        timeout_s: how long one attempt at a call may take in all, however the service answers; one
            that sends or receives content gets a second more for every 64 KiB.
        ca_file: authorities whose certificates are believed, instead of the system's.

    Raises:
        SettingsError: `url` is not an HTTP URL, the token cannot be one, or `timeout_s` is out of
            bounds. Calls raise it when proxy or certificates cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        ca_file: str | os.PathLike[str] | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        service = service_at(url, token)
        self.url = service.url
        self._timeout_s = checked_timeout(timeout_s)
        self._retries = retries or RetryPolicy()
        self._birthplace = Birthplace("registry client")
        self._http = httpx2.Client(
            base_url=self.url,
            headers=service.headers,
            timeout=timeout_of(timeout_s),
            cookies=cookies(),
            transport=transport or Transport(None if ca_file is None else os.fspath(ca_file)),
            trust_env=False,
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
        """Close the connections. In a forked child this does nothing: they are its parent's."""
        if self._birthplace.is_here:
            self._http.close()

    def register(
        self,
        owner: Owner | str,
        offers: Sequence[Offer],
        *,
        lease_ttl_s: float | None,
        worker_name: str | None = None,
        on_conflict: OnConflict | str = OnConflict.REFUSE,
        as_revision: bool = False,
    ) -> Registered:
        """Register a manifest for an owner, all of it or nothing. A lease of None is no lease.

        With `on_conflict="revision"` a manifest of one slug that would be a Conflict is registered
        as a revision of its model: the artifacts of the answer have the slug under which they are.
        What was registered so and lost is registered under that slug again with `as_revision`.

        Raises:
            ContentMissing: content must be uploaded first; `missing` lists the checksums.
            Conflict: another owner holds a key with other content; `conflicts` lists all.
        """
        return self._send(
            protocol.register(
                owner,
                offers,
                lease_ttl_s=lease_ttl_s,
                worker_name=worker_name,
                on_conflict=on_conflict,
                as_revision=as_revision,
            )
        )

    def upload(
        self,
        checksum: str,
        content: bytes | str | os.PathLike[str],
        *,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Upload content, from memory or streamed from a file; content that is there is fine.

        Raises:
            ChecksumMismatch: it is not what `checksum` says.
            TooLarge: it is larger than the service takes.
            FileUnreadable: the file cannot be read, or changed while it was read.
        """
        self._send(protocol.put_blob(checksum), UploadBody(content, on_bytes))

    def has_blob(self, checksum: str) -> bool:
        """Whether the service holds a copy of this content."""
        return self._send(protocol.has_blob(checksum))

    def unregister_for_owner(self, owner: Owner | str) -> Receipt:
        """End an owner and release all that it holds; fine for an unknown owner as well."""
        return self._send(protocol.unregister_for_owner(owner))

    def renew(self, owner: Owner | str) -> Renewed:
        """Renew an owner's lease; what it holds is counted in the answer, to be compared.

        Raises:
            LeaseGone: it was ended, or never registered. Register again.
            Superseded: a newer instance of the worker has taken its place.
        """
        return self._send(protocol.renew(owner))

    def renew_many(self, owners: Iterable[Owner | str]) -> list[Renewed | RegistryError]:
        """Renew the leases of many owners, 1000 by a call: for each, in their order, what `renew`
        would answer, or the LeaseGone or Superseded that it would raise."""
        wanted = [Owner.of(owner) for owner in owners]
        outcomes: list[Renewed | RegistryError] = []
        for start in range(0, len(wanted), RENEWALS_MAX):
            call = protocol.renew_many(wanted[start : start + RENEWALS_MAX])
            page = self._send(call)
            outcomes += page
        return outcomes

    def drain(self, owner: Owner | str, *, deadline_s: float = DRAIN_DEFAULT_S) -> Drained:
        """Announce that an owner is going to detach: it is served until it does, or until the
        deadline. Registering again cancels it.

        Raises:
            LeaseGone, Superseded: as `renew`.
        """
        return self._send(protocol.drain(owner, deadline_s))

    def owner(self, owner: Owner | str) -> OwnerDetails:
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

    def models(self) -> Iterator[Model]:
        """Every model, by slug and suffix; pages are asked for as they are needed."""
        return self._pages(protocol.models_page)

    def events(
        self,
        wanted: EventFilter = EVERY_EVENT,
        *,
        order: EventOrder = EventOrder.OLDEST,
        after: int | None = None,
        limit: int = protocol.PAGE_LIMIT,
    ) -> EventPage:
        """A page of the journal. It may hold fewer events than `limit`, or none, as long as its
        `next` is not None; after the last page, `last` is the `after` for what is to come."""
        return self._send(protocol.events_page(wanted, order, after, limit))

    def health(self) -> HealthResponse:
        """Whether the service can do its work: its checks, and what to look at all the same."""
        return self._send(protocol.health())

    def remove(self, slug: str, suffix: str) -> Receipt:
        """Drop a model's files, whoever holds them; the owners stay. For administrators.

        A worker that is attached registers again what it lost, when it renews its lease.
        """
        return self._send(administration.remove(slug, suffix))

    def audit(self, finding: str | None = None, *, discovery: bool = False) -> AuditResponse:
        """What is wrong, of one class of findings or of all. With `discovery` also what the service
        found when it compared itself with the discovery store that it was started with.

        Raises:
            Invalid: there is no such class, or the service is compared with no discovery.
        """
        return self._send(administration.audit(finding, discovery))

    def rehearse_sweep(self, *, release_brake: bool = False) -> SweptResponse:
        """Whom a sweep would end now, and what they hold. Changes nothing."""
        return self._send(administration.rehearse_sweep(release_brake))

    def sql(
        self,
        query: str,
        *,
        timeout_s: float = SQL_TIMEOUT_MAX_S,
        max_rows: int = SQL_ROWS_DEFAULT,
    ) -> SqlResponse:
        """What one statement answers that reads: for administrators, at most 10 s, 10,000 rows and
        16 MiB.

        Raises:
            Refused: it would change something, took too long or answers too much.
            Invalid: it is no statement.
        """
        return self._send(administration.sql(query, timeout_s, max_rows))

    def send(self, call: Call[T]) -> T:
        """What a call of `protocol` or `administration` answers."""
        return self._send(call)

    def explain(self, key: ArtifactKey | str) -> Explanation:
        """Content, holders and last events of a key; `entry` is None when nobody holds it."""
        return self._send(protocol.explain(key))

    def is_held(self, key: ArtifactKey | str, endpoint: Endpoint | str | None = None) -> bool:
        """Whether a key is held; with an endpoint, whether an owner of that endpoint holds it.

        Raises:
            Busy: it cannot be told now.
        """
        held = self._send(protocol.is_held(key, endpoint))
        if held is None:
            held = self._send(protocol.is_held_unserveable(key, endpoint))
        return held

    def download(
        self,
        key: ArtifactKey | str,
        checksum: str,
        size: int,
        into: BinaryIO,
        *,
        endpoint: Endpoint | str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write the bytes of a key to a file; they are exactly what checksum and size say.

        A transfer that breaks off is gone on with where it ended. After an error the file holds
        anything, but never more than `size` bytes.

        Raises:
            NotRegistered: nobody holds the key (any more).
            ChecksumMismatch: other bytes came.
            Unserveable: it is held, but no holder's bytes are right.
        """
        path = protocol.content_path(key, endpoint)
        receiver = Receiver(path, checksum, size, into, on_bytes=on_bytes)
        receiver.restart()
        self._repeated(lambda: self._receive(path, receiver))

    def _receive(self, path: str, receiver: Receiver) -> None:
        if not receiver.complete:
            with self._opened(
                "GET", path, headers=receiver.headers(), content_bytes=receiver.missing
            ) as response:
                if not receiver.accepts(response.status_code, response.headers):
                    raise error_of(self._answer(response))
                for chunk in response.iter_bytes():
                    receiver.take(chunk)
        receiver.finish()

    def _pages(self, page: Callable[[str | None], Call[Page[T]]]) -> Iterator[T]:
        pages = Pages()
        while not pages.complete:
            with pages.waiting():
                answer = self._send(page(pages.after))
            pages.take(answer)
            yield from answer.rows

    def _send(self, call: Call[T], source: UploadBody | None = None) -> T:
        return self._repeated(lambda: self._send_once(call, source))

    def _send_once(self, call: Call[T], source: UploadBody | None) -> T:
        headers = dict(call.headers)
        content: bytes | Iterable[bytes] = call.body
        content_bytes = 0
        if source is not None:
            content_bytes = source.size
            headers["content-length"] = str(source.size)
            content = source.chunks()
        with self._opened(
            call.method, call.path, call.params, headers, content, content_bytes
        ) as response:
            answer = self._answer(response)
        return call.read(answer)

    def _repeated(self, once: Callable[[], T]) -> T:
        self._birthplace.check()
        attempts = Attempts(self._retries)
        while True:
            try:
                return once()
            except RegistryError as error:
                pause_s = attempts.pause_s_after(error)
            time.sleep(pause_s)

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        content_bytes: int = 0,
    ) -> Iterator[httpx2.Response]:
        with (
            failures_of(self.url),
            at_most(longest_s(self._timeout_s, content_bytes)),
            self._http.stream(
                method, path, params=params or None, headers=headers, content=content or None
            ) as response,
        ):
            yield response

    def _answer(self, response: httpx2.Response) -> Answer:
        body = AnswerBody(self.url, response.headers)
        for chunk in response.iter_bytes(CHUNK_BYTES):
            body.take(chunk)
        return body.answer(response.status_code)
