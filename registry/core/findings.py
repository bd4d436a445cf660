"""What the audit finds, and what `explain` tells."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from registry.core.events import Event
from registry.core.listings import Entry, OtherRevision
from registry.core.records import Holder


class Severity(StrEnum):
    """How bad a finding is. A healthy registry has nothing above a note."""

    NOTE = "note"
    LEAK = "leak"
    FAULT = "fault"
    OUTAGE = "outage"
    CORRUPTION = "corruption"

    @property
    def rank(self) -> int:
        """Its place in the order of the members: 0 for a note."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One leak or fault. `detail` says what is wrong and what is safe to do."""

    kind: str
    severity: Severity
    owner: str | None
    entry: str | None
    since: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an owner holds."""

    owner: str
    refs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """How the registry is, beside what is wrong. Times are None where there is nothing to say."""

    last_sweep_at: int | None
    overdue_owners: int
    oldest_drain_at: int | None
    brake_engaged_at: int | None
    largest_owners: tuple[Footprint, ...]
    entries_by_holders: dict[int, int]
    journal_rows: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Findings, the worst first and at most 1000 of them; `counts` counts all by class."""

    findings: tuple[Finding, ...]
    counts: dict[str, int]
    summary: AuditSummary | None

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, or None: there is none."""
        return self.findings[0].severity if self.findings else None


@dataclass(frozen=True, slots=True)
class DiscoveryReport:
    """What a comparison with discovery found, which has looked at it twice.

    `looked_at` is the time of the last look in milliseconds. `unreadable` cards have no findings.
    """

    looked_at: int
    cards: int
    unreadable: int
    audit: AuditReport


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the registry answers for a key as it does. `entry` is None when nobody holds it.

    `revisions` are the others of the same model, at most 20.
    """

    entry: Entry | None
    holders: tuple[Holder, ...]
    events: tuple[Event, ...]
    revisions: tuple[OtherRevision, ...] = ()
