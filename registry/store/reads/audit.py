"""What is wrong, and what is merely worth knowing: the findings of the `leaks` view and beyond.

The view holds every class that SQL can state. verify.py looks at the database itself, and
`content/file_audit.py` at the files that owners hold in place. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import bindparam, column, func, select, table

from registry.core.findings import AuditReport, AuditSummary, Finding, Footprint, Severity
from registry.core.text import shown
from registry.errors import Invalid
from registry.store.engine import Connection
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.sql import Statement
from registry.store.tables import events, owners

FINDINGS_MAX = 1000
TOP_OWNERS = 10

OF_DISCOVERY: dict[str, Severity] = {
    "advertised_not_served": Severity.OUTAGE,
    "served_not_advertised": Severity.LEAK,
    "not_adopted": Severity.NOTE,
    "incompatible_cards": Severity.FAULT,
}
"""Classes that a comparison with discovery finds (`service/discovery_audit.py`)."""

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
    **OF_DISCOVERY,
}
"""Every class of finding, with how bad it is."""

NOT_IN_THE_VIEW = frozenset({"path_outside_roots", "journal_says_held", "integrity", *OF_DISCOVERY})
"""Classes that the `leaks` view cannot know: they take a look at paths, at the whole journal, at
the file, or at discovery."""


class _FindingRow(NamedTuple):
    kind: str
    severity: str
    owner: str | None
    entry: str | None
    since: str | None
    detail: str


LEAKS = table("leaks", *map(column, ("class", "severity", "owner", "entry", "since", "detail")))
_FINDINGS = Statement(select(LEAKS.c["class"].label("kind"), *list(LEAKS.c)[1:]), _FindingRow)


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
            **row | {"severity": Severity(row["severity"]), "detail": row["detail"] or WRONG_COPY}
        )
        for row in rows
    ]
    return [each for each in found if not wanted or each.kind in wanted]


WRONG_COPY = (
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


def joined(report: AuditReport, other: AuditReport, classes: Iterable[str] = ()) -> AuditReport:
    """A report with the findings of another one, of the classes given or of all."""
    wanted = set(classes)
    added = [each for each in other.findings if not wanted or each.kind in wanted]
    counts = {name: n for name, n in other.counts.items() if not wanted or name in wanted}
    listed = report_of([*report.findings, *added], report.summary)
    return AuditReport(listed.findings, report.counts | counts, report.summary)


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
        SELECT r.owner_id, COUNT(*) AS refs, CAST(SUM(e.size) AS BIGINT) AS bytes
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
