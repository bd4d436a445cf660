"""The calls of the service without I/O: what to send, and what the answer means.

A `Call` holds one request and the reader of its answer; whoever has a transport, blocking or not,
sends it. Every call may be repeated when its outcome is unknown: the service then holds the same
as if it had been made once. Only what a repeated answer says may differ (`unchanged` for
`created`, a receipt of zeros).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from registry import errors
from registry.client.answers import Answer, checked, error_of, understood
from registry.client.endpoint import Endpoint as Endpoint
from registry.client.pages import Page, endless
from registry.core.checks import check_slug, milliseconds
from registry.core.events import Event, EventFilter, EventOrder, EventPage
from registry.core.findings import Explanation
from registry.core.listings import Entry, HeldEntry, Model, OwnerRecord
from registry.core.model_revisions import OnConflict
from registry.core.records import ArtifactKey, Drained, Offer, Owner, Receipt, Registered, Renewed
from registry.core.text import shown, shown_url
from registry.wire.json_encoding import encode
from registry.wire.listings import (
    ArtifactsResponse,
    EventsResponse,
    ExplainResponse,
    ModelsResponse,
    OwnerResponse,
    OwnersResponse,
)
from registry.wire.paths import metadata_path
from registry.wire.problems import Problem
from registry.wire.reports import HealthResponse
from registry.wire.requests import (
    ArtifactOffer,
    DrainRequest,
    OwnerIdentity,
    RegisterRequest,
    RenewalsRequest,
)
from registry.wire.responses import (
    DrainedResponse,
    ReceiptResponse,
    RegisteredResponse,
    RenewalsResponse,
    RenewedResponse,
)

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

PAGE_LIMIT = 1000
"""Rows asked for in one page of a list."""
EVENTS_STEP_MIN = 1000
"""Ids that a page without an event has behind it at least; a service of ours looks at 10,000."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    `read` raises the service's error for an answer that is one.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class OwnerDetails:
    """An owner and the entries that it holds."""

    record: OwnerRecord
    entries: tuple[HeldEntry, ...]


def register(
    owner: Owner | str,
    offers: Sequence[Offer],
    *,
    lease_ttl_s: float | None,
    worker_name: str | None = None,
    on_conflict: OnConflict | str = OnConflict.REFUSE,
    as_revision: bool = False,
) -> Call[Registered]:
    """Register a manifest for an owner; None is no lease."""
    if lease_ttl_s is not None:
        # As JSON, what has no end would be null: no lease.
        milliseconds("lease_ttl_s", lease_ttl_s)
    body = RegisterRequest(
        OwnerIdentity.of(Owner.of(owner)),
        [ArtifactOffer.of(offer) for offer in offers],
        lease_ttl_s,
        worker_name,
        OnConflict.of(on_conflict),
        as_revision,
    )
    return Call(
        "POST",
        "/v1/registrations",
        reader(RegisteredResponse, RegisteredResponse.record),
        headers={"content-type": "application/json"},
        body=encode(body),
    )


def put_blob(checksum: str) -> Call[None]:
    """Upload content, which the transport sends as the body."""
    return Call(
        "PUT",
        f"/v1/blobs/{checksum}",
        _read_nothing,
        headers={"content-type": "application/octet-stream"},
    )


def has_blob(checksum: str) -> Call[bool]:
    """Whether the service holds a copy of this content."""
    return Call("HEAD", f"/v1/blobs/{checksum}", _read_presence)


def unregister_for_owner(owner: Owner | str) -> Call[Receipt]:
    """End an owner and release all that it holds."""
    read = reader(ReceiptResponse, ReceiptResponse.record)
    return Call("DELETE", f"/v1/owners/{Owner.of(owner)}", read)


def renew(owner: Owner | str) -> Call[Renewed]:
    """Renew an owner's lease."""
    read = reader(RenewedResponse, RenewedResponse.record)
    return Call("POST", f"/v1/owners/{Owner.of(owner)}/renew", read)


