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

from registry import errors
from registry.core.records import (
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
from registry.wire import types

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


class OwnerIdentity(msgspec.Struct, forbid_unknown_fields=True):
    """An owner. `instance_id` is always a string in answers."""

    namespace: types.Name
    component: types.Name
    endpoint: types.Name
    instance_id: types.AnyInstanceId
    lora_slug: types.Slug | None = None

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
    def of(cls, owner: Owner) -> OwnerIdentity:
        return cls(
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug,
        )


def _owner_or_none(owner: Owner | None) -> OwnerIdentity | None:
    return None if owner is None else OwnerIdentity.of(owner)


class ArtifactOffer(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a manifest: in place with `path`, else a copy that `checksum` names."""

    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    path: types.Path | None = None
    checksum: types.Checksum | None = None
    size: types.Size | None = None

    def record(self) -> Offer:
        """Raises: Invalid."""
        key = ArtifactKey(self.slug, self.suffix, self.filename)
        return Offer(key, self.path, self.checksum, self.size)

    @classmethod
    def of(cls, offer: Offer) -> ArtifactOffer:
        key = offer.key
        return cls(key.slug, key.suffix, key.filename, offer.path, offer.checksum, offer.size)


class RegisterRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A manifest. `lease_ttl_s` left out is 60; null is no lease."""

    owner: OwnerIdentity
    artifacts: list[ArtifactOffer]
    lease_ttl_s: types.Seconds | None = LEASE_DEFAULT_S
    worker_name: types.Name | None = None

    @property
    def lease_ttl_ms(self) -> int | None:
        return None if self.lease_ttl_s is None else _milliseconds(self.lease_ttl_s)


class DrainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An announced detach. `deadline_s` is how long it may take, 1 s to 7 days."""

    deadline_s: types.Seconds = DRAIN_DEFAULT_S

    @property
    def deadline_ms(self) -> int:
        return _milliseconds(self.deadline_s)


_drain_decoder = msgspec.json.Decoder(DrainRequest)
_register_decoder = msgspec.json.Decoder(RegisterRequest)


def decode_register(body: bytes) -> RegisterRequest:
    """The manifest in a request body.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_register_decoder, body)


def decode_drain(body: bytes) -> DrainRequest:
    """The announcement in a request body. An empty body leaves everything at its default.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_drain_decoder, body) if body else DrainRequest()


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Invalid(f"The request body is not what this call takes: {error}.") from error


# What the service answers


class LeaseResponse(msgspec.Struct):
    ttl_s: types.Seconds
    expires_at: types.Time

    @classmethod
    def of(cls, lease: Lease | None) -> LeaseResponse | None:
        return None if lease is None else cls(seconds(lease.ttl_ms), format_time(lease.expires_at))

    def record(self) -> Lease:
        return Lease(round(self.ttl_s * 1000), parse_time(self.expires_at))


class KeyResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename

    @classmethod
    def of(cls, key: ArtifactKey) -> KeyResponse:
        return cls(key.slug, key.suffix, key.filename)

    def record(self) -> ArtifactKey:
        return ArtifactKey(self.slug, self.suffix, self.filename)


class RegisteredArtifactResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    checksum: types.Checksum
    size: types.Size
    url: str
    outcome: Outcome

    @classmethod
    def of(cls, artifact: RegisteredArtifact) -> RegisteredArtifactResponse:
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


class RegisteredResponse(msgspec.Struct):
    owner: OwnerIdentity
    lease: LeaseResponse | None
    artifacts: list[RegisteredArtifactResponse]

    @classmethod
    def of(cls, registered: Registered) -> RegisteredResponse:
        return cls(
            OwnerIdentity.of(registered.owner),
            LeaseResponse.of(registered.lease),
            [RegisteredArtifactResponse.of(artifact) for artifact in registered.artifacts],
        )

    def record(self) -> Registered:
        return Registered(
            self.owner.record(),
            None if self.lease is None else self.lease.record(),
            tuple(artifact.record() for artifact in self.artifacts),
        )


class RenewedResponse(msgspec.Struct):
    """A renewed lease. `refs` counts what the owner holds, for the worker to compare, and
    `unserveable` what of it had not the right bytes at the last look."""

    owner: OwnerIdentity
    lease: LeaseResponse | None
    refs: types.Count
    unserveable: types.Count = 0

    @classmethod
    def of(cls, renewed: Renewed) -> RenewedResponse:
        return cls(
            OwnerIdentity.of(renewed.owner),
            LeaseResponse.of(renewed.lease),
            renewed.refs,
            renewed.unserveable,
        )

    def record(self) -> Renewed:
        lease = None if self.lease is None else self.lease.record()
        return Renewed(self.owner.record(), lease, self.refs, self.unserveable)


class DrainedResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    drain_deadline_at: types.Time

    @classmethod
    def of(cls, drained: Drained) -> DrainedResponse:
        return cls(
            OwnerIdentity.of(drained.owner), OwnerState.DRAINING, format_time(drained.deadline_at)
        )

    def record(self) -> Drained:
        return Drained(self.owner.record(), parse_time(self.drain_deadline_at))


class BlobResponse(msgspec.Struct):
    """Content that is now here."""

    checksum: types.Checksum
    size: types.Size


class KeptResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    holders: types.Count

    @classmethod
    def of(cls, kept: Kept) -> KeptResponse:
        return cls(kept.key.slug, kept.key.suffix, kept.key.filename, kept.holders)

    def record(self) -> Kept:
        return Kept(ArtifactKey(self.slug, self.suffix, self.filename), self.holders)


class ReceiptResponse(msgspec.Struct):
    owner: OwnerIdentity | None
    released: types.Count
    removed: list[KeyResponse]
    kept: list[KeptResponse]

    @classmethod
    def of(cls, receipt: Receipt) -> ReceiptResponse:
        return cls(
            _owner_or_none(receipt.owner),
            receipt.released,
            [KeyResponse.of(key) for key in receipt.removed],
            [KeptResponse.of(kept) for kept in receipt.kept],
        )

    def record(self) -> Receipt:
        return Receipt(
            None if self.owner is None else self.owner.record(),
            self.released,
            tuple(key.record() for key in self.removed),
            tuple(kept.record() for kept in self.kept),
        )


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


class ConflictHolderResponse(msgspec.Struct):
    """The owner who holds a key, with its state and lease end: can it be waited for?"""

    namespace: types.Name
    component: types.Name
    endpoint: types.Name
    instance_id: types.InstanceId
    lora_slug: types.Slug | None
    state: OwnerState
    lease_expires_at: types.Time | None
    source: Source
    since: types.Time

    @classmethod
    def of(cls, holder: Holder) -> ConflictHolderResponse:
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


class ConflictResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    registered: types.Checksum
    offered: types.Checksum
    holders: list[ConflictHolderResponse]

    @classmethod
    def of(cls, conflict: ConflictingKey) -> ConflictResponse:
        return cls(
            conflict.key.slug,
            conflict.key.suffix,
            conflict.key.filename,
            conflict.registered,
            conflict.offered,
            [ConflictHolderResponse.of(holder) for holder in conflict.holders],
        )

    def record(self) -> ConflictingKey:
        return ConflictingKey(
            ArtifactKey(self.slug, self.suffix, self.filename),
            self.registered,
            self.offered,
            tuple(holder.record() for holder in self.holders),
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
            _parse_time_or_none(self.drain_deadline_at),
            _parse_time_or_none(self.ended_at),
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


def owner_answer(record: OwnerRecord, entries: Sequence[HeldEntry | Entry]) -> OwnerResponse:
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
        "drain_deadline_at": _time_or_none(record.drain_deadline_at),
        "ended_at": _time_or_none(record.ended_at),
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

    @classmethod
    def of(cls, event: Event) -> EventResponse:
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
    `serveable` when every entry has a holder whose bytes were right at the last look."""

    slug: types.Slug
    suffix: types.Suffix
    files: types.Count
    bytes: types.Size
    holders: types.Count
    serveable: bool

    @classmethod
    def of(cls, model: Model) -> ModelResponse:
        return cls(
            model.slug, model.suffix, model.files, model.bytes, model.holders, model.serveable
        )

    def record(self) -> Model:
        return Model(self.slug, self.suffix, self.files, self.bytes, self.holders, self.serveable)


class ModelsResponse(msgspec.Struct):
    """A page of models. It may hold fewer than `limit` and not be the last: as long as `next` is
    not null, it goes into `after` for the page behind it."""

    models: list[ModelResponse]
    next: str | None


class ExplainResponse(msgspec.Struct):
    entry: EntryResponse
    holders: list[HolderResponse]
    events: list[EventResponse]

    @classmethod
    def of(cls, entry: Entry, explanation: Explanation) -> ExplainResponse:
        return cls(
            EntryResponse.of(entry),
            [HolderResponse.of(holder) for holder in explanation.holders],
            [EventResponse.of(event) for event in explanation.events],
        )

    def record(self) -> Explanation:
        return Explanation(
            self.entry.record(),
            tuple(holder.record() for holder in self.holders),
            tuple(event.record() for event in self.events),
        )


class FindingResponse(msgspec.Struct):
    """One leak or fault."""

    kind: str = msgspec.field(name="class")
    severity: Severity
    owner: str | None
    entry: str | None
    since: str | None
    detail: str

    @classmethod
    def of(cls, finding: Finding) -> FindingResponse:
        return cls(
            finding.kind,
            finding.severity,
            finding.owner,
            finding.entry,
            finding.since,
            finding.detail,
        )


class FootprintResponse(msgspec.Struct):
    owner: str
    refs: int
    bytes: int


class AuditSummaryResponse(msgspec.Struct):
    last_sweep_at: str | None
    overdue_owners: int
    oldest_drain_at: str | None
    brake_engaged_at: str | None
    largest_owners: list[FootprintResponse]
    entries_by_holders: dict[int, int]
    journal_rows: int
    wal_bytes: int

    @classmethod
    def of(cls, summary: AuditSummary) -> AuditSummaryResponse:
        return cls(
            _time_or_none(summary.last_sweep_at),
            summary.overdue_owners,
            _time_or_none(summary.oldest_drain_at),
            _time_or_none(summary.brake_engaged_at),
            [
                FootprintResponse(each.owner, each.refs, each.bytes)
                for each in summary.largest_owners
            ],
            summary.entries_by_holders,
            summary.journal_rows,
            summary.wal_bytes,
        )


class AuditResponse(msgspec.Struct):
    """Findings, the worst first and at most 1000 of them. `counts` counts all by class."""

    worst: Severity | None
    counts: dict[str, int]
    findings: list[FindingResponse]
    summary: AuditSummaryResponse | None

    @classmethod
    def of(cls, report: AuditReport) -> AuditResponse:
        return cls(
            report.worst,
            report.counts,
            [FindingResponse.of(finding) for finding in report.findings],
            None if report.summary is None else AuditSummaryResponse.of(report.summary),
        )


class SweptResponse(msgspec.Struct):
    """What a sweep did, or would do. `paused` says why owners that lapsed were left alone."""

    ended: list[EndedResponse]
    released: int
    waiting: int
    paused: str | None
    removed: RemovedResponse | None


class RemovedResponse(msgspec.Struct):
    """What a sweep removed besides the refs of owners that it ended; None where it only looked."""

    entries: int = 0
    copies: int = 0
    tombstones: int = 0
    events: int = 0


class EndedResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    reason: str


class LiveResponse(msgspec.Struct):
    status: str
    version: str


class HealthResponse(msgspec.Struct):
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
    conflicts: list[ConflictResponse] | None = None
    missing: list[str] | None = None
    retry_after_s: int | None = None
    max_bytes: int | None = None
    events: list[EventResponse] | None = None


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
        answer.conflicts = [ConflictResponse.of(conflict) for conflict in error.conflicts]
    elif isinstance(error, errors.ContentMissing):
        answer.missing = list(error.missing)
    elif isinstance(error, errors.Busy):
        answer.retry_after_s = error.retry_after_s
    elif isinstance(error, errors.TooLarge):
        answer.max_bytes = error.max_bytes
    if events is not None:
        answer.events = [EventResponse.of(event) for event in events]
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
    if issubclass(cls, errors.TooLarge):
        return cls(answer.detail, max_bytes=answer.max_bytes)
    return cls(answer.detail)
