"""What is wrong, and what is merely worth knowing: the findings of the `leaks` view and beyond.

The view holds every class that SQL can state. Two more looks are taken here: at the files that
owners hold in place (`check_files`), and at the database itself (`verify`). Nothing here changes
anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import bindparam, column, func, select, table

from registry.core import hashing
from registry.core.records import (
    AuditReport,
    AuditSummary,
    Finding,
    Footprint,
    Severity,
    shown,
)
from registry.errors import Busy, FileUnreadable, Invalid, StorageUnavailable, TooLarge
from registry.store.ops.blobs import find_content
from registry.store.ops.settings_table import read_variables
from registry.store.sqlite.engine import Connection, Database, Row, Statement
from registry.store.sqlite.errors import is_damage
from registry.store.tables import blobs, entries, events, owner_refs, owners
from registry.wire import messages as wire

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
    "missing_blob": Severity.CORRUPTION,
    "path_outside_roots": Severity.FAULT,
    "unverified_ref": Severity.NOTE,
    "journal_says_gone": Severity.CORRUPTION,
    "journal_says_held": Severity.CORRUPTION,
    "unresolved_conflict": Severity.FAULT,
    "integrity": Severity.CORRUPTION,
}
"""Every class of finding, with how bad it is."""

_leaks = table("leaks", *map(column, ("class", "severity", "owner", "entry", "since", "detail")))
_FINDINGS = Statement(select(*_leaks.c))


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
    found = [
        Finding(kind, Severity(severity), owner, entry, since, detail or _WRONG_COPY)
        for kind, severity, owner, entry, since, detail in conn.run(_FINDINGS)
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
    grace = int(variables.get("lease_grace_ms", 300_000))
    last_sweep_at = variables.get("last_sweep_at")
    engaged_at = variables.get("brake_engaged_at")
    (database_path,) = conn.run_text("SELECT file FROM pragma_database_list WHERE name = 'main'")[0]
    return AuditSummary(
        last_sweep_at=None if last_sweep_at is None else int(last_sweep_at),
        overdue_owners=conn.run(_OVERDUE, now=conn.now, grace=grace)[0][0],
        oldest_drain_at=conn.run(_OLDEST_DRAIN)[0][0],
        brake_engaged_at=None if engaged_at is None else int(engaged_at),
        largest_owners=tuple(Footprint(*row) for row in conn.run_text(_TOP_OWNERS)),
        entries_by_holders=dict(conn.run_text(_HOLDERS_PER_ENTRY)),
        journal_rows=conn.run(_JOURNAL_ROWS)[0][0],
        wal_bytes=_size(Path(database_path + "-wal")),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# Files in place

_identity = (
    owners.c.namespace,
    owners.c.component,
    owners.c.endpoint,
    owners.c.instance_id,
    owners.c.lora_slug,
)
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
        *_identity,
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
    .limit(bindparam("row_limit"))
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


def check_files(database: Database, roots: Roots | None, run: Run = _run) -> Iterator[Finding]:
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
            owner_id, entry_id = row[:2]
            try:
                finding = _look(row, roots, run)
            except Busy as error:
                unchecked.append(error)
                continue
            if finding is not None and _is_still_held(database, row):
                yield finding
    if unchecked:
        raise Busy(f"{len(unchecked)} files were not checked. The first: {unchecked[0].detail}")


def _in_place(database: Database, owner_id: int, entry_id: int) -> list[Row]:
    with database.read() as conn:
        return conn.run(_IN_PLACE, owner_id=owner_id, entry_id=entry_id, row_limit=PAGE_ROWS)


def _is_still_held(database: Database, row: Row) -> bool:
    with database.read() as conn:
        names = {"owner_id": row[0], "entry_id": row[1], "path": row[2], "checksum": row[5]}
        return bool(conn.run(_STILL, **names))


def _look(row: Row, roots: Roots | None, run: Run) -> Finding | None:
    path, identity, verified_at, checksum, size = row[2:7]
    if roots is not None and not roots.allow(path):
        return _of_row(row, "path_outside_roots", f"{path} is below no artifact root")
    wrong = run(path, _wrong_with, path, identity, checksum, size)
    return None if wrong is None else _of_row(row, *wrong, verified_at)


def _wrong_with(
    path: str, identity: str | None, checksum: str, size: int
) -> tuple[str, str] | None:
    now = hashing.find_identity(path)
    if now is None:
        return "missing_file", f"{path} is gone or no regular file"
    if now == identity:
        return None
    try:
        found = hashing.hash_file(path, max_bytes=size)
    except FileUnreadable as error:
        return "missing_file", error.detail
    except TooLarge:
        return "drifted_ref", f"{path} holds other bytes than were registered"
    if found.checksum != checksum:
        return "drifted_ref", f"{path} holds other bytes than were registered"
    return None


def _of_row(row: Row, kind: str, detail: str, at: int | None = None) -> Finding:
    slug, suffix, filename = row[7:10]
    owner = "/".join(map(str, row[10:14])) + f"/{row[14] or '_base'}"
    since = None if at is None else wire.format_time(at)
    return Finding(kind, CLASSES[kind], owner, f"{slug}/{suffix}/{filename}", since, detail)


# The database itself

_BLOB_NAMES = Statement(
    select(blobs.c.checksum)
    .where(blobs.c.checksum > bindparam("after"))
    .order_by(blobs.c.checksum)
    .limit(bindparam("row_limit"))
)
_WRONG_CONTENT = """
    SELECT e.slug || '/' || e.suffix || '/' || e.filename, r.blob_checksum, e.checksum
    FROM owner_refs r JOIN entries e ON e.id = r.entry_id
    WHERE r.blob_checksum IS NOT NULL AND r.blob_checksum <> e.checksum
