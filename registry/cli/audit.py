"""`metadata-registry audit`, `sweep` and `verify`: what is wrong with a database, mending it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.audit_discovery import ComparisonOptions, compare_twice, compared_with
from registry.cli.db import DEFAULT_URL, DatabaseUrl
from registry.cli.exit_codes import REFUSED
from registry.cli.options import AsJson, Wide
from registry.cli.output import print_json, warnings_shown
from registry.cli.tables import Column, print_facts, print_table
from registry.cli.text import counted, shown_size
from registry.core.times import format_time
from registry.wire.listings import RemovedResponse
from registry.wire.reports import (
    AuditResponse,
    DiscoveryComparisonResponse,
    EndedResponse,
    SweptResponse,
)
from registry.wire.requests import OwnerIdentity

if TYPE_CHECKING:
    from registry.core.findings import AuditReport, AuditSummary, DiscoveryReport
    from registry.store.engine import Connection, Engine
    from registry.store.ops.expire import Ending, Swept

BREATHER_S = 0.01


def audit(
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Only this class; repeat.")
    ] = None,
    check_files: Annotated[
        bool,
        typer.Option("--check-files", help="Look at every file that is held in place as well."),
    ] = False,
    artifact_root: Annotated[
        list[str] | None,  # A Path would be looked at, and may hang.
        typer.Option(
            "--artifact-root",
            metavar="DIR",
            help="With --check-files: report paths that are below none of these; repeat.",
        ),
    ] = None,
    discovery: Annotated[
        str | None,
        typer.Option("--discovery", metavar="URL", help="Compare with this discovery store."),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", metavar="NS", help="With --discovery: only this one; repeat."),
    ] = None,
    public_url: Annotated[
        list[str] | None,
        typer.Option(
            "--public-url",
            metavar="URL",
            help="With --discovery: the registry as cards name it; repeat.",
        ),
    ] = None,
    wide: Wide = False,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Report leaks and faults. Exit 1 if any is above a note. Changes nothing.

    With --discovery, what does not fit is looked at again after the time that discovery keeps the
    dead, as workers come and go.
    """
    from registry.config import Settings
    from registry.content.file_audit import check_files as look_at_files
    from registry.content.places import bounded_root, patience_for_files
    from registry.content.roots import ArtifactRoots
    from registry.errors import Busy
    from registry.store.reads import audit as audits

    wanted = audits.check_classes(classes or [])
    compared = ComparisonOptions.of(discovery, namespace or (), public_url or (), wanted)
    unchecked: Busy | None = None
    with _opened(database_url) as database:
        with warnings_shown(as_json=as_json):
            comparison = None if compared is None else compare_twice(database, compared)
        with database.read() as conn:
            found, summary = audits.find_leaks(conn, wanted), audits.summarize(conn)
        if check_files:
            limit_s = Settings().file_timeout_s
            named = artifact_root or _artifact_roots_of(os.environ)
            roots = ArtifactRoots(named, bounded_root(limit_s)) if named else None
            patience = patience_for_files(limit_s)
            known = {(each.kind, each.owner, each.entry) for each in found}
            try:
                for each in look_at_files(database, roots, patience.run, patience.follow):
                    is_known = (each.kind, each.owner, each.entry) in known
                    if (not wanted or each.kind in wanted) and not is_known:
                        found.append(each)
            except Busy as error:
                unchecked = error
    report = audits.report_of(found, summary)
    if comparison is not None:
        report = audits.joined(report, comparison.audit)
    try:
        _print_report(report, as_json, wide=wide, comparison=comparison)
    finally:
        if unchecked is not None:
            raise unchecked


def _artifact_roots_of(environ: Mapping[str, str]) -> list[str]:
    return [root for root in environ.get("REGISTRY_ARTIFACT_ROOTS", "").split(os.pathsep) if root]


