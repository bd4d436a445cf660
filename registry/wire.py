"""Records and errors as JSON and back. The only place where wire names are spelled.

Bodies that the service takes refuse unknown fields; answers that a client reads ignore them, so
that an older client can talk to a newer service. Times are RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from registry import errors, shapes
from registry.records import (
    ArtifactKey,
    AuditReport,
    AuditSummary,
    ConflictingKey,
    Drained,
    Entry,
    Event,
    EventPage,
    Explanation,
    Finding,
    HeldEntry,
    Holder,
    Kept,
    Lease,
    Model,
    Offer,
    Outcome,
    Owner,
    OwnerRecord,
    OwnerState,
    Receipt,
    RefStatus,
    Registered,
    RegisteredArtifact,
    Renewed,
    Severity,
    Source,
    parse_instance_id,
)

LEASE_DEFAULT_S = 60
DRAIN_DEFAULT_S = 300

T = TypeVar("T")

encode = msgspec.json.Encoder().encode


# Values


def format_time(at: int) -> str:
    """Milliseconds since the epoch as RFC 3339: `2026-01-31T12:00:00.000Z`."""
    seconds, milliseconds = divmod(at, 1000)
    return f"{_format_second(seconds)}.{milliseconds:03}Z"


@functools.lru_cache(maxsize=256)
def _format_second(seconds: int) -> str:
    moment = time.gmtime(seconds)
    return (
        f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}"
        f"T{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    )


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time."""
    moment = datetime.fromisoformat(text)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND


_MILLISECOND = datetime.resolution * 1000


def metadata_path(key: ArtifactKey) -> str:
    """The path of an entry's bytes on the service, percent-encoded."""
    filename = key.filename
    if not _needs_no_quotes(filename):
        filename = quote(filename, safe="")
    return f"/v1/metadata/{key.slug}/{key.suffix}/{filename}"


_needs_no_quotes = re.compile(r"[A-Za-z0-9._~-]+").fullmatch


def seconds(milliseconds: int) -> int | float:
    """Milliseconds as seconds, whole where they are whole."""
    whole, rest = divmod(milliseconds, 1000)
    return milliseconds / 1000 if rest else whole


_FAR_S = 10**12


def _milliseconds(given_s: int | float) -> int:
    """Seconds that were given as milliseconds. What no limit admits is cut, so that it can be
    calculated with, whatever its number of digits."""
    return round(max(-_FAR_S, min(given_s, _FAR_S)) * 1000)


def _time_or_none(at: int | None) -> str | None:
    return None if at is None else format_time(at)


def _parse_time_or_none(text: str | None) -> int | None:
    return None if text is None else parse_time(text)


# What the service takes


class OwnerBody(msgspec.Struct, forbid_unknown_fields=True):
    """An owner. `instance_id` is always a string in answers."""

    namespace: shapes.Name
    component: shapes.Name
    endpoint: shapes.Name
    instance_id: shapes.AnyInstanceId
    lora_slug: shapes.Slug | None = None

    def record(self) -> Owner:
        """Raises: Invalid."""
        return Owner(
            self.namespace,
            self.component,
            self.endpoint,
            parse_instance_id(self.instance_id),
            self.lora_slug,
        )

    @classmethod
    def of(cls, owner: Owner) -> OwnerBody:
        return cls(
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug,
        )


def _owner_or_none(owner: Owner | None) -> OwnerBody | None:
    return None if owner is None else OwnerBody.of(owner)


class OfferBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a manifest: in place with `path`, else a copy that `checksum` names."""

    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    path: shapes.Path | None = None
    checksum: shapes.Checksum | None = None
    size: shapes.Size | None = None

    def record(self) -> Offer:
        """Raises: Invalid."""
        key = ArtifactKey(self.slug, self.suffix, self.filename)
        return Offer(key, self.path, self.checksum, self.size)

    @classmethod
    def of(cls, offer: Offer) -> OfferBody:
        key = offer.key
        return cls(key.slug, key.suffix, key.filename, offer.path, offer.checksum, offer.size)


class RegisterBody(msgspec.Struct, forbid_unknown_fields=True):
    """A manifest. `lease_ttl_s` left out is 60; null is no lease."""

    owner: OwnerBody
    artifacts: list[OfferBody]
    lease_ttl_s: shapes.Seconds | None = LEASE_DEFAULT_S
    worker_name: shapes.Name | None = None

    @property
    def lease_ttl_ms(self) -> int | None:
        return None if self.lease_ttl_s is None else _milliseconds(self.lease_ttl_s)


class DrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """An announced detach. `deadline_s` is how long it may take, 1 s to 7 days."""

    deadline_s: shapes.Seconds = DRAIN_DEFAULT_S

    @property
    def deadline_ms(self) -> int:
        return _milliseconds(self.deadline_s)


_drain_decoder = msgspec.json.Decoder(DrainBody)
_register_decoder = msgspec.json.Decoder(RegisterBody)


def decode_register(body: bytes) -> RegisterBody:
    """The manifest in a request body.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_register_decoder, body)