def renew_many(owners: Sequence[Owner]) -> Call[list[Renewed | errors.RegistryError]]:
    """Renew the leases of at most 1000 owners."""

    def record(answer: RenewalsResponse) -> list[Renewed | errors.RegistryError]:
        if [each.owner.record() for each in answer.renewals] != list(owners):
            raise errors.Invalid("The answer is not for the owners that were asked for.")
        return [each.record() for each in answer.renewals]

    return Call(
        "POST",
        "/v1/renewals",
        reader(RenewalsResponse, record),
        headers={"content-type": "application/json"},
        body=encode(RenewalsRequest([OwnerIdentity.of(owner) for owner in owners])),
    )


def drain(owner: Owner | str, deadline_s: float) -> Call[Drained]:
    """Announce that an owner is going to detach."""
    milliseconds("deadline_s", deadline_s)
    return Call(
        "POST",
        f"/v1/owners/{Owner.of(owner)}/drain",
        reader(DrainedResponse, DrainedResponse.record),
        headers={"content-type": "application/json"},
        body=encode(DrainRequest(deadline_s)),
    )


def owner(owner: Owner | str) -> Call[OwnerDetails]:
    """An owner and what it holds."""
    return Call("GET", f"/v1/owners/{Owner.of(owner)}", reader(OwnerResponse, _owner_details))


def owners_page(after: str | None) -> Call[Page[OwnerRecord]]:
    """A page of the owners."""
    return Call(
        "GET",
        "/v1/owners",
        reader(OwnersResponse, _owners_page),
        params=_page_params(after),
    )


def artifacts_page(filters: Mapping[str, str | None], after: str | None) -> Call[Page[Entry]]:
    """A page of the entries that match every filter that is not None.

    Raises:
        Invalid: the slug is none, so that nothing could match.
    """
    if filters.get("slug") is not None:
        check_slug("slug", str(filters["slug"]))
    given = {name: value for name, value in filters.items() if value is not None}
    return Call(
        "GET",
        "/v1/artifacts",
        reader(ArtifactsResponse, _artifacts_page),
        params=given | _page_params(after),
    )


def models_page(after: str | None) -> Call[Page[Model]]:
    """A page of the models."""
    return Call(
        "GET",
        "/v1/models",
        reader(ModelsResponse, _models_page),
        params=_page_params(after),
    )


def events_page(
    wanted: EventFilter, order: EventOrder, after: int | None, limit: int = PAGE_LIMIT
) -> Call[EventPage]:
    """A page of the journal, in an order of ids."""
    params = {"order": order.value, "limit": str(limit)}
    owner = None if wanted.owner is None else Owner.of(wanted.owner)
    given = {"owner": owner, "slug": wanted.slug, "kind": wanted.kind, "after": after}
    given["request_id"] = wanted.request_id
    params |= {name: str(value) for name, value in given.items() if value is not None}
    read = reader(EventsResponse, EventsResponse.record)
    return Call(
        "GET", "/v1/events", lambda answer: _advanced(read(answer), order, after), params=params
    )


def _advanced(page: EventPage, order: EventOrder, after: int | None) -> EventPage:
    """A page whose next one begins further on; much further, if it has no event."""
    ids = [event.id for event in page.events]
    if order is EventOrder.NEWEST:
        ids.reverse()
    if any(one >= other for one, other in pairwise(ids)):
        raise endless("goes back to what it had listed")
    if page.next is None or after is None:
        return page
    step = page.next - after if order is EventOrder.OLDEST else after - page.next
    if step < (1 if page.events else EVENTS_STEP_MIN):
        raise endless("does not get on")
    return page


def health() -> Call[HealthResponse]:
    """Whether the service can do its work. That it cannot is an answer too, not an error."""
    return Call("GET", "/health", _read_health)


def explain(key: ArtifactKey | str) -> Call[Explanation]:
    """Content, holders and last events of a key; no entry when nobody holds it."""
    return Call("GET", f"/v1/artifacts/{_key_path(ArtifactKey.of(key))}", _read_explanation)


def is_held(key: ArtifactKey | str, endpoint: Endpoint | str | None = None) -> Call[bool | None]:
    """Whether a key is held; with an endpoint, whether an owner of that endpoint holds it. None: it
    takes an answer with a body to know, see `is_held_unserveable`."""
    return Call("HEAD", content_path(key, endpoint), _read_held)


