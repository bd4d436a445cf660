"""What SQLite's driver raises, as ours: by result code, never by the text of a message."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from registry.errors import Busy, RegistryError, StorageUnavailable

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

CALM_S = 1.0

log = logging.getLogger("registry.db")

_STORAGE_CODES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "reading or writing the disk failed; check the disk and the kernel's log",
    sqlite3.SQLITE_READONLY: "the database file is read-only; give the service's user write access",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened; check that it exists and that "
    "the service's user may read and write it and its folder",
    sqlite3.SQLITE_PERM: "the database file may not be opened; check its permissions",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; restore a backup",
    sqlite3.SQLITE_NOMEM: "the machine is out of memory",
}


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code of an error, or None if it did not come from SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(error: BaseException | None) -> bool:
    """Whether a driver's error tells something of the database, not of a shortage or a lock."""
    return isinstance(error, sqlite3.Error) and primary_code(error) not in (
        *LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_NOMEM,
    )


def translate(error: sqlite3.Error) -> RegistryError | None:
    """Our error for a driver's, or None where it means a mistake of ours."""
    code = primary_code(error)
    if code in LOCKED:
        return Busy("The database is locked by another writer; nothing was written. Try again.")
    if code in _STORAGE_CODES:
        name = getattr(error, "sqlite_errorname", "")
        return StorageUnavailable(f"The database cannot be used: {_STORAGE_CODES[code]} ({name}).")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Driver errors become ours here."""
    try:
        yield
    except sqlite3.Error as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


class Trouble:
    """Says in the log when storage begins to fail in a way, and when it works again; not each
    time in between. `what` is what fails: a plural, like `writes`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._detail: str | None = None
        self._failed_at = float("-inf")

    def failed(self, error: StorageUnavailable) -> None:
        """It did not work."""
        self._failed_at = time.monotonic()
        if error.detail != self._detail:
            self._detail = error.detail
            log.error("%s fail: %s", self._what, error.detail)

    def worked(self) -> None:
        """It worked. Where some of it works and some does not, that is no change."""
        if self._detail is not None and time.monotonic() - self._failed_at >= CALM_S:
            self._detail = None
            log.warning("%s work again", self._what)
