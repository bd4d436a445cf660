"""What must not creep in: more statements, statements that grow with a batch, a scan of a table.

Nothing here measures time. Statements are counted as SQLite runs them, and work in SQLite's own
virtual machine instructions, which come out the same on any machine.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import registry.store
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Owner,
    Registration,
    Removal,
    Unregistration,
)
from registry.store.engine import Connection
from registry.store.ops import expire, leases, register, register_rows, release, unregister
from registry.store.ops.expire import Sweep
from registry.store.owner_columns import identity
from registry.store.reads.audit import audit
from registry.store.reads.lookup import Locator
from registry.store.sql import Statement
from registry.store.sqlite import migrate, wal_index
from registry.store.sqlite.engine import Database
from tests.support import checksum

Operation = Callable[[Connection, int, Sequence[Any]], Sequence[Any]]

ENTRIES = 100_000
REFS = 10
NOW = 1_900_000_000_000
CONTENT = checksum(b"content")
BIG_TABLES = {"owners", "entries", "owner_refs", "blobs", "events"}
INSTRUCTIONS_COUNTED_BY = 10


class Traced(Database):
    """A database that notes every statement, and counts what SQLite's machine executes."""

    def __init__(self, path: Path) -> None:
        self.statements: list[str] = []
        self.instructions = 0
        super().__init__(f"sqlite:///{path}", clock=lambda: NOW)
        with self.write():
            pass  # A new connection has more to say than an old one.

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = super().connect(*arguments, **options)
        connection.set_trace_callback(self._note)
        connection.set_progress_handler(self._count, INSTRUCTIONS_COUNTED_BY)
        return connection

    def _note(self, statement: str) -> None:
        # SQLite tells of a statement again for every row that a foreign key is checked for.
        if self.statements[-1:] != [statement]:
            self.statements.append(statement)

    def _count(self) -> int:
        self.instructions += INSTRUCTIONS_COUNTED_BY
        return 0

    def forget(self) -> None:
        self.statements.clear()
        self.instructions = 0

    def perform(self, operation: Operation, items: Sequence[Any]) -> int:
        """Run an operation in a transaction; how many statements it took, without BEGIN, COMMIT."""
        self.forget()
        with self.write() as conn:
            outcomes = operation(conn, conn.now, items)
        assert len(outcomes) == len(items)
        return len(self.statements) - 2


def owner(number: int) -> Owner:
    return Owner("guard", "backend", "generate", number)


def key(number: int) -> ArtifactKey:
    return ArtifactKey(f"model-{number // REFS}", "_base", f"{number % REFS}.json")


def registration(number: int, refs: int = REFS) -> Registration:
    keys = [key(number * REFS + index) for index in range(refs)]
    artifacts = tuple(Artifact(each, CONTENT, len(b"content")) for each in keys)
    return Registration(owner(number), artifacts, lease_ttl_ms=60_000)


def make(path: Path, entries: int) -> None:
    """A sound database in which owner i holds entries 10 i to 10 i + 9, all of one content."""
    migrate.prepare(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    names = {"count": entries, "refs": REFS, "now": NOW, "content": CONTENT}
    connection.execute(
        "INSERT INTO blobs VALUES (:content, 7, :now, CAST('content' AS BLOB))", names
    )
    numbers = """WITH RECURSIVE numbers (n) AS (
        SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)"""
    for statement in (
        f"""{numbers} INSERT INTO owners (id, namespace, component, endpoint, instance_id, state,
            lease_ttl_ms, lease_expires_at, registered_at, renewed_at)
        SELECT n + 1, 'guard', 'backend', 'generate', n, 'active', 60000, :now + 60000, :now, :now
        FROM numbers WHERE n < :count / :refs""",
        f"""{numbers} INSERT INTO entries (id, slug, suffix, filename, checksum, size, generation,
            created_at, updated_at)
        SELECT n + 1, 'model-' || (n / :refs), '_base', (n % :refs) || '.json', :content, 7, 1,
            :now, :now FROM numbers""",
        f"""{numbers} INSERT INTO events (id, at, kind, owner_id, entry_id, namespace, component,
            endpoint, instance_id, lora_slug, slug, suffix, filename, checksum)
        SELECT n + 1, :now, 'registered', n / :refs + 1, n + 1, 'guard', 'backend', 'generate',
            n / :refs, '',
            'model-' || (n / :refs), '_base', (n % :refs) || '.json', :content FROM numbers""",
        f"""{numbers} INSERT INTO owner_refs
        SELECT n / :refs + 1, n + 1, :content, NULL, NULL, 'ok', :now, :now, n + 1 FROM numbers""",
    ):
        connection.execute(statement, names)
    connection.commit()
    connection.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    path = tmp_path_factory.mktemp("guard") / "large.db"
    make(path, ENTRIES)
    database = Traced(path)
    yield database
    with database.read() as conn:
        assert audit(conn).counts == {}
    database.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Traced]:
    path = tmp_path / "small.db"
    make(path, 1000)
    database = Traced(path)
    yield database
    with database.read() as conn:
        assert audit(conn).counts == {}
    database.close()


