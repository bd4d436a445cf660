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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from typing import cast as typing_cast
from urllib.parse import quote

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
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
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import FunctionElement

from registry.errors import Busy, DatabaseRefused, StorageUnavailable
from registry.store.sqlite.errors import LOCKED, Trouble, primary_code, translated
from registry.store.sqlite.file_guard import Presence

T = TypeVar("T")
Row = tuple[Any, ...]

SQLITE_MIN_VERSION = (3, 38, 0)
LOCK_PAUSE_S = (0.0002, 0.002)
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


def as_rows(rows: Iterable[Any]) -> str:
    """Lists as the JSON parameter that `json_rows` takes."""
    return _encode(rows if isinstance(rows, list) else list(rows)).decode()


_encode = msgspec.json.Encoder().encode


def one_of(column: ColumnElement[str], *values: str) -> ColumnElement[bool]:
    """`column IN (values)` with plain parameters, which a `Statement` can compile once."""
    return column.in_([literal(value) for value in values])


class Connection:
    """A transaction, or a read: runs statements and hands back all rows.

    `now` is the time of the transaction in milliseconds, taken once (S15).
    """

    __slots__ = ("_dbapi", "_dialect", "_execute", "now")

    def __init__(self, dbapi: Any, dialect: Dialect, now: int) -> None:
        self._dbapi = dbapi
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

    def read_part(
        self, column: Column[Any], key: Column[Any], value: str, offset: int, length: int
    ) -> bytes | None:
        """A part of the content of one row, or None: no row has this key.

        Only the part comes into memory. (SQLite's `substr` would load all of the content.)
        """
        table = str(column.table)
        query = f"SELECT rowid FROM {table} WHERE {key.name} = ?"
        rows = self._execute(query, (value,)).fetchall()
        if not rows:
            return None
        with self._dbapi.blobopen(table, column.name, rows[0][0], readonly=True) as content:
            content.seek(min(offset, len(content)))
            part: bytes = content.read(length)
            return part


class Database:
    """A migrated SQLite database: `write()` and `read()` give connections, safe in any thread.

    When its file is deleted or replaced, nothing that goes to the old one is acknowledged any
    more; as soon as a proper database is there again, connections are opened to that.

    `clock` gives the time in milliseconds; the default is the system's. `accept` raises
    DatabaseRefused for a connection whose database cannot be used; it is asked whenever the file
    is opened anew.

    Raises:
        DatabaseRefused: the URL is not one of a SQLite file.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 5.0,
        clock: Callable[[], int] | None = None,
        accept: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = os.path.abspath(sqlite_path(url))
        self.busy_timeout_s = busy_timeout_s
        self.clock = clock or system_clock
        self.dialect: Dialect = SQLiteDialect(paramstyle="named")
        self.presence = Presence(
            self.path,
            lambda: self.connect("rw", WRITE_PRAGMAS, busy_timeout_s=REOPEN_TIMEOUT_S),
            accept or (lambda connection: None),
        )
        self.presence.on_change.append(self._close_idle)
        self.reading = Trouble("reads")
        self._writing = Trouble("writes")
        self._writes = self._engine("rw", WRITE_PRAGMAS)
        self._reads = self._engine("ro", _READ_PRAGMAS)

    def _engine(self, mode: str, pragmas: Sequence[str]) -> Engine:
        def connect(record: ConnectionPoolEntry) -> sqlite3.Connection:
            generation = record.info["generation"] = self.presence.generation
            return self.connect_to(generation, mode, pragmas)

        return create_engine(
            "sqlite://",
            creator=connect,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=24,
            pool_timeout=self.busy_timeout_s,
            pool_reset_on_return=None,
        )

    def connect_to(
        self, generation: int, mode: str, pragmas: Sequence[str] = _READ_PRAGMAS
    ) -> sqlite3.Connection:
        """A new connection to the files of a generation.

        Raises:
            Busy: they are just being replaced.
            StorageUnavailable: they are gone.
        """
        connection = self.connect(mode, pragmas)
        try:
            if not self.presence.holds(generation):
                raise Busy(f"The database {self.path} is just being replaced. Try again.")
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(
        self,
        mode: str,
        pragmas: Sequence[str] = _READ_PRAGMAS,
        *,
        busy_timeout_s: float | None = None,
    ) -> sqlite3.Connection:
        """A new connection that creates no database and waits for no lock by itself.

        It has its log open: later, the log at this path might be another database's.
        """
        patience_s = self.busy_timeout_s if busy_timeout_s is None else busy_timeout_s
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=patience_s if mode == "ro" else 0,
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
    def write(self) -> Iterator[Connection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            Busy: the write lock was not to be had within `busy_timeout_s`.
            StorageUnavailable: the database cannot be written, or what was written went to a file
                that is not the database any more.
        """
        with _watched(self._writing), translated(), self._begun() as (dbapi, generation):
            yield Connection(dbapi, self.dialect, self.clock())
            dbapi.execute("COMMIT")
            if not self.presence.holds(generation):
                raise StorageUnavailable(
                    f"The database {self.path} was replaced while it was written; the change may "
                    "not be in the one that is there now. Try again."
                )

    @contextmanager
    def _begun(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A connection with a write transaction on the file that is there, once it has the lock.

        Whoever replaces a database in an orderly way holds its lock meanwhile.
        """
        for _ in range(REPLACEMENTS_MAX):
            with self._borrowed(self._writes) as (dbapi, generation), _rolled_back(dbapi):
                begin = functools.partial(dbapi.execute, "BEGIN IMMEDIATE")
                self._patiently(begin, self.busy_timeout_s)
                if self.presence.holds(generation):
                    yield dbapi, generation
                    return
        raise Busy(f"The database {self.path} is just being replaced. Try again.")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot for a few queries that must agree. Keep it short.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        with (
            _watched(self.reading),
            translated(),
            self._borrowed(self._reads) as (dbapi, _),
            _rolled_back(dbapi),
        ):
            dbapi.execute("BEGIN")
            yield Connection(dbapi, self.dialect, self.clock())

    @contextmanager
    def _borrowed(self, engine: Engine) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A pooled connection to the files that are there now, with its generation."""
        generation = self.presence.enter()
        try:
            fairy = _checked_out(engine, generation)
            try:
                yield typing_cast(sqlite3.Connection, fairy.driver_connection), generation
            except sqlite3.Error:
                fairy.invalidate()
                raise
            finally:
                if generation != self.presence.generation and fairy.is_valid:
                    fairy.invalidate()
                fairy.close()
        finally:
            self.presence.leave()

    def _patiently(self, step: Callable[[], T], patience_s: float) -> T:
        """Run a step that may find the database locked, until so much time has passed."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if primary_code(error) not in LOCKED or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(*LOCK_PAUSE_S))

    def _close_idle(self) -> None:
        self._reads.dispose()
        self._writes.dispose()

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.presence.close()


def _checked_out(engine: Engine, generation: int) -> PoolProxiedConnection:
    """A connection of a generation; older ones in the pool are closed."""
    while True:
        try:
            fairy = engine.raw_connection()
        except PoolTimeout as error:
            raise Busy("Too many threads use the database; nothing was written.") from error
        if fairy.info["generation"] == generation:
            return fairy
        fairy.invalidate()
        fairy.close()


@contextmanager
def _watched(trouble: Trouble) -> Iterator[None]:
    """Puts in the log what storage does to the block."""
    try:
        yield
    except StorageUnavailable as error:
        trouble.failed(error)
        raise
    trouble.worked()


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
