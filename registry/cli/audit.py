"""`metadata-registry audit`, `sweep` and `verify`: what is wrong with a database, mending it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.db import DEFAULT_URL, DatabaseUrl
from registry.cli.failures import REFUSED
from registry.cli.options import AsJson
from registry.cli.output import Column, print_facts, print_json, print_table
from registry.cli.text import shown_size

if TYPE_CHECKING:
    from registry.db.engine import Database
    from registry.db.sweeping import Ending, Swept
    from registry.records import AuditReport, AuditSummary


def audit(
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Only this class; repeat.")
    ] = None,
    check_files: Annotated[
        bool,
        typer.Option("--check-files", help="Look at every file that is held in place as well."),
    ] = False,
    artifact_root: Annotated[
        list[Path] | None,
        typer.Option(
            "--artifact-root",
            metavar="DIR",
            help="With --check-files: report paths that are below none of these; repeat.",
        ),
    ] = None,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Report leaks and faults. Exit 1 if any is above a note. Changes nothing."""
    from itertools import chain

    from registry.db import audit as audits
    from registry.files import ArtifactRoots

    wanted = audits.check_classes(classes or [])
    with _opened(database_url) as database, database.read() as conn:
        report = audits.audit(conn, wanted)
        if check_files:
            roots = ArtifactRoots(artifact_root) if artifact_root else None
            listed = {(each.kind, each.owner, each.entry) for each in report.findings}
            found = (
                each
                for each in audits.check_files(conn, roots)
                if (not wanted or each.kind in wanted)
                and (each.kind, each.owner, each.entry) not in listed
            )
            report = audits.report_of(chain(report.findings, found), report.summary)
    _print_report(report, as_json)


def verify(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check the database file, every copied content and the journal. Exit 1 if anything is wrong.

    Reads the whole database; may run beside a service.
    """
    from registry.db import audit as audits

    with _opened(database_url) as database, database.read() as conn:
        report = audits.report_of(audits.verify(conn), None)
    _print_report(report, as_json)


def sweep(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say who would be ended now.")
    ] = False,
    release_brake: Annotated[
        bool,
        typer.Option("--release-brake", help="Let go of the brake that pauses mass expiry."),
    ] = False,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """End lapsed owners now, and delete what is past its time.

    Goes by the settings of the service that last ran on the database. Without a service, run it at
    least every third of the lease grace: a longer gap counts as an outage, after which nobody is
    ended before one full lease and the grace have passed.
    """
    from registry.db.retention import Prune, find_abandoned, prune
    from registry.db.sweeping import Sweep, Swept
    from registry.db.sweeping import sweep as sweep_once

    released = 0
    endings: list[Ending] = []
    with _opened(database_url) as database:
        item = Sweep(force=True, release_brake=release_brake, dry_run=dry_run)
        while True:
            with database.write() as conn:
                done = sweep_once(conn, conn.now, [item])[0]
            endings += done.ended
            released += done.released
            if not done.more:
                break
            item = Sweep(repeated=True)
        more = not dry_run
        while more:
            with database.read() as conn:
                checksums = find_abandoned(conn, conn.now)
            with database.write() as conn:
                more = prune(conn, conn.now, [Prune(checksums)])[0].more
    _print_swept(Swept(False, tuple(endings), released, False, done.paused, done.waiting), as_json)


@contextmanager
def _opened(database_url: str) -> Iterator[Database]:
    """The database, if it is one that this program can work with. It is not upgraded."""
    from registry.db.engine import Database
    from registry.db.schema import find_problem
    from registry.errors import DatabaseRefused

    problem = find_problem(database_url)
    if problem is not None:
        raise DatabaseRefused(problem)
    database = Database(database_url)
    try:
        yield database
    finally:
        database.close()


def _print_report(report: AuditReport, as_json: bool) -> None:
    from registry import wire
    from registry.records import Severity

    if as_json:
        print_json(wire.AuditAnswer.of(report))
    else:
        _print_findings(report)
        if report.summary is not None:
            print()
            _print_summary(report.summary)
    if report.worst not in (None, Severity.NOTE):
        raise typer.Exit(REFUSED)


def _print_findings(report: AuditReport) -> None:
    if not report.counts:
        print("No findings.")
        return
    print_table(
        [Column(title) for title in ("SEVERITY", "CLASS", "OWNER", "ENTRY", "SINCE", "DETAIL")],
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
    )
    total = sum(report.counts.values())
    if total > len(report.findings):
        print(f"... and {total - len(report.findings)} more")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(report.counts.items()))
    print(f"\n{total} findings: {counts}")


def _print_summary(summary: AuditSummary) -> None:
    from registry.wire import format_time

    def when(at: int | None, otherwise: str) -> str:
        return otherwise if at is None else format_time(at)

    shared = ", ".join(f"{n} by {holders}" for holders, n in summary.entries_by_holders.items())
    print_facts(
        [
            ("last sweep", when(summary.last_sweep_at, "never")),
            ("overdue owners", str(summary.overdue_owners)),
            ("oldest drain until", when(summary.oldest_drain_at, "nobody drains")),
            ("brake", when(summary.brake_engaged_at, "not engaged")),
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


def _print_swept(swept: Swept, as_json: bool) -> None:
    from registry import wire

    if as_json:
        ended = [
            wire.EndedAnswer(wire.OwnerBody.of(each.owner), each.state, each.reason)
            for each in swept.ended
        ]
        print_json(wire.SweptAnswer(ended, swept.released, swept.waiting, swept.paused))
        return
    if swept.ended:
        print_table(
            [Column("OWNER"), Column("STATE"), Column("REASON")],
            ((str(each.owner), each.state, each.reason) for each in swept.ended),
        )
        print()
    print(f"{len(swept.ended)} owners ended, {swept.released} refs released.")
    if swept.waiting:
        print(f"{swept.waiting} lapsed owners wait: {swept.paused or 'sweep again'}.")
