"""Connections that are kept open between transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock

from registry.errors import Busy

KEPT_MAX = 8
"""As many connections stay open while nobody uses them."""
OPEN_MAX = 32


class ConnectionPool:
    """Connections to one generation of a database's files at a time, see file_guard.py.

    `connect` opens one to a generation. Whoever finds all in use waits `timeout_s`.
    """

    def __init__(self, connect: Callable[[int], sqlite3.Connection], timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._places = BoundedSemaphore(OPEN_MAX)
        self._lock = Lock()
        self._idle: list[tuple[int, sqlite3.Connection]] = []

    @contextmanager
    def borrowed(
        self, generation: int, is_current: Callable[[], bool]
    ) -> Iterator[sqlite3.Connection]:
        """A connection to a generation. It is kept for others afterwards, unless SQLite raised an
        error in the block, or the generation is not current any more.

        Raises:
            Busy: all connections are in use.
        """
        if not self._places.acquire(timeout=self._timeout_s):
            raise Busy("Too many threads use the database; nothing was written.")
        try:
            connection = self._take(generation) or self._connect(generation)
            is_sound = True
            try:
                yield connection
            except sqlite3.Error:
                is_sound = False
                raise
            finally:
                if not (is_sound and is_current() and self._keep(generation, connection)):
                    connection.close()
        finally:
            self._places.release()

    def close_idle(self) -> None:
        """Close every connection that is not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _take(self, generation: int) -> sqlite3.Connection | None:
        """The connection that was used last; those of older generations are closed."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                kept_generation, connection = self._idle.pop()
            if kept_generation == generation:
                return connection
            connection.close()

    def _keep(self, generation: int, connection: sqlite3.Connection) -> bool:
        with self._lock:
            if len(self._idle) >= KEPT_MAX:
                return False
            self._idle.append((generation, connection))
            return True