def decode_drain(body: bytes) -> DrainBody:
    """The announcement in a request body. An empty body leaves everything at its default.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_drain_decoder, body) if body else DrainBody()


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Invalid(f"The request body is not what this call takes: {error}.") from error


# What the service answers


class LeaseAnswer(msgspec.Struct):
    ttl_s: shapes.Seconds
    expires_at: shapes.Time

    @classmethod
    def of(cls, lease: Lease | None) -> LeaseAnswer | None:
        return None if lease is None else cls(seconds(lease.ttl_ms), format_time(lease.expires_at))

    def record(self) -> Lease:
        return Lease(round(self.ttl_s * 1000), parse_time(self.expires_at))


class KeyAnswer(msgspec.Struct):
    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename

    @classmethod
    def of(cls, key: ArtifactKey) -> KeyAnswer:
        return cls(key.slug, key.suffix, key.filename)

    def record(self) -> ArtifactKey:
        return ArtifactKey(self.slug, self.suffix, self.filename)


class RegisteredArtifactAnswer(msgspec.Struct):
    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    checksum: shapes.Checksum
    size: shapes.Size
    url: str
    outcome: Outcome

    @classmethod
    def of(cls, artifact: RegisteredArtifact) -> RegisteredArtifactAnswer:
        key = artifact.key
        return cls(
            key.slug,
            key.suffix,
            key.filename,
            artifact.checksum,
            artifact.size,
            metadata_path(key),
            artifact.outcome,
        )

    def record(self) -> RegisteredArtifact:
        key = ArtifactKey(self.slug, self.suffix, self.filename)
        return RegisteredArtifact(key, self.checksum, self.size, self.outcome)


class RegisteredAnswer(msgspec.Struct):
    owner: OwnerBody
    lease: LeaseAnswer | None
    artifacts: list[RegisteredArtifactAnswer]

    @classmethod
    def of(cls, registered: Registered) -> RegisteredAnswer:
        return cls(
            OwnerBody.of(registered.owner),
            LeaseAnswer.of(registered.lease),
            [RegisteredArtifactAnswer.of(artifact) for artifact in registered.artifacts],
        )

    def record(self) -> Registered:
        return Registered(
            self.owner.record(),
            None if self.lease is None else self.lease.record(),
            tuple(artifact.record() for artifact in self.artifacts),
        )


class RenewedAnswer(msgspec.Struct):
    """A renewed lease. `refs` counts what the owner holds, for the worker to compare."""

    owner: OwnerBody
    lease: LeaseAnswer | None
    refs: shapes.Count

    @classmethod
    def of(cls, renewed: Renewed) -> RenewedAnswer:
        return cls(OwnerBody.of(renewed.owner), LeaseAnswer.of(renewed.lease), renewed.refs)

    def record(self) -> Renewed:
        return Renewed(
            self.owner.record(), None if self.lease is None else self.lease.record(), self.refs
        )


class DrainedAnswer(msgspec.Struct):
    owner: OwnerBody
    state: OwnerState
    drain_deadline_at: shapes.Time

    @classmethod
    def of(cls, drained: Drained) -> DrainedAnswer:
        return cls(
            OwnerBody.of(drained.owner), OwnerState.DRAINING, format_time(drained.deadline_at)
        )

    def record(self) -> Drained:
        return Drained(self.owner.record(), parse_time(self.drain_deadline_at))


class BlobAnswer(msgspec.Struct):
    """Content that is now here."""

    checksum: shapes.Checksum
    size: shapes.Size


class KeptAnswer(msgspec.Struct):
    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    holders: shapes.Count

    @classmethod
    def of(cls, kept: Kept) -> KeptAnswer:
        return cls(kept.key.slug, kept.key.suffix, kept.key.filename, kept.holders)

    def record(self) -> Kept:
        return Kept(ArtifactKey(self.slug, self.suffix, self.filename), self.holders)


class ReceiptAnswer(msgspec.Struct):
    owner: OwnerBody | None
    released: shapes.Count
    removed: list[KeyAnswer]
    kept: list[KeptAnswer]

    @classmethod
    def of(cls, receipt: Receipt) -> ReceiptAnswer:
        return cls(
            _owner_or_none(receipt.owner),
            receipt.released,
            [KeyAnswer.of(key) for key in receipt.removed],
            [KeptAnswer.of(kept) for kept in receipt.kept],
        )

    def record(self) -> Receipt:
        return Receipt(
            None if self.owner is None else self.owner.record(),
            self.released,
            tuple(key.record() for key in self.removed),
            tuple(kept.record() for kept in self.kept),
        )


class HolderAnswer(msgspec.Struct):
    owner: OwnerBody
    state: OwnerState
    lease_expires_at: shapes.Time | None
    source: Source
    path: str | None
    status: RefStatus
    since: shapes.Time

    @classmethod
    def of(cls, holder: Holder) -> HolderAnswer:
        return cls(
            OwnerBody.of(holder.owner),
            holder.state,
            _time_or_none(holder.lease_expires_at),
            holder.source,
            holder.path,
            holder.status,
            format_time(holder.since),
        )

    def record(self) -> Holder:
        return Holder(
            self.owner.record(),
            self.state,
            _parse_time_or_none(self.lease_expires_at),
            self.source,
            self.path,
            self.status,
            parse_time(self.since),
        )


class ConflictHolderAnswer(msgspec.Struct):
    """The owner who holds a key, with its state and lease end: can it be waited for?"""

    namespace: shapes.Name
    component: shapes.Name
    endpoint: shapes.Name
    instance_id: shapes.InstanceId
    lora_slug: shapes.Slug | None
    state: OwnerState
    lease_expires_at: shapes.Time | None
    source: Source
    since: shapes.Time

    @classmethod
    def of(cls, holder: Holder) -> ConflictHolderAnswer:
        owner = holder.owner
        return cls(
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug,
            holder.state,
            _time_or_none(holder.lease_expires_at),
            holder.source,
            format_time(holder.since),
        )

    def record(self) -> Holder:
        number = parse_instance_id(self.instance_id)
        return Holder(
            Owner(self.namespace, self.component, self.endpoint, number, self.lora_slug),
            self.state,
            _parse_time_or_none(self.lease_expires_at),
            self.source,
            None,
            RefStatus.OK,
            parse_time(self.since),
        )


class ConflictAnswer(msgspec.Struct):
    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    registered: shapes.Checksum
    offered: shapes.Checksum
    holders: list[ConflictHolderAnswer]

    @classmethod
    def of(cls, conflict: ConflictingKey) -> ConflictAnswer:
        return cls(
            conflict.key.slug,
            conflict.key.suffix,
            conflict.key.filename,
            conflict.registered,
            conflict.offered,
            [ConflictHolderAnswer.of(holder) for holder in conflict.holders],
        )

    def record(self) -> ConflictingKey:
        return ConflictingKey(
            ArtifactKey(self.slug, self.suffix, self.filename),
            self.registered,
            self.offered,
            tuple(holder.record() for holder in self.holders),
        )


class EntryAnswer(msgspec.Struct):
    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    checksum: shapes.Checksum
    size: shapes.Size
    generation: shapes.Count
    created_at: shapes.Time
    updated_at: shapes.Time
    holders: shapes.Count
    url: str
    id: int

    @classmethod
    def of(cls, entry: Entry) -> EntryAnswer:
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
        )


class ArtifactsAnswer(msgspec.Struct):
    """A page of entries; `next` goes into `after` for the page behind it."""

    artifacts: list[EntryAnswer]
    next: str | None


class HeldAnswer(msgspec.Struct):
    """An entry that an owner holds."""

    slug: shapes.Slug
    suffix: shapes.Suffix
    filename: shapes.Filename
    checksum: shapes.Checksum
    size: shapes.Size

    @classmethod
    def of(cls, held: HeldEntry | Entry) -> HeldAnswer:
        return cls(held.key.slug, held.key.suffix, held.key.filename, held.checksum, held.size)

    def record(self) -> HeldEntry:
        return HeldEntry(
            ArtifactKey(self.slug, self.suffix, self.filename), self.checksum, self.size
        )


class OwnerSummaryAnswer(msgspec.Struct):
    owner: OwnerBody
    state: OwnerState
    worker_name: shapes.Name | None
    lease: LeaseAnswer | None
    registered_at: shapes.Time
    renewed_at: shapes.Time
    drain_deadline_at: shapes.Time | None
    ended_at: shapes.Time | None
    end_reason: str | None
    refs: shapes.Count

    def record(self) -> OwnerRecord:
        return OwnerRecord(
            self.owner.record(),
            self.state,
            self.worker_name,
            None if self.lease is None else self.lease.record(),
            parse_time(self.registered_at),
            parse_time(self.renewed_at),
            _parse_time_or_none(self.drain_deadline_at),
            _parse_time_or_none(self.ended_at),
            self.end_reason,
            self.refs,
        )


class OwnerAnswer(OwnerSummaryAnswer):
    entries: list[HeldAnswer]


class OwnersAnswer(msgspec.Struct):
    """A page of owners; `next` goes into `after` for the page behind it."""

    owners: list[OwnerSummaryAnswer]
    next: str | None


def owner_summary(record: OwnerRecord) -> OwnerSummaryAnswer:
    return OwnerSummaryAnswer(**_owner_fields(record))


def owner_answer(record: OwnerRecord, entries: Sequence[HeldEntry | Entry]) -> OwnerAnswer:
    held = [HeldAnswer.of(entry) for entry in entries]
    return OwnerAnswer(**_owner_fields(record), entries=held)


def _owner_fields(record: OwnerRecord) -> dict[str, Any]:
    return {
        "owner": OwnerBody.of(record.owner),
        "state": record.state,
        "worker_name": record.worker_name,
        "lease": LeaseAnswer.of(record.lease),
        "registered_at": format_time(record.registered_at),
        "renewed_at": format_time(record.renewed_at),
        "drain_deadline_at": _time_or_none(record.drain_deadline_at),
        "ended_at": _time_or_none(record.ended_at),
        "end_reason": record.end_reason,
        "refs": record.refs,
    }


class EventAnswer(msgspec.Struct):
    id: int
    at: shapes.Time
    kind: str
    owner: OwnerBody | None
    slug: shapes.Slug | None
    suffix: shapes.Suffix | None
    filename: shapes.Filename | None
    checksum: shapes.Checksum | None
    previous_checksum: shapes.Checksum | None
    reason: str | None
    actor: str | None
    request_id: str | None

    @classmethod
    def of(cls, event: Event) -> EventAnswer:
        return cls(
            event.id,
            format_time(event.at),
            event.kind,
            _owner_or_none(event.owner),
            event.slug,
            event.suffix,
            event.filename,
            event.checksum,
            event.previous_checksum,
            event.reason,
            event.actor,
            event.request_id,
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
        )


class EventsAnswer(msgspec.Struct):
    """A page of the journal. It may hold fewer events than `limit`, or none, and not be the last:
    as long as `next` is not null, it goes into `after` for the page behind it. `last` is the id of
    the newest event of all: after the last page, it is the `after` for what is to come."""

    events: list[EventAnswer]
    next: str | None
    last: str

    @classmethod
    def of(cls, page: EventPage) -> EventsAnswer:
        return cls(
            [EventAnswer.of(event) for event in page.events],
            None if page.next is None else str(page.next),
            str(page.last),
        )

    def record(self) -> EventPage:
        return EventPage(
            tuple(event.record() for event in self.events),
            None if self.next is None else int(self.next),
            int(self.last),
        )


class ModelAnswer(msgspec.Struct):
    """A model with its entries together; `holders` counts owners of any of them. It is
    `serveable` when every entry has a holder whose bytes were right at the last look."""

    slug: shapes.Slug
    suffix: shapes.Suffix
    files: shapes.Count
    bytes: shapes.Size
    holders: shapes.Count
    serveable: bool

    @classmethod
    def of(cls, model: Model) -> ModelAnswer:
        return cls(
            model.slug, model.suffix, model.files, model.bytes, model.holders, model.serveable
        )

    def record(self) -> Model:
        return Model(self.slug, self.suffix, self.files, self.bytes, self.holders, self.serveable)


class ModelsAnswer(msgspec.Struct):
    """A page of models. It may hold fewer than `limit` and not be the last: as long as `next` is
    not null, it goes into `after` for the page behind it."""

    models: list[ModelAnswer]
    next: str | None


class ExplainAnswer(msgspec.Struct):
    entry: EntryAnswer
    holders: list[HolderAnswer]
    events: list[EventAnswer]

    @classmethod
    def of(cls, entry: Entry, explanation: Explanation) -> ExplainAnswer:
        return cls(
            EntryAnswer.of(entry),
            [HolderAnswer.of(holder) for holder in explanation.holders],
            [EventAnswer.of(event) for event in explanation.events],
        )

    def record(self) -> Explanation:
        return Explanation(
            self.entry.record(),
            tuple(holder.record() for holder in self.holders),
            tuple(event.record() for event in self.events),
        )


class FindingAnswer(msgspec.Struct):
    """One leak or fault."""

    kind: str = msgspec.field(name="class")
    severity: Severity
    owner: str | None
    entry: str | None
    since: str | None
    detail: str

    @classmethod
    def of(cls, finding: Finding) -> FindingAnswer:
        return cls(
            finding.kind,
            finding.severity,
            finding.owner,
            finding.entry,
            finding.since,
            finding.detail,
        )


class FootprintAnswer(msgspec.Struct):
    owner: str
    refs: int
    bytes: int


class AuditSummaryAnswer(msgspec.Struct):
    last_sweep_at: str | None
    overdue_owners: int
    oldest_drain_at: str | None
    brake_engaged_at: str | None
    largest_owners: list[FootprintAnswer]
    entries_by_holders: dict[int, int]
    journal_rows: int
    wal_bytes: int

    @classmethod
    def of(cls, summary: AuditSummary) -> AuditSummaryAnswer:
        return cls(
            _time_or_none(summary.last_sweep_at),
            summary.overdue_owners,
            _time_or_none(summary.oldest_drain_at),
            _time_or_none(summary.brake_engaged_at),
            [FootprintAnswer(each.owner, each.refs, each.bytes) for each in summary.largest_owners],
            summary.entries_by_holders,
            summary.journal_rows,
            summary.wal_bytes,
        )


class AuditAnswer(msgspec.Struct):
    """Findings, the worst first and at most 1000 of them. `counts` counts all by class."""

    worst: Severity | None
    counts: dict[str, int]
    findings: list[FindingAnswer]
    summary: AuditSummaryAnswer | None

    @classmethod
    def of(cls, report: AuditReport) -> AuditAnswer:
        return cls(
            report.worst,
            report.counts,
            [FindingAnswer.of(finding) for finding in report.findings],
            None if report.summary is None else AuditSummaryAnswer.of(report.summary),
        )


class SweptAnswer(msgspec.Struct):
    """What a sweep did, or would do. `paused` says why owners that lapsed were left alone."""

    ended: list[EndedAnswer]
    released: int
    waiting: int
    paused: str | None


class EndedAnswer(msgspec.Struct):
    owner: OwnerBody
    state: OwnerState
    reason: str


class LiveAnswer(msgspec.Struct):
    status: str
    version: str


class HealthAnswer(msgspec.Struct):
    """`status` is `ok` or `failing`; `checks` says of each check `ok` or what is wrong.

    `warnings` names what somebody should look at, though the service can serve.
    """

    status: str
    checks: dict[str, str]
    warnings: dict[str, str] = {}


# Problems (RFC 9457)


class Problem(msgspec.Struct, omit_defaults=True):
    """An error answer. `code` is stable; `detail` says what to do about it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    conflicts: list[ConflictAnswer] | None = None
    missing: list[str] | None = None
    retry_after_s: int | None = None
    events: list[EventAnswer] | None = None


