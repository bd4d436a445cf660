"""Whether the files at a database's path are still those that its connections have open.

SQLite goes on writing to a file that was deleted or replaced, and nobody would see those rows
again. A `Presence` knows the files by device and inode, and holds one connection, so that no other
process takes the database for unused. Who writes asks before and after whether the files are still
the same. When they are not, all connections are closed, and new ones are opened once a proper
database is there: the connections of one such time are a generation.

Three files make a database: the file itself, its write-ahead log and the log's index. A log that
is removed would take along what was committed since the last checkpoint, and a log that is left
over beside another database would be mixed into that one. Both are mended here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from registry.errors import Busy, DatabaseRefused, RegistryError, StorageUnavailable
from registry.store.sqlite.errors import translate

WAL_SUFFIX = "-wal"
SHM_SUFFIX = "-shm"
REPEATED_AFTER_S = 1.0
"""A database that could not be opened is not tried again for this long."""
RETURNED_WITHIN_S = 0.25
"""How long connections that are in use are waited for before a database is opened anew."""
CHECKPOINT_S = 1.0

FileId = tuple[int, int]

log = logging.getLogger("registry.db")


class Files(NamedTuple):
    """What lies at a database's path: device and inode of each file, None where there is none."""

    database: FileId
    wal: FileId | None
    shm: FileId | None


@dataclass(slots=True)
class _Held:
    """The connection of a generation and its files, or None and what was there last."""

    connection: sqlite3.Connection | None
    files: Files
    size: int


