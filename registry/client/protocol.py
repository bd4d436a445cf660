"""The calls of the service without I/O: what to send, and what the answer means.

A `Call` holds one request and the reader of its answer; whoever has a transport, blocking or not,
sends it. Every call may be repeated when its outcome is unknown: the service then holds the same
as if it had been made once. Only what a repeated answer says may differ (`unchanged` for
`created`, a receipt of zeros).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

import msgspec

from registry import errors
from registry.core.records import (
    ArtifactKey,
    Drained,
    Entry,
    EventFilter,
    EventOrder,
    EventPage,
    Explanation,
    HeldEntry,
    Model,
    Offer,
    Owner,
    OwnerRecord,
    Receipt,
    Registered,
    Renewed,
)
from registry.wire import messages as wire

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

PAGE_LIMIT = 1000
"""Rows asked for in one page of a list."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered, its body read whole."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


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
class Page(Generic[T]):
    """A part of a list; `next` is where the part behind it begins, None at the end."""

    rows: tuple[T, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class OwnerDetails:
    """An owner and the entries that it holds."""

    record: OwnerRecord
    entries: tuple[HeldEntry, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, whatever its instances.

    Raises:
        Invalid: a name is not well-formed.
    """

    namespace: str
    component: str
    name: str

    def __post_init__(self) -> None:
        self.owner(0)

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint that `namespace/component/endpoint` names.

        Raises:
            Invalid: the text has not three parts, or a part is not well-formed.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise errors.Invalid(f"An endpoint is namespace/component/endpoint, not {text!r}.")
        return cls(*parts)

    def owner(self, instance_id: int, lora_slug: str | None = None) -> Owner:
        """The owner that an instance of this endpoint is."""
        return Owner(self.namespace, self.component, self.name, instance_id, lora_slug)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.name}"


def register(
    owner: Owner,
    offers: Sequence[Offer],
    *,
    lease_ttl_s: float | None,
    worker_name: str | None = None,
) -> Call[Registered]:
    """Register a manifest for an owner; None is no lease."""
    body = wire.RegisterRequest(
        wire.OwnerIdentity.of(owner),
        [wire.ArtifactOffer.of(offer) for offer in offers],
        lease_ttl_s,
        worker_name,
    )
    return Call(
        "POST",
        "/v1/registrations",
        _reader(wire.RegisteredResponse, wire.RegisteredResponse.record),
        headers={"content-type": "application/json"},
        body=wire.encode(body),
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


def unregister_for_owner(owner: Owner) -> Call[Receipt]:
    """End an owner and release all that it holds."""
    read = _reader(wire.ReceiptResponse, wire.ReceiptResponse.record)
    return Call("DELETE", f"/v1/owners/{owner}", read)


def renew(owner: Owner) -> Call[Renewed]:
    """Renew an owner's lease."""
    read = _reader(wire.RenewedResponse, wire.RenewedResponse.record)
    return Call("POST", f"/v1/owners/{owner}/renew", read)


def drain(owner: Owner, deadline_s: float) -> Call[Drained]:
    """Announce that an owner is going to detach."""
    return Call(
        "POST",
        f"/v1/owners/{owner}/drain",
        _reader(wire.DrainedResponse, wire.DrainedResponse.record),
        headers={"content-type": "application/json"},
        body=wire.encode(wire.DrainRequest(deadline_s)),
    )


def owner(owner: Owner) -> Call[OwnerDetails]:
    """An owner and what it holds."""
    return Call("GET", f"/v1/owners/{owner}", _reader(wire.OwnerResponse, _owner_details))


def owners_page(after: str | None) -> Call[Page[OwnerRecord]]:
    """A page of the owners."""
    return Call(
        "GET",
        "/v1/owners",
        _reader(wire.OwnersResponse, _owners_page),
        params=_page_params(after),
    )


def artifacts_page(filters: Mapping[str, str | None], after: str | None) -> Call[Page[Entry]]:
    """A page of the entries that match every filter that is not None."""
    given = {name: value for name, value in filters.items() if value is not None}
    return Call(
        "GET",
        "/v1/artifacts",
        _reader(wire.ArtifactsResponse, _artifacts_page),
        params=given | _page_params(after),
    )


def models_page(after: str | None) -> Call[Page[Model]]:
    """A page of the models."""
    return Call(
        "GET",
        "/v1/models",
        _reader(wire.ModelsResponse, _models_page),
        params=_page_params(after),
    )


def events_page(
    wanted: EventFilter, order: EventOrder, after: int | None, limit: int = PAGE_LIMIT
) -> Call[EventPage]:
    """A page of the journal, in an order of ids."""
    params = {"order": order.value, "limit": str(limit)}
    given = {"owner": wanted.owner, "slug": wanted.slug, "kind": wanted.kind, "after": after}
    params |= {name: str(value) for name, value in given.items() if value is not None}
    read = _reader(wire.EventsResponse, wire.EventsResponse.record)
    return Call("GET", "/v1/events", read, params=params)


def explain(key: ArtifactKey) -> Call[Explanation]:
    """Content, holders and last events of a key; no entry when nobody holds it."""
    return Call("GET", f"/v1/artifacts/{_key_path(key)}", _read_explanation)


def is_held(key: ArtifactKey, endpoint: Endpoint | None = None) -> Call[bool]:
    """Whether a key is held; with an endpoint, whether an owner of that endpoint holds it."""
    return Call("HEAD", content_path(key, endpoint), _read_held)


def content_path(key: ArtifactKey, endpoint: Endpoint | None = None) -> str:
    """Where the service serves a key's bytes."""
    if endpoint is None:
        return wire.metadata_path(key)
    return f"/v1/metadata/{endpoint}/{_key_path(key)}"


def _key_path(key: ArtifactKey) -> str:
    return f"{key.slug}/{key.suffix}/{quote(key.filename, safe='')}"


def error_of(answer: Answer) -> errors.RegistryError:
    """The error that an answer outside of 200 to 299 stands for."""
    if 300 <= answer.status < 400:
        return errors.ServiceUnreachable(
            f"The service sends callers on to {answer.headers.get('location', 'nowhere')} "
            f"({answer.status}). Use that address as --url."
        )
    error = wire.error_of(answer.body, answer.status)
    if type(error) is not errors.RegistryError:
        return error
    if answer.status == 503:
        return errors.Busy()
    if answer.status in (502, 504):
        return errors.ServiceUnreachable(
            f"A proxy in front of the service answered {answer.status}. Check that the service "
            "behind it runs."
        )
    return error


def _reader(answer_type: type[S], record: Callable[[S], T]) -> Callable[[Answer], T]:
    """A reader of answers whose body is `answer_type`."""
    decoder = msgspec.json.Decoder(answer_type)

    def read(answer: Answer) -> T:
        if answer.status >= 300:
            raise error_of(answer)
        return _understood(lambda: record(decoder.decode(answer.body)))

    return read


def _read_nothing(answer: Answer) -> None:
    if answer.status >= 300:
        raise error_of(answer)


def _read_presence(answer: Answer) -> bool:
    if answer.status == 404:
        return False
    _read_nothing(answer)
    return True


def _read_held(answer: Answer) -> bool:
    # 503 is for content that is held, but whose bytes are wrong just now. Reading it will tell.
    return answer.status == 503 or _read_presence(answer)


def _read_explanation(answer: Answer) -> Explanation:
    if answer.status == 404:
        error = error_of(answer)
        if not isinstance(error, errors.NotRegistered):
            raise error
        events = _understood(
            lambda: [
                event.record()
                for event in msgspec.json.decode(answer.body, type=wire.Problem).events or ()
            ]
        )
        return Explanation(None, (), tuple(events))
    return _read_explained(answer)


_read_explained = _reader(wire.ExplainResponse, wire.ExplainResponse.record)


def _understood(decode: Callable[[], T]) -> T:
    try:
        return decode()
    except (msgspec.DecodeError, ValueError, RecursionError, errors.Invalid) as error:
        raise errors.ServiceUnreachable(
            f"What answers there is no metadata registry, or one of another version: {error}"
        ) from error


def _owner_details(answer: wire.OwnerResponse) -> OwnerDetails:
    return OwnerDetails(answer.record(), tuple(held.record() for held in answer.entries))


def _owners_page(answer: wire.OwnersResponse) -> Page[OwnerRecord]:
    return Page(tuple(each.record() for each in answer.owners), answer.next)


def _artifacts_page(answer: wire.ArtifactsResponse) -> Page[Entry]:
    return Page(tuple(each.record() for each in answer.artifacts), answer.next)


def _models_page(answer: wire.ModelsResponse) -> Page[Model]:
    return Page(tuple(each.record() for each in answer.models), answer.next)


def _page_params(after: str | None) -> dict[str, str]:
    params = {"limit": str(PAGE_LIMIT)}
    return params if after is None else params | {"after": after}
