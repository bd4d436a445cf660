"""Connections to the server that are kept open between transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Any

import psycopg

from registry.errors import Busy

KEPT_MAX = 4
"""As many connections stay open while nobody uses them."""
OPEN_MAX = 16

Session = psycopg.Connection[Any]


class SessionPool:
    """At most OPEN_MAX connections, opened when they are needed by `connect`. Whoever finds all in
    use waits `timeout_s`."""

    def __init__(self, connect: Callable[[], Session], timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._places = BoundedSemaphore(OPEN_MAX)
        self._lock = Lock()
        self._idle: list[Session] = []

    @contextmanager
    def borrowed(self, begin: Callable[[Session], None]) -> Iterator[Session]:
        """A connection on which a transaction was begun. It is kept for others afterwards, unless
        it is in a transaction still, or broken.

        One that was idle may have died unnoticed, with its server: then all idle ones are let go,
        and a new one is opened.

        Raises:
            Busy: all connections are in use.
        """
        if not self._places.acquire(timeout=self._timeout_s):
            raise Busy("Too many threads use the database; nothing was written.")
        try:
            session = self._begun(begin)
            try:
                yield session
            finally:
                self._give_back(session)
        finally:
            self._places.release()

    def _begun(self, begin: Callable[[Session], None]) -> Session:
        session = self._take()
        if session is not None:
            try:
                begin(session)
            except psycopg.OperationalError:
                is_dead = session.closed
                self._give_back(session)
                if not is_dead:
                    raise
                self.close_idle()
            except BaseException:
                self._give_back(session)
                raise
            else:
                return session
        session = self._connect()
        try:
            begin(session)
        except BaseException:
            self._give_back(session)
            raise
        return session

    def close_idle(self) -> None:
        """Close every connection that is not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self) -> Session | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_back(self, session: Session) -> None:
        is_idle = session.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if is_idle and len(self._idle) < KEPT_MAX:
                self._idle.append(session)
                return
        session.close()
