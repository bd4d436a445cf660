"""What this user may do with a database's file, and how it is therefore opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from registry.errors import Busy, DatabaseRefused
from registry.store.sqlite.errors import is_read_only
from registry.store.sqlite.in_use import SHM_SUFFIX, WAL_SUFFIX, size_of


def may_write(path: Path) -> bool:
    """Whether this user may write to a database: to the file, and beside it."""
    return _may(path, os.R_OK | os.W_OK) and _may(path.parent, os.W_OK | os.X_OK)


def reading_mode(path: Path) -> str:
    """How a connection that only reads is opened: it leaves nothing behind that others could not
    use. Where this user may not write and nobody has the database open, the file is read as it is.

    Raises:
        DatabaseRefused: what was committed last is in a log that cannot be read here.
    """
    if may_write(path):
        return "ro"
    wal, shm = _beside(path, WAL_SUFFIX), _beside(path, SHM_SUFFIX)
    if not size_of(wal):
        return "ro&immutable=1"
    for each in (wal, shm):
        if not each.exists() or not _may(each, os.R_OK):
            raise DatabaseRefused(
                f"{path} may not be written by this user, and what was committed last is in its "
                f"log, which cannot be read without {each.name}. Run this as a user who may write "
                f"to {path.parent}, or copy {path.name} and {wal.name} to another directory and "
                "name that."
            )
    return "ro"


def state_of(path: Path) -> tuple[object, ...]:
    """What changes when anybody opens a database to write, or writes back its log."""
    status = path.stat()
    wal = _beside(path, WAL_SUFFIX)
    return status.st_ino, status.st_size, status.st_mtime_ns, size_of(wal)


def changed(path: Path) -> Busy:
    """That a database which was read as it is was changed meanwhile."""
    return Busy(
        f"{path} was changed while it was read; what was read may be wrong. Run this again: beside "
        "a service that runs it reads its log as well."
    )


def is_immutable(mode: str) -> bool:
    """Whether a connection of this mode takes no locks and makes no files."""
    return "immutable=1" in mode


def check_file(path: Path, *, to_write: bool) -> int:
    """The size of a file that is to be a database, 0 if there is none.

    Raises:
        DatabaseRefused: it is no regular file, or this user lacks a right.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        _check_directory(path, to_write=to_write)
        return 0
    except (OSError, ValueError) as error:
        raise DatabaseRefused(f"{path} cannot be a database: {error}. Name another file.") from None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DatabaseRefused(f"{path} is {what}. Name a file for the database.")
    _check_directory(path, to_write=to_write)
    if to_write and not _may(path, os.R_OK | os.W_OK):
        raise DatabaseRefused(
            f"{path} may not be read and written by this user. Give the user both rights on the "
            "file, and write access to its directory."
        )
    if not _may(path, os.R_OK):
        raise DatabaseRefused(f"{path} may not be read by this user. Give the user that right.")
    return status.st_size


def _check_directory(path: Path, *, to_write: bool) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise DatabaseRefused(
            f"There is no directory {parent} for the database. Make it first: mkdir -p {parent}"
        )
    if to_write and is_read_only(parent):
        raise DatabaseRefused(
            f"The directory {parent} is on a file system that is mounted read-only. SQLite keeps "
            f"files beside {path.name}: name a file in a directory that may be written "
            "(--database-url, REGISTRY_DATABASE_URL)."
        )
    if to_write and not _may(parent, os.W_OK | os.X_OK):
        raise DatabaseRefused(
            f"The directory {parent} may not be written by this user. SQLite keeps files beside "
            f"{path.name}: give the user write access, or name a file in another directory."
        )


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _beside(path: Path, suffix: str) -> Path:
    return Path(os.path.realpath(path) + suffix)