# Statements


@pytest.mark.parametrize("asked", [[], ["PRAGMA"]], ids=["header", "data_version"])
def test_a_read_takes_one_statement_and_a_repeated_one_none(
    small: Traced, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the question whether anything was committed, where only SQLite can tell."""
    if asked:
        monkeypatch.setattr(wal_index, "MAPS", Path("/nowhere"))
    lookup = Locator(small)
    lookup.find(("model-1", "_base", "1.json"))
    for expected in ([*asked, "SELECT"], asked):
        small.forget()
        assert lookup.find(("model-1", "_base", "2.json")) is not None
        assert [statement.split()[0] for statement in small.statements] == expected
    lookup.close()


BATCHES: dict[str, tuple[Operation, Callable[[int], Any], int]] = {
    "register": (register.register, lambda n: registration(1000 + n), 14),
    "register again": (register.register, registration, 12),
    "renew": (leases.RenewOperation().renew, lambda n: identity(owner(n)), 3),
    "unregister": (unregister.unregister, lambda n: Unregistration(owner(n)), 16),
}
"""Operations, their items by number, and the most statements that a batch of them may take."""


@pytest.mark.parametrize("name", BATCHES)
def test_statements_do_not_grow_with_a_batch(small: Traced, name: str) -> None:
    operation, item, most = BATCHES[name]
    first = small.perform(operation, [item(90)])
    many = small.perform(operation, [item(number) for number in range(80)])
    assert many <= first <= most


def test_a_renewal_finds_its_owners_by_the_ids_that_it_knows(small: Traced) -> None:
    renew = leases.RenewOperation().renew
    many = [identity(owner(number)) for number in range(80)]
    by_name = small.perform(renew, many[:40])
    by_id = small.perform(renew, many[:40])
    by_both = small.perform(renew, many)
    assert (by_name, by_id, by_both) == (3, 3, 4)


def test_statements_do_not_grow_with_a_manifest(small: Traced) -> None:
    short = small.perform(register.register, [registration(1000, refs=1)])
    long = small.perform(register.register, [registration(2000, refs=500)])
    assert long == short, small.statements


def test_statements_of_a_sweep_do_not_grow_with_the_lapsed_owners(small: Traced) -> None:
    counts = []
    with small.write() as conn:
        conn.run_text("INSERT INTO settings VALUES ('brake_percent', '100')")
    small.perform(expire.sweep, [Sweep(force=True)])
    for lapsed in (1, 80):
        with small.write() as conn:
            conn.run_text(
                "UPDATE owners SET lease_ttl_ms = 1, lease_expires_at = 1 WHERE id IN ("
                "SELECT id FROM owners WHERE state = 'active' LIMIT ?)",
                (lapsed,),
            )
            conn.run_text("UPDATE settings SET value = '0' WHERE name = 'expiry_floor_at'")
        small.forget()
        with small.write() as conn:
            (swept,) = expire.sweep(conn, NOW, [Sweep(force=True)])
        assert len(swept.ended) == lapsed
        counts.append(len(small.statements))
    assert counts[1] <= counts[0] <= 32


# Order


@pytest.mark.parametrize("has_statistics", [False, True])
@pytest.mark.parametrize("way", ["unregister", "remove"])
def test_the_journal_of_an_ending_is_in_its_order_whatever_the_planner_knows(
    small: Traced, way: str, has_statistics: bool
) -> None:
    """Owner by owner: the refs that it lets go of, its end, the entries that go with their last."""
    for number in (30, 35, 40):
        both = Registration(owner(3000 + number), registration(number).artifacts, 60_000)
        small.perform(register.register, [both])
    leaving = [35, 3035, 12, 3030, 30, 3040]
    with small.write() as conn:
        if has_statistics:
            conn.run_text("ANALYZE")
        last = conn.last_ids()["events"]
    if way == "unregister":
        wanted: list[Any] = [Unregistration(owner(number)) for number in leaving]
        small.perform(unregister.unregister, wanted)
    else:
        small.perform(unregister.remove, [Removal("model-30", "_base")])
    with small.read() as conn:
        rows = conn.run_text(
            "SELECT instance_id, kind, entry_id FROM events WHERE id > :last ORDER BY id",
            {"last": last},
        )
    found = [
        (int(instance), [(kind, entry_id) for _, kind, entry_id in lines])
        for instance, lines in itertools.groupby(rows, key=lambda row: row[0])
    ]
    numbers = leaving if way == "unregister" else [30, 3030]
    assert [number for number, _ in found] == numbers
    for number, lines in found:
        ids = sorted(entry_id for kind, entry_id in lines if kind == "released")
        assert len(ids) == REFS
        goes = number in ((3035, 12, 30) if way == "unregister" else (3030,))
        assert lines == [
            *(("released", entry_id) for entry_id in ids),
            *([("detached", None)] if way == "unregister" else []),
            *(("removed", entry_id) for entry_id in ids if goes),
        ]


# Work


def work(database: Traced, operation: Operation, items: Sequence[Any]) -> int:
    database.perform(operation, items)
    return database.instructions


def reads(database: Traced) -> int:
    """The instructions of a hundred point reads."""
    lookup = Locator(database)
    database.forget()
    for number in range(100):
        assert lookup.find((f"model-{number}", "_base", "3.json")) is not None
    lookup.close()
    return database.instructions


def test_work_does_not_grow_with_the_database(small: Traced, large: Traced) -> None:
    """A hundred times the entries, and at most a quarter more instructions."""
    owners = range(20, 40)
    new = [registration(20_000 + number) for number in owners]
    renewed = [identity(owner(number)) for number in owners]

    def steps() -> list[tuple[Operation, Sequence[Any]]]:
        renew = leases.RenewOperation().renew
        return [
            (register.register, new),
            (unregister.unregister, [Unregistration(each.owner) for each in new]),
            *((renew, renewed), (renew, renewed)),
            (unregister.unregister, [Unregistration(owner(number)) for number in owners]),
            (register.register, [registration(number) for number in owners]),
        ]

    found = [
        [reads(database), *(work(database, *step) for step in steps())]
        for database in (small, large)
    ]
    for few, many in zip(*found, strict=True):
        assert many <= 1.25 * few, found


# Plans


SCANS = {
    "advertised._OWNERS": "a comparison with discovery looks at every owner",
    "audit._FINDINGS": "the audit looks at everything",
    "audit._JOURNAL_ROWS": "counts the journal for the audit",
    "audit._OVERDUE": "the audit looks at everything",
    "blobs._PENDING_BYTES": "counted at most once in 10 s while there are uploads",
    "overview._FOUND": "the audit looks at everything; for the page, seldom",
    "overview._LAPSING": "looks at every owner for the page, seldom",
    "overview._LAST_MOMENT": "the end of the journal: one row",
    "queries._COUNT_ENTRIES": "counts the entries for whoever asks",
    "prune._ABANDONED": "once a minute, outside of the write lock",
    "prune._DELETE_TOMBSTONES": "once in a sweep",
    "stats._BLOBS": "counted for the metrics, every few seconds at most",
    "stats._ENTRIES": "counted for the metrics, every few seconds at most",
    "stats._OWNERS": "counted for the metrics, every few seconds at most",
    "stats._REFS": "counted for the metrics, every few seconds at most",
    "expire._COUNTS": "a sweep looks at every owner",
    "expire._EXPIRABLE": "a sweep looks at every owner",
    "expire._OVERDRAINED": "a sweep looks at every owner",
    "expire._POSTPONE_DRAINS": "a sweep looks at every owner",
    "expire._TAKE_BACK": "a sweep looks at every owner",
}
"""The statements that may go through a whole table, and why."""


def statements() -> Iterator[tuple[str, Statement[Any]]]:
    for module in pkgutil.walk_packages(registry.store.__path__, "registry.store."):
        found = importlib.import_module(module.name)
        for name, value in vars(found).items():
            if isinstance(value, Statement) and name.startswith("_"):
                yield f"{module.name.rpartition('.')[2]}.{name}", value


def plan(database: Database, statement: Statement[Any]) -> list[str]:
    text, fixed = statement.compiled(database.dialect)
    parameters = {name: fixed.get(name) for name in re.findall(r":(\w+)", text)}
    with database.read() as conn:
        return [row[3] for row in conn.run_text(f"EXPLAIN QUERY PLAN {text}", parameters)]


def scanned(steps: Sequence[str]) -> list[str]:
    """The steps that go through a big table, by its name or by an alias of it."""
    aliases = BIG_TABLES | {table[0] for table in BIG_TABLES} | {"other_refs", "v", "b"}
    return [step for step in steps if re.match(r"SCAN (\w+)", step) and step.split()[1] in aliases]


def test_no_statement_scans_a_big_table_but_those_that_say_why(large: Traced) -> None:
    found = {name for name, each in statements() if scanned(plan(large, each))}
    assert found - SCANS.keys() == set()


def test_the_hot_statements_use_their_indexes(large: Traced) -> None:
    from registry.store.ops import blobs
    from registry.store.reads import lookup

    for statement, index in (
        (lookup._LOCATE, "sqlite_autoindex_entries_1"),
        (lookup._LOCATE, "ix_owner_refs_entry_id"),
        (lookup._LOCATE_AT_ENDPOINT, "sqlite_autoindex_entries_1"),
        (register_rows._FIND_ENTRIES, "sqlite_autoindex_entries_1"),
        (register_rows._FIND_REFS, "PRIMARY KEY"),
        (release.FIND_OWNERS, "sqlite_autoindex_owners_1"),
        (release._JOURNAL, "ix_owner_refs_entry_id"),
        (blobs._COLLECT, "ix_owner_refs_blob_checksum"),
    ):
        steps = plan(large, statement)
        assert any(step.startswith("SEARCH") and index in step for step in steps), (steps, index)
