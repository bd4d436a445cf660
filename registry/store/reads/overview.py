"""The registry at a glance: counts, findings by class, the next leases to lapse, the last day.

All of it takes time in proportion to what there is, so whoever shows it does not wait for it
(`server/pages/figures.py`). What is handed back is bounded, however much there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, case, func, literal_column, select

from registry.core.findings import Finding, Severity
from registry.core.records import Owner
from registry.store.engine import Connection
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.owner_columns import OWNER_COLUMNS, REF_COUNT, owner_of
from registry.store.reads.audit import LEAKS, WRONG_COPY
from registry.store.reads.stats import count_owners, count_rows
from registry.store.sql import Statement, one_of
from registry.store.tables import events, owners

FINDINGS_EACH = 50
"""As many findings of a class are listed; all are counted."""
LAPSING_LISTED = 10
HOUR_MS = 3_600_000
HOURS = 24
EVENTS_ADDED_UP = 50_000
"""As many events, the newest, are added up to say how many refs were held."""


@dataclass(frozen=True, slots=True)
class FoundClass:
    """The findings of one class, the oldest first and at most 50 of them listed."""

    kind: str
    severity: Severity
    count: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class LapsingOwner:
    """An owner with a lease, and what it holds. The lease may have lapsed."""

    owner: Owner
    worker_name: str | None
    lease_expires_at: int
    refs: int


@dataclass(frozen=True, slots=True)
class JournalHour:
    """One hour of the journal. `refs` were held at its end; None: the journal has too many events
    since to be added up. The last hour has not ended."""

    start: int
    changes: int
    refs: int | None


@dataclass(frozen=True, slots=True)
class RegistryFigures:
    """The registry at one moment, `at`. Owners are counted by state, `suspect` among them."""

    at: int
    entries: int
    refs: int
    blobs: int
    blob_bytes: int
    owners: Mapping[str, int]
    found: tuple[FoundClass, ...]
    lapsing: tuple[LapsingOwner, ...]
    hours: tuple[JournalHour, ...]
    lease_grace_ms: int
    last_sweep_at: int | None
    brake_engaged_at: int | None
    last_backup_at: int | None


class _FoundRow(NamedTuple):
    kind: str
    severity: str
    owner: str | None
    entry: str | None
    since: str | None
    detail: str | None
    total: int


class _LapsingRow(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    worker_name: str | None
    lease_expires_at: int
    refs: int


class _HourRow(NamedTuple):
    hour: int
    added: int
    dropped: int


class _Moment(NamedTuple):
    id: int
    at: int


_by_class = LEAKS.c["class"]
_numbered = select(
    _by_class.label("kind"),
    *list(LEAKS.c)[1:],
    func.count().over(partition_by=_by_class).label("total"),
    func.row_number().over(partition_by=_by_class, order_by=LEAKS.c.since).label("place"),
).subquery()
_FOUND = Statement(
    select(*[_numbered.c[name] for name in _FoundRow._fields])
    .where(_numbered.c.place <= bindparam("row_limit"))
    .order_by(_numbered.c.kind, _numbered.c.place),
    _FoundRow,
)
_LAPSING = Statement(
    select(*OWNER_COLUMNS, owners.c.worker_name, owners.c.lease_expires_at, REF_COUNT)
    .where(one_of(owners.c.state, "active", "draining"), owners.c.lease_expires_at.is_not(None))
    .order_by(owners.c.lease_expires_at, owners.c.id)
    .limit(bindparam("row_limit")),
    _LapsingRow,
)
_FIRST_MOMENT = Statement(
    select(events.c.id, events.c.at)
    .where(events.c.id >= bindparam("from_id"))
    .order_by(events.c.id)
    .limit(1),
    _Moment,
)
_LAST_MOMENT = Statement(
    select(events.c.id, events.c.at).order_by(events.c.id.desc()).limit(1), _Moment
)
_hour = ((events.c.at - bindparam("start")) // literal_column(str(HOUR_MS))).label("hour")
# A registration of what was held already says why it is told: it moved, or was refused before.
_is_new = (events.c.kind == "registered") & func.coalesce(events.c.reason, "").not_in(
    [literal_column("'moved'"), literal_column("'again'")]
)
_held = (
    select(
        _hour,
        case((_is_new, 1), else_=0).label("added"),
        case((events.c.kind == "released", 1), else_=0).label("dropped"),
    )
    .where(events.c.id > bindparam("after"), events.c.at >= bindparam("start"))
    .subquery()
)
_HELD_BY_HOUR = Statement(
    select(
        _held.c.hour,
        func.count().filter(_held.c.added == literal_column("1")).label("added"),
        func.count().filter(_held.c.dropped == literal_column("1")).label("dropped"),
    ).group_by(_held.c.hour),
    _HourRow,
)


def figures_of(conn: Connection) -> RegistryFigures:
    """Count and look at everything."""
    variables = read_variables(conn)

    def time(name: str) -> int | None:
        return int(variables[name]) if name in variables else None

    counted = count_rows(conn)
    return RegistryFigures(
        at=conn.now,
        entries=counted.entries,
        refs=counted.refs,
        blobs=counted.blobs,
        blob_bytes=counted.blob_bytes,
        owners=count_owners(conn),
        found=_found(conn),
        lapsing=_lapsing(conn),
        hours=_hours(conn, counted.refs),
        lease_grace_ms=policy_of(variables).lease_grace_ms,
        last_sweep_at=time("last_sweep_at"),
        brake_engaged_at=time("brake_engaged_at"),
        last_backup_at=time("last_backup_at"),
    )


def _found(conn: Connection) -> tuple[FoundClass, ...]:
    """The findings of the `leaks` view, the worst class first."""
    rows: dict[str, list[_FoundRow]] = {}
    for row in conn.run(_FOUND, row_limit=FINDINGS_EACH):
        rows.setdefault(row.kind, []).append(row)
    found = [
        FoundClass(
            kind,
            Severity(each[0].severity),
            each[0].total,
            tuple(_finding(row) for row in each),
        )
        for kind, each in rows.items()
    ]
    return tuple(sorted(found, key=lambda each: (-each.severity.rank, each.kind)))


def _finding(row: _FoundRow) -> Finding:
    severity, detail = Severity(row.severity), row.detail or WRONG_COPY
    return Finding(row.kind, severity, row.owner, row.entry, row.since, detail)


def _lapsing(conn: Connection) -> tuple[LapsingOwner, ...]:
    return tuple(
        LapsingOwner(owner_of(row), row.worker_name, row.lease_expires_at, row.refs)
        for row in conn.run(_LAPSING, row_limit=LAPSING_LISTED)
    )


# The last day


def first_event_at(conn: Connection, at: int) -> int:
    """The id of the first event that is not before a time; one more than the last if there is
    none."""
    last = conn.run(_LAST_MOMENT)
    return _first_id_at(conn, at, 1, last[0].id + 1) if last else 1


def _hours(conn: Connection, refs: int) -> tuple[JournalHour, ...]:
    """The last hours, the oldest first. Events are told apart by their ids, which grow with time
    and have no gaps, so that the changes of an hour are found by looking at a few events."""
    last = conn.run(_LAST_MOMENT)
    if not last:
        return ()
    begins = conn.now // HOUR_MS * HOUR_MS
    starts = [begins - HOUR_MS * number for number in reversed(range(HOURS))]
    ids = [_first_id_at(conn, starts[0], 1, last[0].id + 1)]
    for start in starts[1:]:
        ids.append(_first_id_at(conn, start, ids[-1], last[0].id + 1))
    ids.append(last[0].id + 1)
    added_up_from = max(0, last[0].id - EVENTS_ADDED_UP)
    rows = conn.run(_HELD_BY_HOUR, after=added_up_from, start=starts[0])
    grown = {row.hour: row.added - row.dropped for row in rows}
    hours: list[JournalHour] = []
    for number in reversed(range(HOURS)):
        # What came before the events that are added up is not known.
        is_known = number == HOURS - 1 or ids[number + 1] > added_up_from
        changes = ids[number + 1] - ids[number]
        hours.append(JournalHour(starts[number], changes, refs if is_known else None))
        refs -= grown.get(number, 0)
    return tuple(reversed(hours))


def _first_id_at(conn: Connection, at: int, low: int, high: int) -> int:
    """The first id from `low` on of an event that is not before a time; `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        rows = conn.run(_FIRST_MOMENT, from_id=middle)
        if rows and rows[0].at < at:
            low = rows[0].id + 1
        else:
            high = middle
    return low
