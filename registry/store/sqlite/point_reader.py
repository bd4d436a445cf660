"""The held connection of an event loop's point reads.

Whether anybody has committed is asked of `PRAGMA data_version`: it changes for a connection when
any other one commits, whichever process that is in, and costs a few microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from threading import Lock
from time import monotonic
from typing import Any, NoReturn

from registry.errors import Busy, StorageUnavailable
from registry.store.failure_log import FailureLog
from registry.store.sql import Row
from registry.store.sqlite.errors import translate
from registry.store.sqlite.file_guard import FileGuard

LOOK_EVERY_S = 0.5
"""How long reads may go on from a file that was deleted or replaced."""
TOKENS_PER_CONNECTION = 1 << 40


class SQLitePointReader:
    """See `store.engine.PointReader`. `connect` opens a connection to a
    generation of the files."""

    def __init__(
        self, path: str, guard: FileGuard, connect: Callable[[int], sqlite3.Connection]
    ) -> None:
        self._path = path
        self._guard = guard
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock = Lock()
        """Held while the connection is used: another thread may have to close it."""
        self._generation = -1
        self._first_token = 0
        self._look_again_at = 0.0
        self._failures = FailureLog("look-ups of files")
        guard.on_change.append(self.close)

    def change_token(self) -> int:
        """Another number once anything was committed since, by whichever process."""
        try:
            if monotonic() >= self._look_again_at:
                self._look_again()
            with self._lock:
                connection = self._connection or self._held()
                ((version,),) = connection.execute("PRAGMA data_version").fetchall()
                return self._first_token + int(version)
        except (sqlite3.Error, StorageUnavailable) as error:
            self._fail(error)

    def run(self, text: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Run the text of a compiled statement; every row it answers."""
        try:
            with self._lock:
                return self._held().execute(text, parameters).fetchall()
        except sqlite3.Error as error:
            self._fail(error)

    def _held(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Busy("The database is just being opened anew. Try again.")
        return self._connection

    def _look_again(self) -> None:
        """See to it that the connection is to the file that is there now."""
        if (
            self._connection is None
            or self._guard.ensure_current() != self._generation
            or not self._is_accepted()
        ):
            self.close()
            self._open()
        self._look_again_at = monotonic() + LOOK_EVERY_S
        self._failures.worked()

    def _is_accepted(self) -> bool:
        """Whether the schema is still one that this program can use."""
        with self._lock:
            ((version,),) = self._held().execute("PRAGMA schema_version").fetchall()
        return self._guard.accepts(version)

    def _open(self) -> None:
        generation = self._guard.acquire()
        try:
            connection = self._connect(generation)
        except BaseException:
            self._guard.release()
            raise
        with self._lock:
            self._connection, self._generation = connection, generation
            # Each connection counts from its own start.
            self._first_token += TOKENS_PER_CONNECTION

    def _fail(self, error: sqlite3.Error | StorageUnavailable) -> NoReturn:
        """Look at the file before anything is read again."""
        self.close()
        ours = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
        if isinstance(ours, StorageUnavailable):
            self._failures.failed(ours)
        if ours is None or ours is error:
            raise error
        raise ours from error

    def close(self) -> None:
        """Close the held connection; the next read opens another. Safe in any thread."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._look_again_at = 0.0
            if connection is not None:
                connection.close()
        if connection is not None:
            self._guard.release()
