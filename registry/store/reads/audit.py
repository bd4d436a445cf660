"""What is wrong, and what is merely worth knowing: the findings of the `leaks` view and beyond.

The view holds every class that SQL can state. Another look is taken here at the files that owners
hold in place (`check_files`); verify.py looks at the database itself. Nothing here changes
anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import bindparam, column, func, select, table

from registry.core import hashing
from registry.core.findings import AuditReport, AuditSummary, Finding, Footprint, Severity
from registry.core.text import shown
from registry.core.times import format_time
from registry.errors import Busy, FileUnreadable, Invalid, TooLarge
from registry.store.engine import Connection, Engine
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.owner_columns import OWNER_COLUMNS, owner_of
from registry.store.sql import Statement
from registry.store.tables import entries, events, owner_refs, owners

T = TypeVar("T")

FINDINGS_MAX = 1000
TOP_OWNERS = 10
PAGE_ROWS = 1000

CLASSES: dict[str, Severity] = {
    "orphan_entry": Severity.LEAK,
    "ref_of_ended_owner": Severity.LEAK,
    "dangling_ref": Severity.CORRUPTION,
    "lapsed_lease": Severity.LEAK,
    "superseded_incarnation": Severity.LEAK,
    "stuck_drain": Severity.LEAK,
    "orphan_blob": Severity.LEAK,
    "immortal_owner": Severity.NOTE,
    "ghost_owner": Severity.NOTE,
    "unserveable_entry": Severity.FAULT,
    "drifted_ref": Severity.FAULT,
    "missing_file": Severity.FAULT,
    "root_missing": Severity.FAULT,
    "missing_blob": Severity.CORRUPTION,
    "path_outside_roots": Severity.FAULT,
    "unverified_ref": Severity.NOTE,
    "journal_says_gone": Severity.CORRUPTION,
    "journal_says_held": Severity.CORRUPTION,
    "unresolved_conflict": Severity.FAULT,
    "integrity": Severity.CORRUPTION,
}
"""Every class of finding, with how bad it is."""

NOT_IN_THE_VIEW = frozenset({"path_outside_roots", "journal_says_held", "integrity"})
"""Classes that the `leaks` view cannot know: they take a look at paths, at the whole journal, or
at the file."""


class _FindingRow(NamedTuple):
    kind: str
    severity: str
    owner: str | None
    entry: str | None
    since: str | None
    detail: str


_leaks = table("leaks", *map(column, ("class", "severity", "owner", "entry", "since", "detail")))
_FINDINGS = Statement(select(_leaks.c["class"].label("kind"), *list(_leaks.c)[1:]), _FindingRow)


def audit(conn: Connection, classes: Iterable[str] = ()) -> AuditReport:
    """The findings of the `leaks` view, at most 1000 listed and all counted, with a summary.

    Raises:
        Invalid: there is no such class.
    """
    return report_of(find_leaks(conn, classes), summarize(conn))


def find_leaks(conn: Connection, classes: Iterable[str] = ()) -> list[Finding]:
    """The findings of the `leaks` view, of the classes given or of all.

    Raises:
        Invalid: there is no such class.
    """
    wanted = check_classes(classes)
    rows = [row._asdict() for row in conn.run(_FINDINGS)]
    found = [
        Finding(
            **row | {"severity": Severity(row["severity"]), "detail": row["detail"] or _WRONG_COPY}
        )
        for row in rows
    ]
    return [each for each in found if not wanted or each.kind in wanted]


_WRONG_COPY = (
    "its copy in the database holds other bytes than were registered: upload it again, or restore "
    "a backup"
)


def check_classes(classes: Iterable[str]) -> set[str]:
    """The classes, if there are such.

    Raises:
        Invalid: there is no such class.
    """
    wanted = set(classes)
    for name in sorted(wanted - CLASSES.keys()):
        raise Invalid(f"There is no class {shown(name)}; there are {', '.join(CLASSES)}.")
    return wanted


def report_of(findings: Iterable[Finding], summary: AuditSummary | None) -> AuditReport:
    """Findings as a report: the worst first, at most 1000 of them, all counted by class."""
    listed: list[Finding] = sorted(findings, key=lambda each: (-each.severity.rank, each.kind))
    counts: dict[str, int] = {}
    for each in listed:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    return AuditReport(tuple(listed[:FINDINGS_MAX]), counts, summary)


# The summary

_OVERDUE = Statement(
    select(func.count())
    .select_from(owners)
    .where(
        owners.c.state == "active",
        owners.c.lease_expires_at + bindparam("grace") < bindparam("now"),
    )
)
_OLDEST_DRAIN = Statement(
    select(func.min(owners.c.drain_deadline_at)).where(owners.c.state == "draining")
)
_HOLDERS_PER_ENTRY = """
    SELECT holders, COUNT(*) FROM (
        SELECT COUNT(*) AS holders FROM owner_refs GROUP BY entry_id
    ) AS counted GROUP BY holders ORDER BY holders LIMIT 20