"""
_WRONG_SIZE = """
    SELECT e.slug || '/' || e.suffix || '/' || e.filename, b.size, e.size
    FROM entries e JOIN blobs b ON b.checksum = e.checksum
    WHERE b.size <> e.size
"""
_HELD = """
    SELECT v.namespace || '/' || v.component || '/' || v.endpoint || '/' || v.instance_id || '/'
            || CASE v.lora_slug WHEN '' THEN '_base' ELSE v.lora_slug END,
        v.slug || '/' || v.suffix || '/' || v.filename, v.at, v.id
    FROM events v
    WHERE v.kind IN ('registered', 'replaced')
        AND NOT EXISTS (
            SELECT 1 FROM events s
            WHERE s.owner_id = v.owner_id AND s.entry_id = v.entry_id AND s.id > v.id
                AND s.kind IN ('registered', 'replaced', 'released'))
        AND NOT EXISTS (
            SELECT 1 FROM owner_refs r
            JOIN owners o ON o.id = r.owner_id
            JOIN entries e ON e.id = r.entry_id
            WHERE r.owner_id = v.owner_id AND r.entry_id = v.entry_id)
"""


def verify(database: Database) -> Iterator[Finding]:
    """The database as a file and as a story: pages, references, content, the journal.

    Reads everything; a large database takes its time. What one look cannot read is a finding, and
    the next look goes on.

    Raises:
        Busy, StorageUnavailable: it cannot be looked at, for reasons that tell nothing of it.
    """
    for look in (_verify_pages, _verify_references, _verify_content, _verify_journal):
        with database.read() as conn:
            try:
                yield from look(conn)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                yield _integrity(f"the database file is damaged: {error}")
    yield from _verify_blobs(database)


def _verify_pages(conn: Connection) -> Iterator[Finding]:
    for (line,) in conn.run_text("PRAGMA integrity_check(100)"):
        if line != "ok":
            yield _integrity(line)


def _verify_references(conn: Connection) -> Iterator[Finding]:
    for name, rowid, parent, _ in conn.run_text("PRAGMA foreign_key_check"):
        which = "a row" if rowid is None else f"row {rowid}"
        yield _integrity(f"{which} of {name} refers to nothing in {parent}")


def _verify_content(conn: Connection) -> Iterator[Finding]:
    for entry, held, registered in conn.run_text(_WRONG_CONTENT):
        yield _integrity(f"a ref holds {held} where {registered} is registered", entry=entry)
    for entry, size, registered in conn.run_text(_WRONG_SIZE):
        yield _integrity(f"its content has {size} bytes, not {registered}", entry=entry)


def _verify_journal(conn: Connection) -> Iterator[Finding]:
    yield from find_leaks(conn, ["journal_says_gone"])
    for owner, entry, at, event_id in conn.run_text(_HELD):
        detail = f"event {event_id} registered it and nothing says that it was released"
        since = wire.format_time(at)
        yield Finding("journal_says_held", Severity.CORRUPTION, owner, entry, since, detail)


def _verify_blobs(database: Database) -> Iterator[Finding]:
    """Hash every copy, each in a read of its own, so that the service's log can be folded in."""
    after: str | None = ""
    while after is not None:
        try:
            with database.read() as conn:
                names = conn.run(_BLOB_NAMES, after=after, row_limit=PAGE_ROWS)
        except StorageUnavailable as error:
            if not is_damage(error.__cause__):
                raise
            yield _integrity(f"the list of copies cannot be read: {error.detail}")
            return
        for (name,) in names:
            wrong = _wrong_with_blob(database, name)
            if wrong is not None:
                yield _integrity(wrong, entry=name)
        after = names[-1][0] if names else None


def _wrong_with_blob(database: Database, checksum: str) -> str | None:
    try:
        with database.read() as conn:
            content = find_content(conn, checksum)
    except StorageUnavailable as error:
        if not is_damage(error.__cause__):
            raise
        return f"its bytes cannot be read: {error.detail}"
    if content is None or hashing.checksum_of(content) == checksum:
        return None  # It is right, or it was removed meanwhile.
    return "its bytes have another checksum"


def _integrity(detail: str, entry: str | None = None) -> Finding:
    advice = f"{detail}; restore a backup"
    return Finding("integrity", Severity.CORRUPTION, None, entry, None, advice)
