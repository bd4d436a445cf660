"""Transactions on PostgreSQL, which several replicas share. What differs between database engines
is in this package and nowhere else.

One write lock, an advisory one, orders the writers of all replicas: so the same operations run as
on one machine, with the same ids, the same order of the journal, and no deadlock. Everything is
committed where the server says so (S16); what it does not confirm is told as not known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
from psycopg.types.numeric import Int8Dumper
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Dialect

from registry.core.forks import Birthplace, hold, let_go
from registry.errors import Busy, DatabaseRefused, RegistryError, StorageUnavailable
from registry.store.engine import DiskUse
from registry.store.failure_log import FailureLog
from registry.store.postgresql.address import conninfo_of, place_of
from registry.store.postgresql.connection import (
    NUMBERED,
    READ_IDS,
    Notices,
    PostgreSQLConnection,
)
from registry.store.postgresql.errors import (
    ends_connection,
    is_damage,
    outcome_unknown,
    translated,
)
from registry.store.postgresql.group_reader import PostgreSQLGroupReader
from registry.store.postgresql.locks import WRITE_LOCK
from registry.store.postgresql.pool import Session, SessionPool
from registry.store.postgresql.server import ServerLooks, check_server
from registry.store.postgresql.watchdog import Watchdog

STATEMENTS_KEPT = 300
WRITE_TIMEOUT_S = 60
HALTED_TIMEOUT_S = 5
"""How long a writer that was halted keeps the lock from all others."""
READ_TIMEOUT_S = 120
READ_HALTED_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 5
"""For a table that somebody else has locked, as LOCK TABLE and ALTER TABLE do."""

_CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# A statement that was planned while its tables were small keeps its plan. With the plans of large
# tables it is right for all; JIT would be woken by their price.
_PLANS = "".join(
    f"SET LOCAL {name} = off; "
    for name in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")
)
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', true) "
    "WHERE current_setting('synchronous_commit') = 'off'; "
)
"""Where the server confirms what is not on its disk yet, it does not so for us."""
_BEGIN_CONTENT = (
    f"BEGIN; {_DURABLE}SET LOCAL statement_timeout = '{WRITE_TIMEOUT_S}s'; SELECT {_CLOCK}"
)
_BEGIN_READ = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
    f"SET LOCAL statement_timeout = '{READ_TIMEOUT_S}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{READ_HALTED_TIMEOUT_S}s'; "
    f"SET LOCAL jit = off; SELECT {_CLOCK}"
)

_Status = psycopg.pq.TransactionStatus


class PostgreSQLDatabase:
    """A migrated PostgreSQL database: see `store.engine.Engine`.

    `clock` gives the time in milliseconds; the default is the server's, so that replicas agree.
    `accept` raises DatabaseRefused for a connection whose database cannot be used; it is asked of
    every new connection.

    Raises:
        DatabaseRefused: the URL is not one of a PostgreSQL database.
    """

    reads_at_once = False
    writes_content_beside = True

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 5.0,
        clock: Callable[[], int] | None = None,
        accept: Callable[[Session], None] | None = None,
    ) -> None:
        self._conninfo = conninfo_of(url)
        self._place = place_of(url)
        self._birthplace = Birthplace("registry")
        self.busy_timeout_s = busy_timeout_s
        self.clock = clock or system_clock
        self._has_clock = clock is not None
        self.dialect: Dialect = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]
        self._accept = accept or (lambda session: None)
        self._watchdog = Watchdog()
        self._begin_write = (
            f"BEGIN ISOLATION LEVEL READ COMMITTED; {_PLANS}"
            f"SET LOCAL lock_timeout = '{int(busy_timeout_s * 1000)}ms'; "
            f"SET LOCAL statement_timeout = '{WRITE_TIMEOUT_S}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{HALTED_TIMEOUT_S}s'; "
            f"{_DURABLE}SELECT pg_advisory_xact_lock({WRITE_LOCK}); SELECT {_CLOCK}, {READ_IDS}"
        )
        self._reading = FailureLog("reads")
        self._writing = FailureLog("writes")
        self._writes = SessionPool(partial(self._connect, prepares=True), busy_timeout_s)
        self._reads = SessionPool(self._connect, busy_timeout_s)
        self._looks = ServerLooks(WRITE_LOCK)

    def _connect(self, *, prepares: bool = False) -> Session:
        """A new connection to the server that takes writes. With `prepares`, every statement is
        planned once; else each time, for the tables as they are then.

        Raises:
            StorageUnavailable: the server or its database cannot be worked with.
        """
        self._birthplace.check()
        hold(self)
        threshold = 0 if prepares else None
        session = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=threshold)
        try:
            session.prepared_max = STATEMENTS_KEPT
            # Else an int is sent as int2, int4 or int8 by its value: three statements of each.
            session.adapters.register_dumper(int, Int8Dumper)
            with self._watchdog.watching(session):
                session.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
                check_server(session, self._place)
                self._accept(session)
        except DatabaseRefused as error:
            session.close()
            raise StorageUnavailable(error.detail) from error
        except BaseException:
            session.close()
            raise
        return session

    @contextmanager
    def write(self) -> Iterator[PostgreSQLConnection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            Busy: the write lock was not to be had within `busy_timeout_s`.
            StorageUnavailable: the database cannot be written, or did not confirm it.
        """
        begun: list[Any] = []
        with (
            self._writing.watching(),
            translated(self._place),
            self._writes.borrowed(partial(self._begin, self._begin_write, begun)) as session,
            self._rolled_back(session),
        ):
            now, *ids = begun
            conn = PostgreSQLConnection(
                session,
                self.dialect,
                self._watchdog,
                self.clock() if self._has_clock else now,
                ids=dict(zip(NUMBERED, ids, strict=True)),
            )
            yield conn
            self._commit(session, conn)

    @contextmanager
    def write_content(self) -> Iterator[PostgreSQLConnection]:
        """As `write`, for uploads alone, beside whoever has the write lock.

        Raises:
            Busy: another upload of the same content came first.
            StorageUnavailable: the database cannot be written, or did not confirm it.
        """
        begun: list[Any] = []
        with (
            self._writing.watching(),
            translated(self._place),
            self._writes.borrowed(partial(self._begin, _BEGIN_CONTENT, begun)) as session,
            self._rolled_back(session),
        ):
            now = self.clock() if self._has_clock else begun[0]
            conn = PostgreSQLConnection(session, self.dialect, self._watchdog, now)
            try:
                yield conn
                self._commit(session, conn)
            except psycopg.errors.UniqueViolation as error:
                raise Busy("Somebody else just uploaded the same content. Try again.") from error

    def _commit(self, session: Session, conn: PostgreSQLConnection) -> None:
        notices = Notices(session)
        try:
            conn.commit()
        except psycopg.Error as error:
            if ends_connection(error):
                raise outcome_unknown(self._place, "the connection broke at the COMMIT") from error
            raise
        finally:
            notices.close()
        if notices.warnings:
            raise outcome_unknown(self._place, f"the server warned: {notices.warnings[0]}")

    @contextmanager
    def read(self) -> Iterator[PostgreSQLConnection]:
        """A snapshot for a few queries that must agree. Keep it short.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        begun: list[Any] = []
        with (
            self._reading.watching(),
            translated(self._place),
            self._reads.borrowed(partial(self._begin, _BEGIN_READ, begun)) as session,
            self._rolled_back(session),
        ):
            now = self.clock() if self._has_clock else begun[0]
            yield PostgreSQLConnection(session, self.dialect, self._watchdog, now)

    @contextmanager
    def _rolled_back(self, session: Session) -> Iterator[None]:
        """Rolls back what the block has begun and not committed."""
        try:
            yield
        finally:
            if session.pgconn.transaction_status in (_Status.INTRANS, _Status.INERROR):
                with suppress(psycopg.Error), self._watchdog.watching(session):
                    session.execute("ROLLBACK", prepare=False)

    def _begin(self, text: str, found: list[Any], session: Session) -> None:
        """Begin a transaction by several statements in one trip; `found` gets the last's row."""
        self._birthplace.check()
        with self._watchdog.watching(session):
            cursor = session.execute(text, prepare=False)
            while cursor.nextset():
                pass
            found[:] = cursor.fetchone() or ()

    def point_reader(self) -> None:
        """There is none: reads wait for the server."""

    def group_reader(self) -> PostgreSQLGroupReader:
        """A reader for one event loop."""
        return PostgreSQLGroupReader(self._connect, self._place, self._watchdog)

    def ensure_current(self) -> None:
        """Raises StorageUnavailable unless the server is one that can be written, and the lock of
        its writers is a real one."""
        begin = partial(self._begin, "BEGIN READ ONLY; SELECT 1", [])
        with (
            translated(self._place),
            self._reads.borrowed(begin) as session,
            self._rolled_back(session),
            self._watchdog.watching(session),
        ):
            self._accept(session)
            session.execute("ROLLBACK", prepare=False)
            self._looks.look(session, self._connect, self._watchdog)

    @property
    def name(self) -> str:
        """The address without its password."""
        return self._place

    @property
    def directory(self) -> None:
        """The database is on no disk of this process."""

    def warnings(self) -> dict[str, str]:
        """What is not as it should be about the server, by name."""
        return self._looks.warnings()

    def disk_use(self) -> DiskUse:
        """The size of the database. What is free on the server's disk it does not say."""
        with self.read() as conn:
            ((size,),) = conn.run_text("SELECT pg_database_size(current_database())")
        return DiskUse(size, 0, None)

    def find_damage(self) -> Iterator[str]:
        """A sentence for what the server has found wrong with the pages of the database, where it
        keeps checksums of them."""
        with self.read() as conn:
            rows = conn.run_text(
                "SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()"
            )
        for (failures,) in rows:
            if failures:
                yield f"the server found {failures} pages of the database damaged"

    def is_damage(self, error: RegistryError) -> bool:
        """Whether an error tells something of the database, not of a shortage or a lock."""
        return is_damage(error.__cause__)

    def close(self) -> None:
        """Close every connection that is not in use."""
        if self._birthplace.is_here:
            self._writes.close_idle()
            self._reads.close_idle()
            let_go(self)


def system_clock() -> int:
    """UTC now in integer milliseconds, as this machine has it."""
    return time.time_ns() // 1_000_000
