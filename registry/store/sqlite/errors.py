"""What SQLite's driver raises, as ours: by result code, never by the text of a message."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from registry.errors import Busy, RegistryError, StorageUnavailable

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "reading or writing the disk failed; check the disk and the kernel's log",
    sqlite3.SQLITE_READONLY: "the database file is read-only; give the service's user write access",
    sqlite3.SQLITE_PERM: "the database file may not be opened; check its permissions",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; restore a backup",
    sqlite3.SQLITE_NOMEM: "there is no memory left for this process; see what takes it, or raise "
    "its limit",
    sqlite3.SQLITE_CANTOPEN: "a file of the database could not be opened",
}
_NO_SHARED_MEMORY = (
    "the index of its log, the file that ends in -shm, cannot be shared in memory here; put the "
    "database on a local disk (ext4, xfs, btrfs, zfs, tmpfs)"
)
_NO_LOCKS = (
    "files cannot be locked here; put the database on a local disk (ext4, xfs, btrfs, zfs, tmpfs)"
)
_FINER_CAUSES = {
    sqlite3.SQLITE_IOERR_NOMEM: _CAUSES[sqlite3.SQLITE_NOMEM],
    sqlite3.SQLITE_IOERR_SHMMAP: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMOPEN: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMLOCK: _NO_LOCKS,
    sqlite3.SQLITE_IOERR_LOCK: _NO_LOCKS,
    sqlite3.SQLITE_IOERR_RDLOCK: _NO_LOCKS,
    sqlite3.SQLITE_IOERR_UNLOCK: _NO_LOCKS,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK: _NO_LOCKS,
    sqlite3.SQLITE_IOERR_WRITE: "writing failed; check the disk and the kernel's log, the user's "
    "quota and the largest file that it may write (ulimit -f)",
}
"""By extended result code, where it says more than the primary one."""

SHORTAGES = {
    errno.EMFILE: "this process has as many open files as it may (ulimit -n); raise that limit, or "
    "lower max_connections",
    errno.ENFILE: "the machine has as many open files as it may (fs.file-max)",
    errno.ENOMEM: _CAUSES[sqlite3.SQLITE_NOMEM],
}
"""What the system has none of left, by error number: nothing is wrong with any file then."""


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


def translate(
    error: sqlite3.Error, path: str | os.PathLike[str] | None = None
) -> RegistryError | None:
    """Our error for a driver's, or None where it means a mistake of ours.

    `path` is the database's: one code of SQLite's has several causes, and the real one is found by
    looking.
    """
    code = primary_code(error)
    if code in LOCKED:
        return Busy("The database is locked by another writer; nothing was written. Try again.")
    if code not in _CAUSES:
        return None
    cause = _FINER_CAUSES.get(getattr(error, "sqlite_errorcode", code), _CAUSES[code])
    if code == sqlite3.SQLITE_CANTOPEN:
        cause = _why_not_opened(path)
    name = getattr(error, "sqlite_errorname", "")
    return StorageUnavailable(f"The database cannot be used: {cause} ({name}).")


def shortage(error: OSError) -> StorageUnavailable | None:
    """An error of the system as ours if it means that something is used up, or None."""
    cause = SHORTAGES.get(error.errno or 0)
    return None if cause is None else StorageUnavailable(f"The database cannot be used: {cause}.")


def _why_not_opened(path: str | os.PathLike[str] | None) -> str:
    """Why SQLite could not open a file. The database itself is not opened to find out: closing it
    would drop the locks of this process."""
    place = os.fspath(path) if path is not None else "the database file"
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        if path is not None:
            os.stat(path)
    except OSError as error:
        known = SHORTAGES.get(error.errno or 0)
        return known or f"{place} cannot be opened: {error.strerror}"
    if path is not None:
        for each in (place, *(f"{place}{suffix}" for suffix in ("-wal", "-shm", "-journal"))):
            if os.path.lexists(each) and not os.path.isfile(each):
                return f"{each} is not a regular file; move it away"
            if os.path.lexists(each) and not _may(each, os.R_OK | os.W_OK):
                return f"{each} may not be read and written by this user; give it both rights"
        folder = os.path.dirname(os.path.realpath(path))
        if is_read_only(folder):
            return f"the directory {folder} is on a file system that is mounted read-only"
        if not _may(folder, os.W_OK | os.X_OK):
            return f"the directory {folder} may not be written by this user; give it that right"
    return (
        f"{place} could not be opened a moment ago, and nothing is wrong with it now; most likely "
        "the open files of this process were used up (ulimit -n). Try again"
    )


def is_read_only(path: str | os.PathLike[str]) -> bool:
    """Whether a file system is mounted read-only."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def translated(path: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Driver errors become ours here, and what the system has none of left."""
    try:
        yield
    except sqlite3.Error as error:
        ours = translate(error, path)
        if ours is None:
            raise
        raise ours from error
    except OSError as error:
        found = shortage(error)
        if found is None:
            raise
        raise found from error
