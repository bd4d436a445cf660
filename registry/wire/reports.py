"""What audits, sweeps and health checks answer."""

from __future__ import annotations

import msgspec

from registry.core.findings import (
    AuditReport,
    AuditSummary,
    DiscoveryReport,
    Finding,
    Severity,
)
from registry.core.records import OwnerState
from registry.core.sweeping import Swept
from registry.core.times import format_time, time_or_none
from registry.wire.listings import RemovedResponse
from registry.wire.requests import OwnerIdentity


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
            time_or_none(summary.last_sweep_at),
            summary.overdue_owners,
            time_or_none(summary.oldest_drain_at),
            time_or_none(summary.brake_engaged_at),
            [
                FootprintResponse(each.owner, each.refs, each.bytes)
                for each in summary.largest_owners
            ],
            summary.entries_by_holders,
            summary.journal_rows,
            summary.wal_bytes,
        )


class DiscoveryComparisonResponse(msgspec.Struct):
    """The comparison with discovery: when it last looked, how many seconds ago that is, how many
    cards were live, and how many of these cannot be read."""

    looked_at: str
    age_s: float
    cards: int
    unreadable: int

    @classmethod
    def of(cls, report: DiscoveryReport, now: int) -> DiscoveryComparisonResponse:
        age_s = max(0, now - report.looked_at) / 1000
        return cls(format_time(report.looked_at), age_s, report.cards, report.unreadable)


class AuditResponse(msgspec.Struct):
    """Findings, the worst first and at most 1000 of them. `counts` counts all by class. `discovery`
    is there if the comparison with discovery was asked for."""

    worst: Severity | None
    counts: dict[str, int]
    findings: list[FindingResponse]
    summary: AuditSummaryResponse | None
    discovery: DiscoveryComparisonResponse | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(
        cls, report: AuditReport, discovery: DiscoveryComparisonResponse | None = None
    ) -> AuditResponse:
        return cls(
            report.worst,
            report.counts,
            [FindingResponse.of(finding) for finding in report.findings],
            None if report.summary is None else AuditSummaryResponse.of(report.summary),
            msgspec.UNSET if discovery is None else discovery,
        )


class SweptResponse(msgspec.Struct):
    """What a sweep did, or would do. `paused` says why owners that lapsed were left alone.

    `owners` counts those that were ended, of which `ended` names 1000 where a service answers.
    `removed` is null where nothing was done.
    """

    ended: list[EndedResponse]
    released: int
    waiting: int
    paused: str | None
    removed: RemovedResponse | None
    owners: int = 0

    @classmethod
    def of(
        cls, swept: Swept, removed: RemovedResponse | None, *, at_most: int | None = None
    ) -> SweptResponse:
        ended = [
            EndedResponse(OwnerIdentity.of(each.owner), each.state, each.reason)
            for each in swept.ended[:at_most]
        ]
        counts = (swept.released, swept.waiting)
        return cls(ended, *counts, swept.paused, removed, len(swept.ended))


class EndedResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    reason: str


class ServiceResponse(msgspec.Struct):
    """What answers here, and where its calls are described: to be read, and for programs."""

    name: str
    version: str
    docs: str
    openapi: str


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


SqlValue = bool | int | float | str | None


class SqlResponse(msgspec.Struct):
    """What a statement answered. Bytes are hex digits, and `whole` is false if there are more rows
    than were wanted."""

    columns: list[str]
    rows: list[list[SqlValue]]
    whole: bool
