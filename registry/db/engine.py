"""Connections and transactions. What differs between database engines is here and nowhere else.

Two pools stand on one SQLite file. Write connections begin with `BEGIN IMMEDIATE` and commit with
`synchronous=FULL`, so that what was acknowledged is on the disk (S16). Read connections are opened
`mode=ro` and never begin: every cursor is exhausted at once, since an open one would pin an old
snapshot and keep the write-ahead log from being checkpointed.

SQLite's own busy handler is unfair between processes, so waiting for the lock is ours: short
random pauses until `busy_timeout_s` has passed.
"""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from typing import cast as typing_cast
from urllib.parse import quote

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Subquery,
    Text,
    bindparam,
    cast,
    create_engine,
    literal,
    literal_column,
)
from sqlalchemy import select as sql_select
from sqlalchemy.dialects.sqlite import dialect as SQLiteDialect
from sqlalchemy.engine import Dialect, Engine, make_url
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import PoolProxiedConnection, QueuePool
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import FunctionElement

from registry.errors import Busy, DatabaseRefused, RegistryError, StorageUnavailable

T = TypeVar("T")
Row = tuple[Any, ...]

SQLITE_MIN_VERSION = (3, 38, 0)
LOCK_PAUSE_S = (0.0002, 0.002)
JOURNAL_SIZE_LIMIT_BYTES = 64 << 20
CACHE_KIB = 16 << 10

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_WRITE_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    "PRAGMA temp_store = MEMORY",
)
_READ_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA temp_store = MEMORY")


class Statement:
    """A Core statement, compiled once and then run as text on the DBAPI connection.

    Its parameters are named; those with a value in the expression need not be given.
    """

    def __init__(self, clause: ClauseElement) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def compiled(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The SQL text for a dialect, and the values that the expression brings along."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._clause.compile(
                dialect=dialect, compile_kwargs={"render_postcompile": True}
            )
            fixed = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[dialect.name] = (str(compiled), fixed)
        return found


class _JsonItems(FunctionElement[str]):
    """The elements of a JSON array, a row each, in the column `value`."""

    name = "json_items"
    inherit_cache = True


@compiles(_JsonItems, "sqlite")
def _json_items_sqlite(element: _JsonItems, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_JsonItems, "postgresql")
def _json_items_postgresql(element: _JsonItems, compiler: Any, **options: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **options)} AS json))"


def json_rows(parameter: str, **columns: type[str] | type[int]) -> Subquery:
    """A list of lists as a table: one JSON parameter, so that the SQL text never changes.

    `columns` names the items of each inner list in order, with their types.
    """
    items = _JsonItems(bindparam(parameter, type_=Text)).table_valued("value", name="item")
    selected = []
    for index, (name, kind) in enumerate(columns.items()):
        column: Any = literal_column(f"item.value ->> {index}", Text)
        if kind is int:
            column = cast(column, BigInteger)
        selected.append(column.label(name))
    return sql_select(*selected).select_from(items).subquery(parameter)


def one_of(column: ColumnElement[str], *values: str) -> ColumnElement[bool]:
    """`column IN (values)` with plain parameters, which a `Statement` can compile once."""
    return column.in_([literal(value) for value in values])


