"""Point reads of one event loop, in groups: all that arrive while a query is under way go into the
next one. Never into the one under way, which may not see what was committed since it began.

The driver's own wrapper of libpq is used (`psycopg.pq`), since a query costs less than half of what
it costs through a cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import psycopg
from psycopg import pq

from registry.core.forks import hold
from registry.errors import StorageUnavailable
from registry.store.failure_log import FailureLog
from registry.store.postgresql.errors import ends_connection, translate
from registry.store.postgresql.pool import Session
from registry.store.postgresql.watchdog import PATIENCE_S, Watchdog
from registry.store.sql import as_rows

GROUP_MAX = 1000
SETTINGS = (
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; "
    "SET jit = off; SET statement_timeout = '3s'"
)
"""The plans of large tables, as they are for writers."""

Values = list[bytes | None]
_Key = Sequence[str]
_Waiting = tuple[_Key, "asyncio.Future[Values | None]"]


class PostgreSQLGroupReader:
    """See `store.engine.GroupReader`. It opens its connection when it is needed."""

    def __init__(self, connect: Callable[[], Session], name: str, watchdog: Watchdog) -> None:
        self._connect_anew = connect
        self._name = name
        self._watchdog = watchdog
        self._loop: asyncio.AbstractEventLoop | None = None
        """Remembered: to ask for it is a call of the system."""
        self._texts: list[bytes] = []
        self._coming: list[deque[_Waiting]] = []
        """Who waits to be asked for, by query."""
        self._query = 0
        """The query that is asked for, or was asked for last."""
        self._asked: list[_Waiting] = []
        """Who is asked for now."""
        self._session: Session | None = None
        self._descriptor = -1
        """Its socket, which libpq does not tell any more once the connection broke."""
        self._has_answered = False
        """Whether the connection has served anybody: one that dies then may be opened anew."""
        self._opening: asyncio.Task[None] | None = None
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._failures = FailureLog("look-ups of files")

    def prepare(self, text: str) -> int:
        """Note a query that takes a list of rows as its only parameter, of which the first item is
        the row's number, and answers rows with that number first. Its own number."""
        self._texts.append(text.encode())
        self._coming.append(deque())
        return len(self._texts) - 1

    def find(self, query: int, key: _Key) -> asyncio.Future[Values | None]:
        """The columns that a query answers for a key, as the server spells them, or None: there is
        no row.

        Raises, when it is awaited:
            StorageUnavailable: the database cannot be read.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Values | None] = loop.create_future()
        self._coming[query].append((key, future))
        if not self._is_due:  # Whoever comes in this round of the loop comes along.
            self._is_due = True
            loop.call_soon(self._ask)
        return future

    def _ask(self) -> None:
        """Send a group, unless one is under way; then the next goes out behind it."""
        self._is_due = False
        if self._asked or self._opening is not None or not any(self._coming):
            return
        loop = asyncio.get_running_loop()
        if self._session is None:
            self._opening = loop.create_task(self._open())
            return
        # In turn: of one kind there may always be some who wait.
        kinds = len(self._coming)
        turns = ((self._query + step) % kinds for step in range(1, kinds + 1))
        query = next(number for number in turns if self._coming[number])
        coming = self._coming[query]
        self._asked = [coming.popleft() for _ in range(min(len(coming), GROUP_MAX))]
        self._query = query
        rows = as_rows([[number, *key] for number, (key, _) in enumerate(self._asked)])
        pgconn = self._session.pgconn
        try:
            pgconn.send_query_prepared(b"q%d" % query, [rows.encode()])
            if pgconn.flush():
                loop.add_writer(self._descriptor, self._flush)
        except psycopg.Error as error:
            self._lost(error)
            return
        self._timer = loop.call_later(PATIENCE_S, self._give_up)

    def _flush(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            if not session.pgconn.flush():
                asyncio.get_running_loop().remove_writer(self._descriptor)
        except psycopg.Error as error:
            self._lost(error)

    def _readable(self) -> None:
        session = self._session
        if session is None:
            return
        pgconn = session.pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    break
                if result.status == pq.ExecStatus.TUPLES_OK:
                    self._answer(result)
                else:
                    self._refused(result)
        except psycopg.Error as error:
            self._lost(error)

    def _answer(self, result: pq.abc.PGresult) -> None:
        asked = self._taken()
        found: list[Values | None] = [None] * len(asked)
        columns = range(1, result.nfields)
        value = result.get_value
        for row in range(result.ntuples):
            found[int(value(row, 0) or 0)] = [value(row, column) for column in columns]
        for (_, future), values in zip(asked, found, strict=True):
            if not future.done():
                future.set_result(values)
        self._has_answered = True
        self._failures.worked()
        self._next()

    def _refused(self, result: pq.abc.PGresult) -> None:
        """The server answered with an error: for all that were asked for."""
        error = psycopg.errors.error_from_result(result)
        if not self._asked or ends_connection(error):
            self._lost(error)
            return
        self._fail(self._taken(), error)
        self._next()

    def _taken(self) -> list[_Waiting]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asked, self._asked = self._asked, []
        return asked

    def _next(self) -> None:
        if not self._is_due and any(self._coming):
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _give_up(self) -> None:
        """Nothing came for long: the server hangs, or the way to it is cut."""
        self._timer = None
        self._has_answered = False
        self._lost(psycopg.OperationalError(f"it was silent for {PATIENCE_S:g} s"))

    def _lost(self, error: psycopg.Error) -> None:
        """The connection is gone. Who was asked for is asked for again on a new one, if this one
        has ever answered."""
        query, asked, again = self._query, self._taken(), self._has_answered
        self.close()
        if again:
            self._coming[query].extendleft(reversed(asked))
        else:
            self._fail(asked, error)
        self._next()

    def _fail(self, waiting: Iterable[_Waiting], error: BaseException) -> None:
        ours: BaseException = error
        if isinstance(error, psycopg.Error):
            ours = translate(error, self._name) or error
        if isinstance(ours, StorageUnavailable):
            self._failures.failed(ours)
        for _, future in waiting:
            if not future.done():
                future.set_exception(ours)

    # Opening and closing

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            session = await loop.run_in_executor(None, self._connect)
        except Exception as error:
            self._opening = None
            for coming in self._coming:
                waiting = list(coming)
                coming.clear()
                self._fail(waiting, error)
            return
        self._opening = None
        self._session, self._has_answered = session, False
        self._descriptor = session.pgconn.socket
        loop.add_reader(self._descriptor, self._readable)
        self._ask()

    def _connect(self) -> Session:
        """In a thread: a connection that is ready for the queries."""
        hold(self)
        session = self._connect_anew()
        try:
            with self._watchdog.watching(session):
                session.execute(SETTINGS)
                for number, text in enumerate(self._texts):
                    result = session.pgconn.prepare(b"q%d" % number, text)
                    if result.status != pq.ExecStatus.COMMAND_OK:
                        raise psycopg.errors.error_from_result(result)
            session.pgconn.nonblocking = 1
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        session, self._session = self._session, None
        if session is not None:
            loop = asyncio.get_running_loop()
            loop.remove_writer(self._descriptor)
            loop.remove_reader(self._descriptor)
            session.close()