def verify(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check the database file, every copied content and the journal. Exit 1 if anything is wrong.

    Reads the whole database; may run beside a service.
    """
    from registry.store.reads import audit as audits
    from registry.store.reads.verify import verify as verify_database

    with _opened(database_url) as database:
        report = audits.report_of(verify_database(database), None)
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
    with _opened(database_url, to_write=not dry_run) as database:
        if dry_run:
            _print_swept(_rehearse(database, release_brake), None, as_json)
        else:
            _print_swept(*_sweep_all(database, release_brake), as_json)


def _rehearse(database: Engine, release_brake: bool) -> Swept:
    """Who would be ended now. Takes no lock and writes nothing."""
    from registry.store.ops.expire import Sweep
    from registry.store.ops.expire import sweep as sweep_once

    item = Sweep(force=True, release_brake=release_brake, dry_run=True)
    with database.read() as conn:
        return sweep_once(conn, conn.now, [item])[0]


def _sweep_all(database: Engine, release_brake: bool) -> tuple[Swept, RemovedResponse]:
    """End everybody who is due and prune all that is old, in batches with a breather between
    them, in which others get the write lock. What was done, and what went besides."""
    from registry.store.ops.expire import Sweep, Swept
    from registry.store.ops.expire import sweep as sweep_once
    from registry.store.ops.prune import Prune, find_abandoned, prune

    released = 0
    ended: list[Ending] = []
    removed = RemovedResponse()
    item = Sweep(force=True, release_brake=release_brake)
    while True:
        with database.write() as conn, _counting(conn, removed):
            done = sweep_once(conn, conn.now, [item])[0]
        ended += done.ended
        released += done.released
        if not done.more:
            break
        item = Sweep(repeated=True)
        time.sleep(BREATHER_S)
    while True:
        with database.read() as conn:
            checksums = find_abandoned(conn, conn.now)
        with database.write() as conn, _counting(conn, removed):
            pruned = prune(conn, conn.now, [Prune(checksums)])[0]
        removed.tombstones += pruned.tombstones
        removed.events += pruned.events
        if not pruned.more:
            swept = Swept(False, tuple(ended), released, False, done.paused, done.waiting)
            return swept, removed
        time.sleep(BREATHER_S)


@contextmanager
def _counting(conn: Connection, removed: RemovedResponse) -> Iterator[None]:
    """Add the entries and copies that go while the block runs, in which nobody else writes."""
    query = "SELECT (SELECT COUNT(*) FROM entries), (SELECT COUNT(*) FROM blobs)"
    ((entries, copies),) = conn.run_text(query)
    yield
    ((entries_left, copies_left),) = conn.run_text(query)
    removed.entries += entries - entries_left
    removed.copies += copies - copies_left


@contextmanager
def _opened(database_url: str, *, to_write: bool = False) -> Iterator[Engine]:
    """The database, if it is one that this program can work with. It is not upgraded."""
    from registry.store.opening import open_for_command

    database = open_for_command(database_url, to_write=to_write)
    try:
        yield database
    finally:
        database.close()


def _print_report(
    report: AuditReport,
    as_json: bool,
    *,
    wide: bool = False,
    comparison: DiscoveryReport | None = None,
) -> None:
    from registry.core.findings import Severity

    if as_json:
        answer = AuditResponse.of(report)
        if comparison is not None:
            answer.discovery = DiscoveryComparisonResponse.of(comparison, comparison.looked_at)
        print_json(answer)
    else:
        _print_findings(report, wide)
        if comparison is not None:
            print(f"\n{compared_with(comparison)}")
        if report.summary is not None:
            print()
            _print_summary(report.summary)
    if report.worst not in (None, Severity.NOTE):
        raise typer.Exit(REFUSED)


def _print_findings(report: AuditReport, wide: bool) -> None:
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


def _print_summary(summary: AuditSummary) -> None:
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


def _print_swept(swept: Swept, removed: RemovedResponse | None, as_json: bool) -> None:
    """What a sweep did; or, where nothing is said of what it removed, what it would do."""
    if as_json:
        ended = [
            EndedResponse(OwnerIdentity.of(each.owner), each.state, each.reason)
            for each in swept.ended
        ]
        print_json(SweptResponse(ended, swept.released, swept.waiting, swept.paused, removed))
        return
    if swept.ended:
        print_table(
            [Column("OWNER"), Column("STATE"), Column("REASON")],
            ((str(each.owner), each.state, each.reason) for each in swept.ended),
        )
        print()
    owners, refs = counted(len(swept.ended), "owner"), counted(swept.released, "ref")
    if removed is None:
        print(f"{owners} would be ended, {refs} released.")
    else:
        print(f"{owners} ended, {refs} released.")
        print(f"Removed: {_removed(removed)}.")
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
