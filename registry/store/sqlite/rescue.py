"""Bringing what was acknowledged to where it can be found, when files of a database were removed.

Whoever has a removed file open can still read it: our connection can. Other processes that have it
open do the same, and take turns.
"""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import sqlite3
import time
from datetime import UTC, datetime

from registry.errors import Busy, StorageUnavailable
from registry.store.sqlite import backup
from registry.store.sqlite.in_use import WAL_SUFFIX, Files, find_files
from registry.store.sqlite.open_files import OpenFiles, look_at_files

CHECKPOINT_S = 1.0

log = logging.getLogger("registry.db")


class Rescue:
    """Saves what is in the files of one database that a process has open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.real_path = os.path.realpath(path)
        """Where the file was when it was opened, without symlinks."""

    def save(self, held: OpenFiles) -> None:
        """See to it that what was committed is in a file that has a name, if files were removed.

        Raises:
            Busy: somebody else is in the way.
            StorageUnavailable: it could not be saved.
        """
        try:
            now, size = look_at_files(self._path, self.real_path)
        except StorageUnavailable:
            now, size = Files(None, None, None), 0
        if held.connection is None or now == held.files:
            return
        if now.database == held.files.database and size < held.size:
            return  # What is left of the log belongs to pages that are gone.
        self._fold(held.connection)
        if now.database == held.files.database and now.wal not in (None, held.files.wal):
            self.set_aside_log(now)  # Somebody made a log of their own for the same file.
        if held.descriptor is not None and os.fstat(held.descriptor).st_nlink == 0:
            self._keep_copy(held)
        log.error(
            "files of the database %s were removed or replaced while it was in use; what was "
            "acknowledged is saved. Never remove or replace the files of a database that is in use",
            self._path,
        )

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Bring what is in the log into the database file, and empty the log: it might be taken
        for that of another file."""
        deadline = time.monotonic() + CHECKPOINT_S
        while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise Busy(f"The log of {self._path} cannot be written back now. Try again.")
            time.sleep(0.005)

    def kept_copies(self) -> list[str]:
        """The copies of removed databases that are there."""
        return glob.glob(f"{glob.escape(self.real_path)}.removed-*.backup")

    def _keep_copy(self, held: OpenFiles) -> None:
        """Copy a database whose file has no name any more. One of several processes does it."""
        assert held.connection is not None
        directory = os.open(os.path.dirname(self.real_path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if held.kept_before.issuperset(self.kept_copies()):
                kept = backup.keep_copy(held.connection, self.real_path)
                log.error(
                    "the database %s was removed while it was in use; what was in it is kept as %s",
                    self._path,
                    kept,
                )
        except BlockingIOError:
            raise Busy(f"Another process saves what was in {self._path}. Try again.") from None
        except OSError as error:
            raise StorageUnavailable(
                f"The database {self._path} was removed, and what was in it could not be saved "
                f"beside it: {error.strerror}. It is kept open; remove the cause."
            ) from error
        finally:
            os.close(directory)

    def set_aside_log(self, files: Files) -> None:
        """Take a log that belongs to another file away from the database."""
        wal_path = self.real_path + WAL_SUFFIX
        if files.wal is None or find_files(self.real_path).wal != files.wal:
            return
        kept = f"{self.real_path}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}{WAL_SUFFIX}"
        try:
            if not os.stat(wal_path).st_size:
                return
            os.rename(wal_path, kept)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageUnavailable(
                f"{wal_path} does not belong to the database beside it and cannot be moved away: "
                f"{error.strerror}. Remove it."
            ) from error
        log.error(
            "the write-ahead log beside %s belonged to another file; it is kept as %s",
            self._path,
            kept,
        )
