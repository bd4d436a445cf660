"""Connections and transactions. What differs between database engines is here and nowhere else.

Two pools stand on one SQLite file. Write connections begin with `BEGIN IMMEDIATE` and commit with
`synchronous=FULL`, so that what was acknowledged is on the disk (S16). Read connections are opened
`mode=ro`: every cursor is exhausted at once, since an open one would pin an old snapshot and keep
the write-ahead log from being checkpointed.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy.dialects.sqlite import dialect as SQLiteDialect
from sqlalchemy.engine import Dialect

from registry.core.forks import Birthplace, hold_file, let_go
from registry.errors import Busy, RegistryError, StorageUnavailable
from registry.store.engine import DiskUse
from registry.store.failure_log import FailureLog
from registry.store.sqlite.address import sqlite_path
from registry.store.sqlite.connection import SQLiteConnection
from registry.store.sqlite.errors import is_damage, translated
from registry.store.sqlite.file_access import (
    changed,
    is_immutable,
    may_write,
    reading_mode,
    state_of,
)
from registry.store.sqlite.file_guard import FileGuard
from registry.store.sqlite.in_use import size_of
from registry.store.sqlite.integrity import LOOKS
from registry.store.sqlite.locks import patiently
from registry.store.sqlite.place import find_danger
from registry.store.sqlite.point_reader import SQLitePointReader
from registry.store.sqlite.pool import ConnectionPool

T = TypeVar("T")

log = logging.getLogger("registry.db")

JOURNAL_SIZE_LIMIT_BYTES = 64 << 20
CACHE_KIB = 16 << 10
CHECKPOINT_PAGES = 4000
"""The log is folded into the database after 16 MiB: pages that change often are written once."""
REPLACEMENTS_MAX = 3
REOPEN_TIMEOUT_S = 0.25
"""How long a database that was replaced may be locked when it is opened, also in an event loop."""

WRITE_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
    "PRAGMA temp_store = MEMORY",
)
READ_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA temp_store = MEMORY")


class Database:
    """A migrated SQLite database: `write()` and `read()` give connections, safe in any thread.

    When its file is deleted or replaced, nothing that goes to the old one is acknowledged any
    more; as soon as a proper database is there again, connections are opened to that.

    `clock` gives the time in milliseconds; the default is the system's. `accept` raises
    DatabaseRefused for a connection whose database cannot be used; it is asked whenever the file
    is opened anew. With `read_only` nothing is written, not even files beside it, so that it works
    wherever the file can be read; what cannot be read so is refused.

    Raises:
        DatabaseRefused: the URL is not one of a SQLite file.
    """

    reads_at_once = True
    writes_content_beside = False

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 5.0,
        clock: Callable[[], int] | None = None,
        accept: Callable[[sqlite3.Connection], None] | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = os.path.abspath(sqlite_path(url))
        self._birthplace = Birthplace("registry")
        self.busy_timeout_s = busy_timeout_s
        self.clock = clock or system_clock
        self.dialect: Dialect = SQLiteDialect(paramstyle="named")
        reading = reading_mode(Path(self.path)) if read_only else "ro"
        self._is_immutable = is_immutable(reading)
        # Only a connection that may write takes the log away when it is the last one.
        mode = "rw" if not read_only or may_write(Path(self.path)) else reading
        pragmas = READ_PRAGMAS if read_only else WRITE_PRAGMAS
        self.guard = FileGuard(
            self.path,
            lambda: self.connect(mode, pragmas, busy_timeout_s=REOPEN_TIMEOUT_S),
            accept or (lambda connection: None),
            writes=not read_only,
        )
        self.guard.on_change.append(self._close_idle)
        self.reading = FailureLog("reads")
        self._writing = FailureLog("writes")
        self._writes = self._pool("rw", WRITE_PRAGMAS)
        self._reads = self._pool(reading, READ_PRAGMAS)

    def _pool(self, mode: str, pragmas: Sequence[str]) -> ConnectionPool:
        return ConnectionPool(
            lambda generation: self.connect_to(generation, mode, pragmas), self.busy_timeout_s
        )

    def connect_to(
        self, generation: int, mode: str, pragmas: Sequence[str] = READ_PRAGMAS
    ) -> sqlite3.Connection:
        """A new connection to the files of a generation.

        Raises:
            Busy: they are just being replaced.
            StorageUnavailable: they are gone.
        """
        connection: sqlite3.Connection | None = None
        try:
            connection = self.connect(mode, pragmas)
        finally:
            # First of all: SQLite may fail just because it mixed the files of two times.
            if not self.guard.is_current(generation):
                if connection is not None:
                    connection.close()
                raise Busy(f"The database {self.path} is just being replaced. Try again.")
        return connection

    def connect(
        self,
        mode: str,
        pragmas: Sequence[str] = READ_PRAGMAS,
        *,
        busy_timeout_s: float | None = None,
    ) -> sqlite3.Connection:
        """A new connection that creates no database and waits for no lock by itself.

        It has its log open: later, the log at this path might be another database's.
        """
        self._birthplace.check()
        hold_file(self, self.path)
        patience_s = self.busy_timeout_s if busy_timeout_s is None else busy_timeout_s
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=0 if mode == "rw" else patience_s,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in (*pragmas, "PRAGMA schema_version"):
                step = functools.partial(connection.execute, pragma)
                self._patiently(step, patience_s).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def write(self) -> Iterator[SQLiteConnection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            Busy: the write lock was not to be had within `busy_timeout_s`.
            StorageUnavailable: the database cannot be written, or what was written went to a file
                that is not the database any more.
        """
        with self._writing.watching(), translated(self.path), self._begun() as (dbapi, generation):
            yield SQLiteConnection(dbapi, self.dialect, self.clock())
            dbapi.execute("COMMIT")
            if not self.guard.is_current(generation):
                raise StorageUnavailable(
                    f"The database {self.path} was replaced while it was written; the change may "
                    "not be in the one that is there now. Try again."
                )

    write_content = write

    @contextmanager
    def _begun(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A connection with a write transaction on the file that is there, once it has the lock.

        Whoever replaces a database in an orderly way holds its lock meanwhile.
        """
        for _ in range(REPLACEMENTS_MAX):
            with self._borrowed(self._writes) as (dbapi, generation), _rolled_back(dbapi):
                begin = functools.partial(dbapi.execute, "BEGIN IMMEDIATE")
                self._patiently(begin, self.busy_timeout_s)
                if self.guard.is_current(generation) and self._is_accepted(dbapi):
                    yield dbapi, generation
                    return
        raise Busy(f"The database {self.path} is just being replaced. Try again.")

    @contextmanager
    def read(self) -> Iterator[SQLiteConnection]:
        """A snapshot for a few queries that must agree. Keep it short.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        with self.reading.watching(), translated(self.path), self._snapshot() as dbapi:
            before = state_of(Path(self.path)) if self._is_immutable else None
            yield SQLiteConnection(dbapi, self.dialect, self.clock())
            if before is not None and state_of(Path(self.path)) != before:
                raise changed(Path(self.path))

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        for _ in range(REPLACEMENTS_MAX):
            with self._borrowed(self._reads) as (dbapi, _), _rolled_back(dbapi):
                dbapi.execute("BEGIN")
                if self._is_accepted(dbapi):
                    yield dbapi
                    return
        raise Busy(f"The database {self.path} is just being changed. Try again.")

    def _is_accepted(self, dbapi: sqlite3.Connection) -> bool:
        """Whether what the transaction sees has a schema that this program can use."""
        ((version,),) = dbapi.execute("PRAGMA schema_version").fetchall()
        return self.guard.accepts(version)

    @contextmanager
    def _borrowed(self, pool: ConnectionPool) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A pooled connection to the files that are there now, with its generation."""
        self._birthplace.check()
        generation = self.guard.acquire()
        try:
            with pool.borrowed(generation, lambda: generation == self.guard.generation) as dbapi:
                yield dbapi, generation
        finally:
            self.guard.release()

    def point_reader(self) -> SQLitePointReader:
        """A reader for one event loop."""
        return SQLitePointReader(
            self.path, self.guard, lambda generation: self.connect_to(generation, "ro")
        )

    def group_reader(self) -> None:
        """There is none: reads do not wait."""

    def ensure_current(self) -> None:
        """Raises StorageUnavailable unless what is open is the file that is there."""
        self.guard.ensure_current()

    @property
    def directory(self) -> str:
        """Where the file is."""
        return os.path.dirname(self.path)

    def warnings(self) -> dict[str, str]:
        """What is not as it should be about the place of the file, by name."""
        danger = find_danger(self.path)
        return {} if danger is None else {"storage": danger}

    def disk_use(self) -> DiskUse:
        """The sizes of the file and of its write-ahead log, and what this process may still write
        on their disk."""
        try:
            disk = os.statvfs(os.path.dirname(self.path))
        except OSError:
            free = None
        else:
            free = disk.f_bavail * disk.f_frsize
        return DiskUse(size_of(self.path), size_of(f"{self.path}-wal"), free)

    def find_damage(self) -> Iterator[str]:
        """A sentence for each fault of the stored pages and of the references between rows.

        What one look cannot read is a fault, and the next look goes on.
        """
        for look in LOOKS:
            with self.read() as conn:
                try:
                    yield from look(conn)
                except sqlite3.DatabaseError as error:
                    if not is_damage(error):
                        raise
                    yield f"the database file is damaged: {error}"

    def _patiently(self, step: Callable[[], T], patience_s: float) -> T:
        return patiently(step, patience_s, on_wait=self._say_that_it_waits)

    def _say_that_it_waits(self) -> None:
        log.warning("Waiting for the lock of %s, which another process holds.", self.path)

    def _close_idle(self) -> None:
        self._reads.close_idle()
        self._writes.close_idle()

    def is_damage(self, error: RegistryError) -> bool:
        """Whether an error tells something of the database, not of a shortage or a lock."""
        return is_damage(error.__cause__)

    @property
    def name(self) -> str:
        """The path of the file."""
        return self.path

    def close(self) -> None:
        """Close every connection that is not in use."""
        if self._birthplace.is_here:
            self.guard.close()
            let_go(self)


@contextmanager
def _rolled_back(dbapi: sqlite3.Connection) -> Iterator[None]:
    """Rolls back what the block has begun and not committed."""
    try:
        yield
    finally:
        if dbapi.in_transaction:
            dbapi.execute("ROLLBACK")


def system_clock() -> int:
    """UTC now in integer milliseconds."""
    return time.time_ns() // 1_000_000
