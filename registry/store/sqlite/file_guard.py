"""Whether the files at a database's path are still those that its connections have open.

Three files make a database: the file itself, its write-ahead log and the log's index. SQLite goes
on writing to each of them when it was removed or replaced, and nobody would see those rows again.
A `FileGuard` knows the files by device and inode. Who writes asks before and after whether they are
still the same; when they are not, nothing is acknowledged any more.

Nothing is mended while anybody writes. What was acknowledged is saved (rescue.py), all connections
are closed, and new ones are opened once everybody else has let go as well (in_use.py). The
connections of one such time are a generation.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable

from registry.errors import Busy, DatabaseRefused, RegistryError, StorageUnavailable
from registry.store.sqlite.errors import translated
from registry.store.sqlite.in_use import Announcement, FileId, Files, find_files, find_id
from registry.store.sqlite.open_files import OpenFiles, check_pages, look_at_files
from registry.store.sqlite.rescue import Rescue

REPEATED_AFTER_S = 1.0
"""A database that could not be opened is not tried again for this long."""
RETURNED_WITHIN_S = 0.25
"""How long connections that are in use are waited for before a database is opened anew."""
OPENED_WITHIN_S = 0.75
"""How long whoever needs the database waits while it is opened anew."""

log = logging.getLogger("registry.db")


class FileGuard:
    """The files of one database, watched by one process. Safe in any thread.

    `connect` opens a connection, and its log. `accept` raises DatabaseRefused for one whose
    database this program cannot use. Who never `writes` may find no log, and has nothing to save.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        accept: Callable[[sqlite3.Connection], None],
        *,
        writes: bool = True,
    ) -> None:
        self.generation = 0
        self.on_change: list[Callable[[], None]] = []
        """Each closes connections of the last generation that are not in use."""
        self._path = path
        self._rescue = Rescue(path)
        self._connect = connect
        self._accept = accept
        self._writes = writes
        self._changed = threading.Condition()
        self._lent = 0
        self._is_renewing = False
        self._held: OpenFiles | None = None
        self._refusal: Exception | None = None
        self._refused: Files | None = None
        self._refused_until = float("-inf")

    def acquire(self) -> int:
        """Make sure that what is there can be used, and announce a connection to it; its
        generation. To be followed by `release` when the connection is closed or not in use.

        Raises:
            StorageUnavailable: no database is there that this program can use.
            Busy: what is there is locked, being replaced, or in use with other files.
        """
        while True:
            generation = self.ensure_current()
            with self._changed:
                if generation == self.generation and not self._is_renewing:
                    self._lent += 1
                    return generation

    def release(self) -> None:
        """A connection that was announced is closed, or not in use any more."""
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()

    def ensure_current(self) -> int:
        """The generation whose connections are on the files that are there now.

        They may have to be opened first. A thread of its own does that, since it may have to copy
        a database; it is waited for OPENED_WITHIN_S.

        Raises:
            StorageUnavailable, Busy: as `acquire`.
        """
        generation = self.generation
        if self._is_surely_current(generation):
            return generation
        with self._changed:
            if not self._is_renewing:
                if self._refusal is not None and self._is_refused():
                    raise _again(self._refusal)
                self._is_renewing = True
                threading.Thread(target=self._renew, name="registry-opening", daemon=True).start()
            if not self._changed.wait_for(lambda: not self._is_renewing, OPENED_WITHIN_S):
                raise Busy(f"The database {self._path} is just being opened anew. Try again.")
            if self._refusal is not None:
                raise _again(self._refusal)
            return self.generation

    def is_current(self, generation: int) -> bool:
        """Whether the files are still those of a generation, and the database was not cut.

        Raises:
            StorageUnavailable: nothing is there.
        """
        held = self._held
        if held is None or held.connection is None or generation != self.generation:
            return False
        if held.schema_version < 0:
            return False
        files, size = self._look()
        if files != held.files or size < held.size:
            return False
        held.size = size
        return True

    def accepts(self, schema_version: int) -> bool:
        """Whether this program can use the schema of a generation's files, as SQLite counts its
        changes. If it cannot, the files are opened anew before they are used again."""
        held = self._held
        if held is not None and schema_version == held.schema_version:
            return True
        with self._changed:
            held = self._held
            if held is None or held.connection is None or self._is_renewing:
                return False
            try:
                self._accept(held.connection)
            except DatabaseRefused:
                held.schema_version = -1
                return False
            held.schema_version = schema_version
            return True

    def close(self) -> None:
        """Let go of the database. What was acknowledged is where it can be found."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_renewing, OPENED_WITHIN_S)
            held, self._held = self._held, None
            for close in self.on_change:
                close()
            if held is None:
                return
            try:
                self._save(held)
            except (RegistryError, sqlite3.Error) as error:
                log.error("what was acknowledged last could not be saved: %s", error)
            held.close()

    def _is_refused(self) -> bool:
        """Whether what is there was refused a moment ago, and nothing has changed since."""
        if time.monotonic() >= self._refused_until:
            return False
        return self._refused == find_files(os.path.realpath(self._path))

    def _is_surely_current(self, generation: int) -> bool:
        try:
            return self.is_current(generation)
        except StorageUnavailable:
            return False

    def _look(self) -> tuple[Files, int]:
        return look_at_files(self._path, self._rescue.real_path)

    def _save(self, held: OpenFiles) -> None:
        if self._writes:
            self._rescue.save(held)

    # Opening anew. One thread at a time.

    def _renew(self) -> None:
        refusal: Exception | None = None
        try:
            with translated(self._path):
                self._begin_generation()
        except Exception as error:
            refusal = error
        with self._changed:
            self._refusal = refusal
            self._refused = find_files(os.path.realpath(self._path))
            self._refused_until = time.monotonic() + REPEATED_AFTER_S
            self._is_renewing = False
            self._changed.notify_all()

    def _begin_generation(self) -> None:
        held = self._held
        if held is not None and held.connection is not None:
            if self._is_surely_current(self.generation):
                return  # It was away for a moment.
            self._let_go(held)
        files, size = self._look()
        is_cut = held is not None and files.database == held.files.database and size < held.size
        self._rescue.real_path = os.path.realpath(self._path)
        try:
            opened = self._opened(before=held.files.database if held else None, is_cut=is_cut)
        except (StorageUnavailable, sqlite3.Error):
            if is_cut:  # Somebody may be writing another database to the same file.
                self._rescue.set_aside_log(files)
            raise
        self.generation += 1  # Before the files: whoever sees them must see that they are new.
        self._held = opened
        if held is not None:
            log.warning("opened the database %s anew", self._path)

    def _let_go(self, held: OpenFiles) -> None:
        """Close every connection of this process, once what was acknowledged is saved.

        Raises:
            Busy: some are still in use, or others are in the way.
        """
        for close in self.on_change:
            close()
        with self._changed:
            if not self._changed.wait_for(lambda: self._lent == 0, RETURNED_WITHIN_S):
                raise Busy(f"The database {self._path} is about to be opened anew. Try again.")
        self._save(held)
        held.close()

    def _opened(self, *, before: FileId | None, is_cut: bool) -> OpenFiles:
        announcement = Announcement(self._path)
        connection = descriptor = None
        try:
            announcement.wait_until_free(is_wal=self._writes)
            files, _ = self._look()
            kept = frozenset(self._rescue.kept_copies())
            connection = self._connect()
            ((schema_version,),) = connection.execute("PRAGMA schema_version").fetchall()
            self._accept(connection)
            opened, size = self._look()
            if opened.database != files.database or (self._writes and not opened.is_whole):
                raise Busy(f"The database {self._path} is just being replaced. Try again.")
            if opened.is_whole:
                announcement.announce(opened)
            if is_cut:
                check_pages(self._path, connection, size)
            if hasattr(os, "O_PATH"):
                descriptor = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
            held = OpenFiles(
                connection, opened, size, schema_version, announcement, descriptor, kept
            )
            if self._look()[0] != opened:
                raise Busy(f"The database {self._path} is just being replaced. Try again.")
            return held
        except BaseException as error:
            if connection is not None:
                connection.close()
            if descriptor is not None:
                os.close(descriptor)
            announcement.close()
            if isinstance(error, DatabaseRefused) and before is not None:
                what = "Another file is there now."
                if find_id(self._path) == before:
                    what = "The schema of the database was changed while it was in use."
                raise StorageUnavailable(f"{what} {error.detail}") from error
            raise


def _again(refusal: Exception) -> Exception:
    """An exception to raise once more, for another caller."""
    if isinstance(refusal, RegistryError):
        again = type(refusal)(refusal.detail)
        again.__cause__ = refusal.__cause__
        return again
    return refusal
