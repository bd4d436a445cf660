"""What an audit and a sweep say, as they are printed: of a database as of a service."""

from __future__ import annotations

import msgspec
import typer

from registry.cli.exit_codes import REFUSED
from registry.cli.output import print_json
from registry.cli.tables import Column, print_facts, print_table
from registry.cli.text import counted, shown_size
from registry.core.findings import Severity
from registry.wire.listings import RemovedResponse
from registry.wire.reports import (
    AuditResponse,
    AuditSummaryResponse,
    DiscoveryComparisonResponse,
    SweptResponse,
)


def print_report(report: AuditResponse, as_json: bool, *, wide: bool = False) -> None:
    """Print an audit. Ends the command with exit code 1 if a finding is above a note."""
    if as_json:
        print_json(report)
    else:
        _print_findings(report, wide)
        if not isinstance(report.discovery, msgspec.UnsetType):
            print(f"\n{_compared_with(report.discovery)}")
        if report.summary is not None:
            print()
            _print_summary(report.summary)
    if report.worst not in (None, Severity.NOTE):
        raise typer.Exit(REFUSED)


def _compared_with(found: DiscoveryComparisonResponse) -> str:
    """What was compared, in a line."""
    unreadable = (
        f", {counted(found.unreadable, 'card')} of them unreadable" if found.unreadable else ""
    )
    return f"Compared with {counted(found.cards, 'live card')}{unreadable}."


def _print_findings(report: AuditResponse, wide: bool) -> None:
    if not report.counts:
        print("No findings.")
        return
    print_table(
        [
            *(Column(title) for title in ("SEVERITY", "CLASS", "OWNER", "ENTRY", "SINCE")),
            Column("DETAIL", wraps=True),
        ],
        (
            (
                each.severity,
                each.kind,
                each.owner or "-",
                each.entry or "-",
                each.since or "-",
                each.detail,
            )
            for each in report.findings
        ),
        wide=wide,
    )
    total = sum(report.counts.values())
    if total > len(report.findings):
        print(f"... and {total - len(report.findings)} more")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(report.counts.items()))
    print(f"\n{total} findings: {counts}")


def _print_summary(summary: AuditSummaryResponse) -> None:
    shared = ", ".join(f"{n} by {holders}" for holders, n in summary.entries_by_holders.items())
    print_facts(
        [
            ("last sweep", summary.last_sweep_at or "never"),
            ("overdue owners", str(summary.overdue_owners)),
            ("oldest drain until", summary.oldest_drain_at or "nobody drains"),
            ("brake", summary.brake_engaged_at or "not engaged"),
            ("entries by holders", shared or "no entries"),
            ("journal rows", str(summary.journal_rows)),
            ("write-ahead log", shown_size(summary.wal_bytes)),
        ]
    )
    if summary.largest_owners:
        print()
        print_table(
            [Column("LARGEST OWNERS"), Column("REFS", right=True), Column("BYTES", right=True)],
            ((each.owner, str(each.refs), str(each.bytes)) for each in summary.largest_owners),
        )


def print_swept(swept: SweptResponse, as_json: bool) -> None:
    """Print what a sweep did; or, where it does not say what it removed, what it would do."""
    if as_json:
        print_json(swept)
        return
    if swept.ended:
        print_table(
            [Column("OWNER"), Column("STATE"), Column("REASON")],
            ((str(each.owner.record()), each.state, each.reason) for each in swept.ended),
        )
        if swept.owners > len(swept.ended):
            print(f"... and {swept.owners - len(swept.ended)} more")
        print()
    owners, refs = counted(swept.owners, "owner"), counted(swept.released, "ref")
    if swept.removed is None:
        print(f"{owners} would be ended, {refs} released.")
    else:
        print(f"{owners} ended, {refs} released.")
        print(f"Removed: {_removed(swept.removed)}.")
    if swept.waiting and swept.paused:
        print(f"{counted(swept.waiting, 'lapsed owner')} left alone: {swept.paused}.")


def _removed(removed: RemovedResponse) -> str:
    counts = {
        "entry": removed.entries,
        "copy": removed.copies,
        "tombstone": removed.tombstones,
        "event": removed.events,
    }
    return ", ".join(counted(count, noun) for noun, count in counts.items() if count) or "nothing"
