"""Where a test's database is: a SQLite file, or a database in a real PostgreSQL server.

Tests that are marked for both engines look into it, hold its lock and check it through this.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from registry.core.hashing import checksum_of
from registry.store.opening import prepare
from registry.store.postgresql.connection import NUMBERED, READ_IDS
from registry.store.postgresql.locks import WRITE_LOCK

if TYPE_CHECKING:
    from tests.postgres import Cluster, Clusters

SQLITE, POSTGRESQL = ENGINES = ("sqlite", "postgresql")

on_both = pytest.mark.engines(*ENGINES)
"""For a module, or a test: its fixtures are of either engine, one after the other."""
on_sqlite = pytest.mark.engines(SQLITE)
on_postgresql = pytest.mark.engines(POSTGRESQL)
"""For a test of a module that is marked for both."""

TABLES = ("owners", "entries", "owner_refs", "blobs", "events", "settings")

Dump = dict[str, list[tuple[Any, ...]]]
"""Every row of every table; and as `ids` the last one ever given in each."""

FAULTS = {
    "orphan_entry": """
        SELECT e.slug, e.suffix, e.filename FROM entries e
        WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.entry_id = e.id)""",
    "ref_of_ended_owner": """
        SELECT o.* FROM owner_refs r JOIN owners o ON o.id = r.owner_id
        WHERE o.state NOT IN ('active', 'draining')""",
    "dangling_ref": """
        SELECT r.* FROM owner_refs r LEFT JOIN owners o ON o.id = r.owner_id
        LEFT JOIN entries e ON e.id = r.entry_id WHERE o.id IS NULL OR e.id IS NULL""",
    "missing_blob": """
        SELECT r.* FROM owner_refs r LEFT JOIN blobs b ON b.checksum = r.blob_checksum
        WHERE r.blob_checksum IS NOT NULL AND b.checksum IS NULL""",
    "wrong_blob": """
        SELECT r.* FROM owner_refs r JOIN entries e ON e.id = r.entry_id
        WHERE r.blob_checksum IS NOT NULL AND r.blob_checksum <> e.checksum""",
    "wrong_size": """
        SELECT e.* FROM entries e JOIN blobs b ON b.checksum = e.checksum WHERE b.size <> e.size""",
    "journal_says_gone": """
        SELECT r.* FROM owner_refs r JOIN owners o ON o.id = r.owner_id
        JOIN entries e ON e.id = r.entry_id LEFT JOIN events v ON v.id = r.event_id
            AND v.kind IN ('registered', 'replaced') AND v.namespace = o.namespace
            AND v.component = o.component AND v.endpoint = o.endpoint
            AND v.instance_id = o.instance_id AND v.lora_slug = o.lora_slug
            AND v.slug = e.slug AND v.suffix = e.suffix AND v.filename = e.filename
            AND v.checksum = e.checksum
        WHERE v.id IS NULL""",
}
"""What must never be found in a database, by name."""

SQLITE_FAULTS = {
    "integrity": "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    "foreign_keys": "SELECT * FROM pragma_foreign_key_check",
}


class Shell(Protocol):
    """A connection as an operator has it: each statement is a transaction, `?` is a value."""

    def execute(self, query: str, values: Sequence[Any] = ..., /) -> Any: ...


class Place(ABC):
    """A database of either engine. `folder` is the test's, for files beside it."""

    engine: str
    faults = FAULTS

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    @abstractmethod
    def sql(self) -> AbstractContextManager[Shell]:
        """A connection as an operator has it."""

    @abstractmethod
    def unguarded(self) -> AbstractContextManager[Shell]:
        """A connection of somebody who writes past the registry: foreign keys are off."""

    @abstractmethod
    def write_locked(self) -> AbstractContextManager[Shell]:
        """Another program holds the write lock, until the end or its COMMIT."""

    @abstractmethod
    def last_ids(self, shell: Shell) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def set_view_clock(self, now: int) -> None:
        """Let the views take a time for now. They find `clock` by its name when they are used."""

    @abstractmethod
    def is_there(self) -> bool: ...

    def migrate(self) -> None:
        """Bring it to the newest schema, if it is not there yet."""
        prepare(self.url)

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement; the rows that it answers."""
        with self.sql() as shell:
            cursor = shell.execute(query, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
            return rows

    def dump(self) -> Dump:
        """What is committed."""
        with self.sql() as shell:
            rows = {
                table: shell.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                for table in TABLES
            }
            return {**rows, "ids": self.last_ids(shell)}

    def assert_sound(self) -> None:
        """Fail if anything contradicts itself. Every database test ends with this."""
        with self.sql() as shell:
            found = {name: shell.execute(query).fetchall() for name, query in self.faults.items()}
            faults = {name: rows for name, rows in found.items() if rows}
            assert faults == {}, faults
            for name, content in shell.execute("SELECT checksum, content FROM blobs"):
                assert checksum_of(content) == name


class SQLitePlace(Place):
    """A file. Nothing is there until it is migrated."""

    engine = SQLITE
    faults = FAULTS | SQLITE_FAULTS

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", path.parent)
        self.path = path

    def sql(self) -> AbstractContextManager[sqlite3.Connection]:
        return sql(self.path)

    @contextmanager
    def unguarded(self) -> Iterator[Shell]:
        with self.sql() as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            yield connection

    @contextmanager
    def write_locked(self) -> Iterator[Shell]:
        with self.sql() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def last_ids(self, shell: Shell) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = shell.execute(
            "SELECT name, seq FROM sqlite_sequence ORDER BY name"
        ).fetchall()
        return rows

    def migrate(self) -> None:
        if not os.path.lexists(self.path):
            shutil.copy(_template(), self.path)

    def set_view_clock(self, now: int) -> None:
        with self.write_locked() as shell:
            shell.execute("DROP VIEW clock")
            shell.execute(f"CREATE VIEW clock AS SELECT {now} AS now_ms")
            shell.execute("COMMIT")

    def is_there(self) -> bool:
        return self.path.exists()


@functools.cache
def _template() -> Path:
    """A new database as migrations make it. It is made once and copied, which is a lot faster."""
    folder = tempfile.mkdtemp(prefix="metadata-registry-template-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "registry.db"
    prepare(f"sqlite:///{path}")
    return path


class PostgreSQLPlace(Place):
    """A database of a server that others have databases in."""

    engine = POSTGRESQL

    def __init__(self, cluster: Cluster, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.cluster = cluster
        self.database = url.rsplit("/", 1)[1]
        self._kept: list[psycopg.Connection[tuple[Any, ...]]] = []

    @contextmanager
    def sql(self) -> Iterator[Shell]:
        try:
            connection = self._kept.pop()
        except IndexError:
            conninfo = self.cluster.conninfo(self.database)
            connection = psycopg.connect(conninfo, autocommit=True)
        try:
            yield PostgreSQLShell(connection)
        finally:
            is_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            if is_idle and not self._kept:
                self._kept.append(connection)
            else:
                connection.close()

    def let_go(self) -> None:
        """Be connected no longer."""
        while self._kept:
            self._kept.pop().close()

    @contextmanager
    def unguarded(self) -> Iterator[Shell]:
        with self.cluster.connected(self.database) as connection:
            connection.execute("SET session_replication_role = replica")
            yield PostgreSQLShell(connection)

    @contextmanager
    def write_locked(self) -> Iterator[Shell]:
        with self.sql() as shell:
            shell.execute("BEGIN")
            shell.execute(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
            yield shell

    def last_ids(self, shell: Shell) -> list[tuple[Any, ...]]:
        (row,) = shell.execute(f"SELECT {READ_IDS}").fetchall()
        return sorted(zip(NUMBERED, row, strict=True))

    def set_view_clock(self, now: int) -> None:
        self.ask(f"CREATE OR REPLACE VIEW clock AS SELECT CAST({now} AS BIGINT) AS now_ms")

    def is_there(self) -> bool:
        return True


class PostgreSQLShell:
    """See `Shell`."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Any:
        text = query.replace("%", "%%").replace("?", "%s") if values else query
        return self._connection.execute(text.encode(), values or None)