def is_held_unserveable(
    key: ArtifactKey | str, endpoint: Endpoint | str | None = None
) -> Call[bool]:
    """Whether a key is held, although it may be that no holder has its bytes just now. Asks for a
    byte of it, as a refusal says why only where there is a body."""
    path, headers = content_path(key, endpoint), {"range": "bytes=0-0"}
    return Call("GET", path, _read_first_byte, headers=headers)


def content_path(key: ArtifactKey | str, endpoint: Endpoint | str | None = None) -> str:
    """Where the service serves a key's bytes."""
    key = ArtifactKey.of(key)
    if endpoint is None:
        return metadata_path(key)
    return f"/v1/metadata/{Endpoint.of(endpoint)}/{_key_path(key)}"


def find_content_path(url: str) -> str | None:
    """The path at which services serve what a URL names, if it is the URL of a service's content.

    Raises:
        Invalid: it is no URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise errors.Invalid(f"{shown(shown_url(url))} is not a URL.") from None
    if parts.scheme not in ("http", "https"):
        return None
    _, marker, path = parts.path.partition("/v1/metadata/")
    names = [unquote(name) for name in path.split("/")]
    try:
        if marker and len(names) in (3, 6):
            endpoint = Endpoint(*names[:3]) if len(names) == 6 else None
            return content_path(ArtifactKey(*names[-3:]), endpoint)
    except errors.Invalid:
        pass
    return None


def _key_path(key: ArtifactKey) -> str:
    return f"{key.slug}/{key.suffix}/{quote(key.filename, safe='')}"


def reader(answer_type: type[S], record: Callable[[S], T]) -> Callable[[Answer], T]:
    """A reader of answers whose body is `answer_type`."""
    decoder = msgspec.json.Decoder(answer_type)

    def read(answer: Answer) -> T:
        if answer.status >= 300:
            raise error_of(answer)
        return understood(answer, lambda: checked(record(decoder.decode(answer.body))))

    return read


def _read_nothing(answer: Answer) -> None:
    if answer.status >= 300:
        raise error_of(answer)


def _read_presence(answer: Answer) -> bool:
    if answer.status == 404:
        return False
    _read_nothing(answer)
    return True


def _read_held(answer: Answer) -> bool | None:
    return None if answer.status == 503 else _read_presence(answer)


def _read_first_byte(answer: Answer) -> bool:
    try:
        return answer.status == 416 or _read_presence(answer)
    except errors.Unserveable:
        return True


def _read_health(answer: Answer) -> HealthResponse:
    fails = answer.status == 503 and b'"checks"' in answer.body
    if answer.status != 200 and not fails:
        raise error_of(answer)
    return understood(answer, lambda: msgspec.json.decode(answer.body, type=HealthResponse))


def _read_explanation(answer: Answer) -> Explanation:
    if answer.status == 404:
        error = error_of(answer)
        if not isinstance(error, errors.NotRegistered):
            raise error
        return understood(answer, lambda: checked(Explanation(None, (), _events_in(answer.body))))
    return _read_explained(answer)


_read_explained = reader(ExplainResponse, ExplainResponse.record)


def _events_in(body: bytes) -> tuple[Event, ...]:
    problem = msgspec.json.decode(body, type=Problem)
    return tuple(event.record() for event in problem.events or ())


def _owner_details(answer: OwnerResponse) -> OwnerDetails:
    return OwnerDetails(answer.record(), tuple(held.record() for held in answer.entries))


def _owners_page(answer: OwnersResponse) -> Page[OwnerRecord]:
    return Page(tuple(each.record() for each in answer.owners), answer.next)


def _artifacts_page(answer: ArtifactsResponse) -> Page[Entry]:
    return Page(tuple(each.record() for each in answer.artifacts), answer.next)


def _models_page(answer: ModelsResponse) -> Page[Model]:
    return Page(tuple(each.record() for each in answer.models), answer.next)


def _page_params(after: str | None) -> dict[str, str]:
    params = {"limit": str(PAGE_LIMIT)}
    return params if after is None else params | {"after": after}