"""
_TOP_OWNERS = f"""
    SELECT o.namespace || '/' || o.component || '/' || o.endpoint || '/' || o.instance_id || '/'
        || CASE o.lora_slug WHEN '' THEN '_base' ELSE o.lora_slug END, top.refs, top.bytes
    FROM (
        SELECT r.owner_id, COUNT(*) AS refs, SUM(e.size) AS bytes
        FROM owner_refs r JOIN entries e ON e.id = r.entry_id
        GROUP BY r.owner_id ORDER BY bytes DESC, r.owner_id LIMIT {TOP_OWNERS}
    ) AS top JOIN owners o ON o.id = top.owner_id ORDER BY top.bytes DESC, top.owner_id
"""
_JOURNAL_ROWS = Statement(select(func.count()).select_from(events))


def summarize(conn: Connection) -> AuditSummary:
    """How the registry is, beside what is wrong."""
    variables = read_variables(conn)
    last_sweep_at = variables.get("last_sweep_at")
    engaged_at = variables.get("brake_engaged_at")
    ((overdue,),) = conn.run(_OVERDUE, now=conn.now, grace=policy_of(variables).lease_grace_ms)
    ((oldest_drain_at,),) = conn.run(_OLDEST_DRAIN)
    ((journal_rows,),) = conn.run(_JOURNAL_ROWS)
    return AuditSummary(
        last_sweep_at=None if last_sweep_at is None else int(last_sweep_at),
        overdue_owners=overdue,
        oldest_drain_at=oldest_drain_at,
        brake_engaged_at=None if engaged_at is None else int(engaged_at),
        largest_owners=tuple(Footprint(*row) for row in conn.run_text(_TOP_OWNERS)),
        entries_by_holders=dict(conn.run_text(_HOLDERS_PER_ENTRY)),
        journal_rows=journal_rows,
        wal_bytes=conn.log_bytes(),
    )


# Files in place


class _InPlaceRow(NamedTuple):
    owner_id: int
    entry_id: int
    path: str
    file_identity: str | None
    verified_at: int
    checksum: str
    size: int
    slug: str
    suffix: str
    filename: str
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str


_IN_PLACE = Statement(
    select(
        owner_refs.c.owner_id,
        owner_refs.c.entry_id,
        owner_refs.c.path,
        owner_refs.c.file_identity,
        owner_refs.c.verified_at,
        entries.c.checksum,
        entries.c.size,
        entries.c.slug,
        entries.c.suffix,
        entries.c.filename,
        *OWNER_COLUMNS,
    )
    .select_from(
        owner_refs.join(entries, entries.c.id == owner_refs.c.entry_id).join(
            owners, owners.c.id == owner_refs.c.owner_id
        )
    )
    .where(
        owner_refs.c.path.is_not(None),
        (owner_refs.c.owner_id > bindparam("owner_id"))
        | (
            (owner_refs.c.owner_id == bindparam("owner_id"))
            & (owner_refs.c.entry_id > bindparam("entry_id"))
        ),
    )
    .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
    .limit(bindparam("row_limit")),
    _InPlaceRow,
)


_STILL = Statement(
    select(owner_refs.c.owner_id)
    .join(entries, entries.c.id == owner_refs.c.entry_id)
    .where(
        owner_refs.c.owner_id == bindparam("owner_id"),
        owner_refs.c.entry_id == bindparam("entry_id"),
        owner_refs.c.path == bindparam("path"),
        entries.c.checksum == bindparam("checksum"),
    )
)


class Roots(Protocol):
    """The artifact roots: which resolved paths lie below them."""

    def allow(self, resolved_path: str, /) -> bool: ...


class Run(Protocol):
    """Makes a call that looks at the file at a path; raises Busy if it takes too long."""

    def __call__(self, path: str, work: Callable[..., T], /, *arguments: Any) -> T: ...


def _run(path: str, work: Callable[..., T], /, *arguments: Any) -> T:
    return work(*arguments)


def check_files(database: Engine, roots: Roots | None, run: Run = _run) -> Iterator[Finding]:
    """Look at every file that is held in place: is it there, unchanged, and below a root?

    Without roots every path is taken as allowed. Reads each file whose identity is not the one
    that was registered. No transaction is open meanwhile: what was registered anew or released
    since is not reported.

    Raises:
        Busy: at the end, when files could not be looked at, for reasons that are not theirs.
    """
    owner_id = entry_id = 0
    unchecked: list[Busy] = []
    while rows := _in_place(database, owner_id, entry_id):
        for row in rows:
            owner_id, entry_id = row.owner_id, row.entry_id
            try:
                finding = _look(row, roots, run)
            except Busy as error:
                unchecked.append(error)
                continue
            if finding is not None and _is_still_held(database, row):
                yield finding
    if unchecked:
        raise Busy(f"{len(unchecked)} files were not checked. The first: {unchecked[0].detail}")


def _in_place(database: Engine, owner_id: int, entry_id: int) -> list[_InPlaceRow]:
    with database.read() as conn:
        return conn.run(_IN_PLACE, owner_id=owner_id, entry_id=entry_id, row_limit=PAGE_ROWS)


def _is_still_held(database: Engine, row: _InPlaceRow) -> bool:
    with database.read() as conn:
        return bool(
            conn.run(
                _STILL,
                owner_id=row.owner_id,
                entry_id=row.entry_id,
                path=row.path,
                checksum=row.checksum,
            )
        )


def _look(row: _InPlaceRow, roots: Roots | None, run: Run) -> Finding | None:
    wrong = run(row.path, _wrong_with, row, roots)
    if wrong is None:
        return None
    kind, detail = wrong
    at = None if kind == "path_outside_roots" else row.verified_at
    return _of_row(row, kind, detail, at)


def _wrong_with(row: _InPlaceRow, roots: Roots | None) -> tuple[str, str] | None:
    path = os.path.realpath(row.path)
    if roots is not None and not roots.allow(path):
        return "path_outside_roots", f"{path} is below no artifact root"
    now = hashing.find_identity(path)
    if now is None:
        return "missing_file", f"{path} is gone or no regular file"
    if now == row.file_identity:
        return None
    try:
        found = hashing.hash_file(path, max_bytes=row.size)
    except FileUnreadable as error:
        return "missing_file", error.detail
    except TooLarge:
        return "drifted_ref", f"{path} holds other bytes than were registered"
    if found.checksum != row.checksum:
        return "drifted_ref", f"{path} holds other bytes than were registered"
    return None


def _of_row(row: _InPlaceRow, kind: str, detail: str, at: int | None = None) -> Finding:
    since = None if at is None else format_time(at)
    entry = f"{row.slug}/{row.suffix}/{row.filename}"
    return Finding(kind, CLASSES[kind], str(owner_of(row)), entry, since, detail)