def problem(
    error: errors.RegistryError,
    status: int,
    request_id: str | None = None,
    events: Sequence[Event] | None = None,
) -> Problem:
    """An error as the body of its answer."""
    answer = Problem(
        type=f"urn:metadata-registry:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
    )
    if isinstance(error, errors.Conflict):
        answer.conflicts = [ConflictAnswer.of(conflict) for conflict in error.conflicts]
    elif isinstance(error, errors.ContentMissing):
        answer.missing = list(error.missing)
    elif isinstance(error, errors.Busy):
        answer.retry_after_s = error.retry_after_s
    if events is not None:
        answer.events = [EventAnswer.of(event) for event in events]
    return answer


def error_of(body: bytes, status: int) -> errors.RegistryError:
    """The error that an error answer stands for: the same class as in the service.

    A body that is no problem of this service (a proxy's, say) becomes a plain RegistryError that
    quotes its beginning.
    """
    try:
        answer = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return errors.RegistryError(f"The service answered {status}: {text or 'nothing'}")
    cls = errors.error_classes().get(answer.code, errors.RegistryError)
    if issubclass(cls, errors.Conflict):
        conflicts = [conflict.record() for conflict in answer.conflicts or ()]
        return cls(answer.detail, conflicts=conflicts)
    if issubclass(cls, errors.ContentMissing):
        return cls(answer.detail, missing=answer.missing or ())
    if issubclass(cls, errors.Busy):
        return cls(answer.detail, retry_after_s=answer.retry_after_s or 1)
    return cls(answer.detail)
