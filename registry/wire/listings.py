"""What looking answers: entries, owners, models, the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from registry.core.events import Event, EventPage
from registry.core.findings import Explanation
from registry.core.listings import Entry, HeldEntry, Model, OtherRevision, OwnerRecord
from registry.core.records import ArtifactKey, Holder, OwnerState, RefStatus, Source
from registry.core.times import format_time, parse_time, parse_time_or_none, time_or_none
from registry.wire import types
from registry.wire.paths import metadata_path
from registry.wire.requests import OwnerIdentity, owner_or_none
from registry.wire.responses import LeaseResponse


class HolderResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    lease_expires_at: types.Time | None
    source: Source
    path: str | None
    status: RefStatus
    since: types.Time

    @classmethod
    def of(cls, holder: Holder) -> HolderResponse:
        return cls(
            OwnerIdentity.of(holder.owner),
            holder.state,
            time_or_none(holder.lease_expires_at),
            holder.source,
            holder.path,
            holder.status,
            format_time(holder.since),
        )

    def record(self) -> Holder:
        return Holder(
            self.owner.record(),
            self.state,
            parse_time_or_none(self.lease_expires_at),
            self.source,
            self.path,
            self.status,
            parse_time(self.since),
        )


class EntryResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    checksum: types.Checksum
    size: types.Size
    generation: types.Count
    created_at: types.Time
    updated_at: types.Time
    holders: types.Count
    url: str
    id: int
    base_slug: types.Slug | None = None

    @classmethod
    def of(cls, entry: Entry) -> EntryResponse:
        return cls(
            entry.key.slug,
            entry.key.suffix,
            entry.key.filename,
            entry.checksum,
            entry.size,
            entry.generation,
            format_time(entry.created_at),
            format_time(entry.updated_at),
            entry.holders,
            metadata_path(entry.key),
            entry.id,
            entry.base_slug,
        )

    def record(self) -> Entry:
        return Entry(
            self.id,
            ArtifactKey(self.slug, self.suffix, self.filename),
            self.checksum,
            self.size,
            self.generation,
            parse_time(self.created_at),
            parse_time(self.updated_at),
            self.holders,
            self.base_slug,
        )


class ArtifactsResponse(msgspec.Struct):
    """A page of entries; `next` goes into `after` for the page behind it."""

    artifacts: list[EntryResponse]
    next: str | None


class HeldResponse(msgspec.Struct):
    """An entry that an owner holds."""

    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    checksum: types.Checksum
    size: types.Size

    @classmethod
    def of(cls, held: HeldEntry | Entry) -> HeldResponse:
        return cls(held.key.slug, held.key.suffix, held.key.filename, held.checksum, held.size)

    def record(self) -> HeldEntry:
        return HeldEntry(
            ArtifactKey(self.slug, self.suffix, self.filename), self.checksum, self.size
        )


class OwnerSummaryResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    worker_name: types.Name | None
    lease: LeaseResponse | None
    registered_at: types.Time
    renewed_at: types.Time
    drain_deadline_at: types.Time | None
    ended_at: types.Time | None
    end_reason: str | None
    refs: types.Count

    def record(self) -> OwnerRecord:
        return OwnerRecord(
            self.owner.record(),
            self.state,
            self.worker_name,
            None if self.lease is None else self.lease.record(),
            parse_time(self.registered_at),
            parse_time(self.renewed_at),
            parse_time_or_none(self.drain_deadline_at),
            parse_time_or_none(self.ended_at),
            self.end_reason,
            self.refs,
        )


class OwnerResponse(OwnerSummaryResponse):
    entries: list[HeldResponse]


class OwnersResponse(msgspec.Struct):
    """A page of owners; `next` goes into `after` for the page behind it."""

    owners: list[OwnerSummaryResponse]
    next: str | None


def owner_summary(record: OwnerRecord) -> OwnerSummaryResponse:
    return OwnerSummaryResponse(**_owner_fields(record))


def owner_response(record: OwnerRecord, entries: Sequence[HeldEntry | Entry]) -> OwnerResponse:
    held = [HeldResponse.of(entry) for entry in entries]
    return OwnerResponse(**_owner_fields(record), entries=held)


def _owner_fields(record: OwnerRecord) -> dict[str, Any]:
    return {
        "owner": OwnerIdentity.of(record.owner),
        "state": record.state,
        "worker_name": record.worker_name,
        "lease": LeaseResponse.of(record.lease),
        "registered_at": format_time(record.registered_at),
        "renewed_at": format_time(record.renewed_at),
        "drain_deadline_at": time_or_none(record.drain_deadline_at),
        "ended_at": time_or_none(record.ended_at),
        "end_reason": record.end_reason,
        "refs": record.refs,
    }


class EventResponse(msgspec.Struct):
    id: int
    at: types.Time
    kind: str
    owner: OwnerIdentity | None
    slug: types.Slug | None
    suffix: types.Suffix | None
    filename: types.Filename | None
    checksum: types.Checksum | None
    previous_checksum: types.Checksum | None
    reason: str | None
    actor: str | None
    request_id: str | None
    # Services before 0.5 do not tell.
    size: types.Size | None = None
    previous_size: types.Size | None = None

    @classmethod
    def of(cls, event: Event) -> EventResponse:
        return cls(
            event.id,
            format_time(event.at),
            event.kind,
            owner_or_none(event.owner),
            event.slug,
            event.suffix,
            event.filename,
            event.checksum,
            event.previous_checksum,
            event.reason,
            event.actor,
            event.request_id,
            event.size,
            event.previous_size,
        )

    def record(self) -> Event:
        return Event(
            self.id,
            parse_time(self.at),
            self.kind,
            None if self.owner is None else self.owner.record(),
            self.slug,
            self.suffix,
            self.filename,
            self.checksum,
            self.previous_checksum,
            self.reason,
            self.actor,
            self.request_id,
            self.size,
            self.previous_size,
        )


class EventsResponse(msgspec.Struct):
    """A page of the journal. It may hold fewer events than `limit`, or none, and not be the last:
    as long as `next` is not null, it goes into `after` for the page behind it. `last` is the id of
    the newest event of all: after the last page, it is the `after` for what is to come."""

    events: list[EventResponse]
    next: str | None
    last: str

    @classmethod
    def of(cls, page: EventPage) -> EventsResponse:
        return cls(
            [EventResponse.of(event) for event in page.events],
            None if page.next is None else str(page.next),
            str(page.last),
        )

    def record(self) -> EventPage:
        return EventPage(
            tuple(event.record() for event in self.events),
            None if self.next is None else int(self.next),
            int(self.last),
        )


class ModelResponse(msgspec.Struct):
    """A model with its entries together; `holders` counts owners of any of them. It is
    `serveable` when every entry has a holder whose bytes were right at the last look. `base_slug`
    is the slug of the model that it is a revision of; null: it is none."""

    slug: types.Slug
    suffix: types.Suffix
    files: types.Count
    bytes: types.Size
    holders: types.Count
    serveable: bool
    base_slug: types.Slug | None = None

    @classmethod
    def of(cls, model: Model) -> ModelResponse:
        return cls(
            model.slug,
            model.suffix,
            model.files,
            model.bytes,
            model.holders,
            model.serveable,
            model.base_slug,
        )

    def record(self) -> Model:
        return Model(
            self.slug,
            self.suffix,
            self.files,
            self.bytes,
            self.holders,
            self.serveable,
            self.base_slug,
        )


class ModelsResponse(msgspec.Struct):
    """A page of models. It may hold fewer than `limit` and not be the last: as long as `next` is
    not null, it goes into `after` for the page behind it."""

    models: list[ModelResponse]
    next: str | None


class OtherRevisionResponse(msgspec.Struct):
    """Another revision of a model, and up to 100 of the files that are other there, or only in one
    of the two."""

    slug: types.Slug
    differing: list[types.Filename]

    @classmethod
    def of(cls, revision: OtherRevision) -> OtherRevisionResponse:
        return cls(revision.slug, list(revision.differing))

    def record(self) -> OtherRevision:
        return OtherRevision(self.slug, tuple(self.differing))


class ExplainResponse(msgspec.Struct):
    entry: EntryResponse
    holders: list[HolderResponse]
    events: list[EventResponse]
    revisions: list[OtherRevisionResponse] = []

    @classmethod
    def of(cls, entry: Entry, explanation: Explanation) -> ExplainResponse:
        return cls(
            EntryResponse.of(entry),
            [HolderResponse.of(holder) for holder in explanation.holders],
            [EventResponse.of(event) for event in explanation.events],
            [OtherRevisionResponse.of(each) for each in explanation.revisions],
        )

    def record(self) -> Explanation:
        return Explanation(
            self.entry.record(),
            tuple(holder.record() for holder in self.holders),
            tuple(event.record() for event in self.events),
            tuple(each.record() for each in self.revisions),
        )


class RemovedResponse(msgspec.Struct):
    """What a sweep removed besides the refs of owners that it ended; None where it only looked."""

    entries: int = 0
    copies: int = 0
    tombstones: int = 0
    events: int = 0