class Places:
    """Makes databases of one engine."""

    def __init__(self, engine: str, clusters: Clusters) -> None:
        self.engine = engine
        self._clusters = clusters

    @contextmanager
    def at(
        self,
        folder: Path,
        name: str = "registry.db",
        *,
        like: Place | None = None,
        is_checked: bool = True,
    ) -> Iterator[Place]:
        """A database that is checked when the block is over. `like` another, or such that
        `prepare` brings it to the newest schema."""
        if self.engine == SQLITE:
            place = SQLitePlace(folder / name)
            if like is not None:
                assert isinstance(like, SQLitePlace)
                shutil.copyfile(like.path, place.path)
            yield place
            if is_checked and place.is_there():
                place.assert_sound()
            return
        cluster = self._clusters.get()
        if isinstance(like, PostgreSQLPlace):
            like.let_go()
        with cluster.database(like=None if like is None else like.url) as url:
            there = PostgreSQLPlace(cluster, url, folder)
            try:
                yield there
                if is_checked:
                    there.assert_sound()
            finally:
                there.let_go()


@contextmanager
def sql(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a SQLite file as an operator's SQL shell has it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def as_place(where: Path | Place) -> Place:
    return where if isinstance(where, Place) else SQLitePlace(where)


def dump_of(where: Path | Place) -> Dump:
    """What is committed in a database."""
    return as_place(where).dump()


def assert_sound(where: Path | Place) -> None:
    """Fail if anything in the database contradicts itself."""
    as_place(where).assert_sound()