class Connection:
    """A transaction, or a read: runs statements and hands back all rows.

    `now` is the time of the transaction in milliseconds, taken once (S15).
    """

    __slots__ = ("_dialect", "_execute", "now")

    def __init__(self, dbapi: Any, dialect: Dialect, now: int) -> None:
        self._execute = dbapi.execute
        self._dialect = dialect
        self.now = now

    def run(self, statement: Statement, **parameters: Any) -> list[Row]:
        """Run a statement; every row it answers."""
        text, fixed = statement.compiled(self._dialect)
        rows: list[Row] = self._execute(
            text, {**fixed, **parameters} if fixed else parameters
        ).fetchall()
        return rows

    def run_text(self, text: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> list[Row]:
        """Run SQL text; every row it answers."""
        rows: list[Row] = self._execute(text, parameters).fetchall()
        return rows


class Database:
    """A migrated SQLite database: `write()` and `read()` give connections, safe in any thread.

    `clock` gives the time in milliseconds; the default is the system's.

    Raises:
        DatabaseRefused: the URL is not one of a SQLite file.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 5.0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.path = os.path.abspath(sqlite_path(url))
        self.busy_timeout_s = busy_timeout_s
        self.clock = clock or system_clock
        self.dialect: Dialect = SQLiteDialect(paramstyle="named")
        self._writes = self._engine("rw", _WRITE_PRAGMAS)
        self._reads = self._engine("ro", _READ_PRAGMAS)

    def _engine(self, mode: str, pragmas: Sequence[str]) -> Engine:
        return create_engine(
            "sqlite://",
            creator=lambda: self.connect(mode, pragmas),
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=24,
            pool_timeout=self.busy_timeout_s,
            pool_reset_on_return=None,
        )

    def connect(self, mode: str, pragmas: Sequence[str] = _READ_PRAGMAS) -> sqlite3.Connection:
        """A new connection that creates no file and waits for no lock by itself."""
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=self.busy_timeout_s if mode == "ro" else 0,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in pragmas:
                self._patiently(functools.partial(connection.execute, pragma)).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            Busy: the write lock was not to be had within `busy_timeout_s`.
            StorageUnavailable: the database cannot be written.
        """
        with translated(), self._borrowed(self._writes) as dbapi:
            try:
                self._patiently(lambda: dbapi.execute("BEGIN IMMEDIATE"))
                yield Connection(dbapi, self.dialect, self.clock())
                dbapi.execute("COMMIT")
            except BaseException:
                if dbapi.in_transaction:
                    dbapi.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot for a few queries that must agree. Keep it short.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        with translated(), self._borrowed(self._reads) as dbapi:
            try:
                dbapi.execute("BEGIN")
                yield Connection(dbapi, self.dialect, self.clock())
            finally:
                if dbapi.in_transaction:
                    dbapi.execute("ROLLBACK")

    @contextmanager
    def _borrowed(self, engine: Engine) -> Iterator[sqlite3.Connection]:
        try:
            fairy: PoolProxiedConnection = engine.raw_connection()
        except PoolTimeout as error:
            raise Busy("Too many threads use the database; nothing was written.") from error
        try:
            yield typing_cast(sqlite3.Connection, fairy.driver_connection)
        except sqlite3.Error:
            fairy.invalidate()
            raise
        finally:
            fairy.close()

    def _patiently(self, step: Callable[[], T]) -> T:
        """Run a step that may find the database locked, until `busy_timeout_s` has passed."""
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if primary_code(error) not in _LOCKED or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(*LOCK_PAUSE_S))

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._reads.dispose()
        self._writes.dispose()


def system_clock() -> int:
    """UTC now in integer milliseconds."""
    return time.time_ns() // 1_000_000


def sqlite_path(url: str) -> str:
    """The path of the file in a `sqlite:///` URL.

    Raises:
        DatabaseRefused: it is another kind of URL, or names no file.
    """
    try:
        parsed = make_url(url)
    except Exception as error:
        raise DatabaseRefused(f"{url!r} is no database URL. Use sqlite:///PATH.") from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseRefused(
            f"This version keeps its data in SQLite; {parsed.render_as_string()} is another "
            "database. Use sqlite:///PATH."
        )
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseRefused(
            "An in-memory database would forget everything on restart. Use sqlite:///PATH."
        )
    return parsed.database


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code of an error, or None if it did not come from SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


_STORAGE_CODES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "reading or writing the disk failed; check the disk and the kernel's log",
    sqlite3.SQLITE_READONLY: "the database file is read-only; give the service's user write access",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened; check that it exists and that "
    "the service's user may read and write it and its folder",
    sqlite3.SQLITE_PERM: "the database file may not be opened; check its permissions",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; restore a backup",
    sqlite3.SQLITE_NOMEM: "the machine is out of memory",
}


@contextmanager
def translated() -> Iterator[None]:
    """Driver errors become ours here, by result code."""
    try:
        yield
    except sqlite3.Error as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


def translate(error: sqlite3.Error) -> RegistryError | None:
    """Our error for a driver's, or None where it means a mistake of ours."""
    code = primary_code(error)
    if code in _LOCKED:
        return Busy("The database is locked by another writer; nothing was written. Try again.")
    if code in _STORAGE_CODES:
        name = getattr(error, "sqlite_errorname", "")
        return StorageUnavailable(f"The database cannot be used: {_STORAGE_CODES[code]} ({name}).")
    return None
