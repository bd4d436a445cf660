"""The held connection of an event loop's point reads.

Whether anybody has committed is seen in the header of the log's index. Where the system does not
tell where that is, `PRAGMA data_version` is asked, which takes and gives back a lock: it changes
for a connection when any other one commits, whichever process that is in.
"""

from __future__ import annotations

import os
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
from registry.store.sqlite.wal_index import Header, find_header

LOOK_EVERY_S = 0.5
"""How long reads may go on from a file that was deleted or replaced."""


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
        self._header: Header | None = None
        """It goes with the connection."""
        self._lock = Lock()
        """Held while the connection is used: another thread may have to close it."""
        self._generation = -1
        self._seen: bytes | int = 0
        self._token = 0
        self._look_again_at = 0.0
        self._failures = FailureLog("look-ups of files")
        guard.on_change.append(self.close)

    def change_token(self) -> int:
        """Another number once anything was committed since, by whichever process."""
        try:
            if monotonic() >= self._look_again_at:
                self._look_again()
            with self._lock:
                seen = self._data_version() if self._header is None else self._header.raw
                if seen != self._seen:
                    self._seen = seen
                    self._token += 1
                return self._token
        except (sqlite3.Error, StorageUnavailable) as error:
            self._fail(error)

    def run(self, text: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Run the text of a compiled statement; every row it answers."""
        try:
            with self._lock:
                return self._held().execute(text, parameters).fetchall()
        except sqlite3.Error as error:
            self._fail(error)

    def _data_version(self) -> int:
        ((version,),) = self._held().execute("PRAGMA data_version").fetchall()
        return int(version)

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
            self._data_version()  # Its index is open now.
            self._header = find_header(os.path.realpath(self._path))
            self._token += 1  # Each connection counts from its own start.

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
            connection, self._connection, self._header = self._connection, None, None
            self._look_again_at = 0.0
            if connection is not None:
                connection.close()
        if connection is not None:
            self._guard.release()