class Presence:
    """The files of one database, watched by one process. Safe in any thread.

    `connect` opens a connection that may write, and its log. `accept` raises DatabaseRefused for
    one whose database this program cannot use.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        accept: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.generation = 0
        self.on_change: list[Callable[[], None]] = []
        """Each closes connections of the last generation that are not in use."""
        self._path = path
        self._real_path = os.path.realpath(path)
        self._connect = connect
        self._accept = accept
        self._returned = threading.Condition()
        self._lent = 0
        self._is_renewing = False
        self._held: _Held | None = None
        self._refusal: RegistryError | None = None
        self._refused_until = float("-inf")

    def enter(self) -> int:
        """Make sure that what is there can be used, and announce a connection to it; its
        generation. To be followed by `leave` when the connection is closed or not in use.

        Raises:
            StorageUnavailable: no database is there that this program can use.
            Busy: what is there is locked, or just being replaced.
        """
        while True:
            generation = self.require()
            with self._returned:
                if generation == self.generation and not self._is_renewing:
                    self._lent += 1
                    return generation

    def leave(self) -> None:
        """A connection that was announced is closed, or not in use any more."""
        with self._returned:
            self._lent -= 1
            self._returned.notify_all()

    def require(self) -> int:
        """The generation whose connections are on the files that are there now.

        Raises:
            StorageUnavailable, Busy: as `enter`.
        """
        generation = self.generation
        if not self.holds(generation):
            with self._returned:
                if not self.holds(self.generation):
                    self._renew()
                generation = self.generation
        return generation

    def holds(self, generation: int) -> bool:
        """Whether the files are still those of a generation, and the database was not cut.

        Raises:
            StorageUnavailable: nothing is there.
        """
        held = self._held
        if held is None or held.connection is None or generation != self.generation:
            return False
        files, size = self._look()
        if files != held.files or size < held.size:
            return False
        held.size = size
        return True

    def close(self) -> None:
        """Let go of the database."""
        with self._returned:
            self._let_go()
            self._held = None

    def _look(self) -> tuple[Files, int]:
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            raise StorageUnavailable(
                f"The database {self._path} is gone. Put it back, or restore a backup: "
                "`metadata-registry db restore FILE`. A running service then goes on by itself."
            ) from None
        except OSError as error:
            raise StorageUnavailable(
                f"The database {self._path} cannot be reached: {error.strerror}. Give the "
                "service's user access to its directory."
            ) from error
        files = Files(
            (status.st_dev, status.st_ino),
            _find_id(self._real_path + WAL_SUFFIX),
            _find_id(self._real_path + SHM_SUFFIX),
        )
        return files, status.st_size

    # Opening anew. The lock is held here.

    def _renew(self) -> None:
        if self._is_renewing:
            raise Busy(f"The database {self._path} is just being opened anew. Try again.")
        if self._refusal is not None and time.monotonic() < self._refused_until:
            raise type(self._refusal)(self._refusal.detail)
        self._is_renewing = True
        try:
            self._begin_generation()
        except (RegistryError, sqlite3.Error) as error:
            self._refusal = error if isinstance(error, RegistryError) else _explained(error)
            self._refused_until = time.monotonic() + REPEATED_AFTER_S
            raise self._refusal from error
        finally:
            self._is_renewing = False
        self._refusal = None

    def _begin_generation(self) -> None:
        files, size = self._look()
        held = self._held
        is_cut = False
        if held is not None:
            if files.database == held.files.database:
                is_cut = size < held.size
                self._close_all(held, files)
            else:
                self._set_wal_aside(held.files.wal, held.files.shm)
                self._let_go()
        self._real_path = os.path.realpath(self._path)
        try:
            opened = self._opened(is_new=held is None, is_cut=is_cut)
        except (StorageUnavailable, sqlite3.Error):
            if is_cut:  # Somebody may be writing another database to the same file.
                self._set_wal_aside(files.wal, files.shm)
            raise
        self.generation += 1  # Before the files: whoever sees them must see that they are new.
        self._held = opened
        if held is not None:
            log.warning("opened the database %s anew", self._path)

    def _close_all(self, held: _Held, now: Files) -> None:
        """Close every connection of this process: as long as one is open, SQLite gives its log's
        index to new ones, and that may be of a log that was removed.

        Raises:
            Busy: some are still in use.
        """
        for close in self.on_change:
            close()
        if not self._returned.wait_for(lambda: self._lent == 0, RETURNED_WITHIN_S):
            raise Busy(f"The database {self._path} is about to be opened anew. Try again.")
        self._save_wal(held, now)
        self._let_go()

    def _let_go(self) -> None:
        held = self._held
        if held is not None and held.connection is not None:
            held.connection.close()
            held.connection = None
            # From here on, their inodes may be another file's.
            held.files = Files(held.files.database, None, None)
        for close in self.on_change:
            close()

    def _opened(self, *, is_new: bool, is_cut: bool) -> _Held:
        files, _ = self._look()
        connection = self._connect()
        try:
            self._accept(connection)
            opened, size = self._look()
            if opened.database != files.database:
                raise Busy(f"The database {self._path} is just being replaced. Try again.")
            if is_cut:
                self._check_pages(connection, opened, size)
            return _Held(connection, opened, size)
        except BaseException as error:
            connection.close()
            if isinstance(error, DatabaseRefused) and not is_new:
                raise StorageUnavailable(f"Another file is there now. {error.detail}") from error
            raise

    def _check_pages(self, connection: sqlite3.Connection, files: Files, size: int) -> None:
        """Raise StorageUnavailable if the file has lost pages. It may have shrunk by VACUUM."""
        page_count, page_size = (
            connection.execute(f"PRAGMA {name}").fetchall()[0][0]
            for name in ("page_count", "page_size")
        )
        if page_count * page_size <= size:
            return
        found = connection.execute("PRAGMA quick_check(1)").fetchall()[0][0]
        if found != "ok":
            raise StorageUnavailable(
                f"The database {self._path} was cut and is damaged: {found}. Restore a backup: "
                "`metadata-registry db restore FILE --force`."
            )

    # The write-ahead log

    def _save_wal(self, held: _Held, now: Files) -> None:
        """Bring what was committed to a log that was removed into the database file.

        It is still there for those who have it open: our connection.
        """
        if held.connection is None or (now.wal, now.shm) == held.files[1:]:
            return
        if now.wal is not None and os.stat(self._real_path + WAL_SUFFIX).st_size:
            log.error(
                "the write-ahead log of %s was replaced under the service by another one; what was "
                "committed to it since the last checkpoint is lost. Never remove or replace the "
                "files beside a database that is in use",
                self._path,
            )
            return
        deadline = time.monotonic() + CHECKPOINT_S
        while held.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise Busy(f"The log of {self._path} cannot be written back now. Try again.")
            time.sleep(0.005)
        log.error(
            "the write-ahead log of %s was removed under the service; what was committed to it "
            "has been written to the database file. Never remove the files beside a database",
            self._path,
        )

    def _set_wal_aside(self, wal: FileId | None, shm: FileId | None) -> None:
        """Take the log of the database that was replaced away from the one that is there now."""
        wal_path = self._real_path + WAL_SUFFIX
        kept = f"{self._real_path}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}{WAL_SUFFIX}"
        if wal is None or self._look()[0].wal != wal:
            return
        try:
            with open(wal_path, "rb") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX)  # Other processes of the service do the same.
                now = self._look()[0]
                if now.wal != wal:
                    return
                if now.shm is not None and now.shm == shm:
                    os.unlink(self._real_path + SHM_SUFFIX)
                os.rename(wal_path, kept)
        except OSError as error:
            raise StorageUnavailable(
                f"The database {self._path} was replaced, but {wal_path} is still the log of the "
                f"file before it and cannot be moved away: {error.strerror}. Remove it."
            ) from error
        log.warning(
            "%s was replaced or cut; the write-ahead log that was beside it is kept as %s",
            self._path,
            kept,
        )


def _find_id(path: str) -> FileId | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _explained(error: sqlite3.Error) -> RegistryError:
    return translate(error) or StorageUnavailable(f"The database cannot be used: {error}.")
