"""Putting a backup in the place of a database.

The backup is copied beside the database and checked there. Only then, and in one step, the copy
takes the database's name. What was there before keeps a name as well, as a backup: at every moment
either the old or the new database is there, whole.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from registry.errors import DatabaseRefused, Refused, RegistryError, StorageUnavailable
from registry.store.sqlite import backup as backup_module
from registry.store.sqlite.backup import copy_into, find_damage, new_partial, sync
from registry.store.sqlite.compatibility import check_usable
from registry.store.sqlite.errors import primary_code, translate
from registry.store.sqlite.inspect import Claim, claim, is_foreign, locate, look_through, opened

COMPANIONS = ("-wal", "-journal")
"""Files beside a database that hold a part of what is in it."""

INDEX = "-shm"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put in place, and where that is kept which was there before."""

    path: Path
    revision: str
    kept: Path | None


def restore(url: str, source: Path, *, force: bool = False) -> Restored:
    """Put a copy of a backup in the place of a registry.

    An older schema is brought up to date when a service next opens it. With `force` a database
    that is there is replaced; it keeps a name beside the new one.

    Raises:
        Refused: the backup is damaged, no registry, or needs a newer program; or a database is
            there and `force` is not given, or is in use, or is another program's.
        StorageUnavailable: the copy could not be written. The database that was there is whole.
    """
    path = Path(os.path.realpath(locate(url)))
    source = source.absolute()
    _check_source(source, path)
    _check_target(path, force)
    try:
        partial = _new_partial(path, source)
        try:
            revision = _copy(source, partial)
            kept = _swap(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageUnavailable(
            f"The backup could not be restored: {error}. What was at {path} is whole; remove the "
            "cause and start again."
        ) from error
    return Restored(path, revision, kept)


def _check_source(source: Path, path: Path) -> None:
    try:
        is_file = stat.S_ISREG(source.stat().st_mode)
    except OSError as error:
        raise DatabaseRefused(f"The backup {source} cannot be read: {error.strerror}.") from error
    if not is_file:
        raise Refused(f"{source} is not a regular file, so it is no backup.")
    if path.exists() and path.samefile(source):
        raise Refused(f"{source} is the database itself; there is nothing to restore.")


def _check_target(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise DatabaseRefused(f"There is no directory {path.parent} for the database.")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise DatabaseRefused(f"{path} is not a regular file. Name a file for the database.")
    if not path.stat().st_size:
        return
    if is_foreign(path):
        raise Refused(
            f"{path} is the SQLite database of another program; it was left as it is. Name another "
            "file for the registry."
        )
    if not force:
        raise Refused(
            f"{path} is there already; nothing was overwritten. To replace it, add --force: it is "
            "then kept beside the new one."
        )
    with claim(path):
        pass  # Whether it is in use, before the backup is copied.


def _new_partial(path: Path, source: Path) -> Path:
    """An empty file beside the database, with the mode and the owner of what it is to replace."""
    like = (path if path.exists() else source).stat()
    partial = new_partial(path.with_name(f"{path.name}.restored"), stat.S_IMODE(like.st_mode))
    if path.exists():
        with suppress(PermissionError):
            os.chown(partial, like.st_uid, like.st_gid)
            os.chmod(partial, stat.S_IMODE(like.st_mode))
    return partial


# The backup


def _copy(source: Path, partial: Path) -> str:
    """Copy a backup and check the copy; its schema revision."""
    try:
        with closing(_opened_backup(source)) as backup:
            copy_into(backup, partial)
    except (sqlite3.Error, RegistryError) as error:
        raise _unreadable(source, error) from error
    problems = find_damage(partial)
    if problems:
        raise Refused(f"{source} is damaged: {'; '.join(problems)}. Restore another backup.")
    try:
        with opened(partial, "ro&immutable=1") as copy:
            found = look_through(copy, source)
        check_usable(source, found)
    except DatabaseRefused as error:
        raise Refused(error.detail) from error
    if found.revision is None:
        raise Refused(f"{source} holds no registry. Restore another backup.")
    sync(partial)
    return found.revision


def _opened_backup(source: Path) -> sqlite3.Connection:
    """A connection that leaves a backup as it is, and nothing beside it.

    Only if a log lies beside it, it may be in use: then its locks and its log count.
    """
    in_use = any(source.with_name(source.name + suffix).exists() for suffix in COMPANIONS)
    mode = "mode=ro" if in_use else "mode=ro&immutable=1"
    return sqlite3.connect(f"{source.as_uri()}?{mode}", uri=True, isolation_level=None)


def _unreadable(source: Path, error: sqlite3.Error | RegistryError) -> RegistryError:
    """Why a backup could not be copied. Nothing is wrong with the new file that it goes to."""
    if isinstance(error, DatabaseRefused | sqlite3.DatabaseError):
        code = primary_code(error) if isinstance(error, sqlite3.Error) else sqlite3.SQLITE_NOTADB
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return Refused(f"{source} is damaged, or no SQLite database. Restore another backup.")
    ours = translate(error) if isinstance(error, sqlite3.Error) else error
    return StorageUnavailable(f"{source} could not be copied: {ours.detail if ours else error}")


# What is in its place


def _swap(partial: Path, path: Path) -> Path | None:
    """Give the copy the database's name; where what was there is kept, if anything was."""
    if not os.path.lexists(path):
        kept = _keep_leftovers(path)
        backup_module.publish(partial, path)
        return kept
    _settle(path)
    with claim(path) as held:
        kept = _keep(path, held)
        os.replace(partial, path)
        sync(path.parent)
    return kept


def _settle(path: Path) -> None:
    """Bring what is in the log of a database into its file. One that is damaged stays as it is."""
    with suppress(DatabaseRefused), opened(path, "rw") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _keep(path: Path, held: Claim) -> Path | None:
    """Give a database a second name, and take away what lies beside it."""
    if not held.size:
        _keep_leftovers(path)
        return None
    kept = backup_module.find_free_name(path, "replaced")
    _keep_companions(path, kept)
    _link(path, kept)
    sync(path.parent)
    _remove_companions(path)
    return kept


def _keep_leftovers(path: Path) -> Path | None:
    """Take away the log of a database that is gone."""
    kept = backup_module.find_free_name(path, "replaced")
    found = _keep_companions(path, kept)
    sync(path.parent)
    _remove_companions(path)
    return found


def _keep_companions(path: Path, kept: Path) -> Path | None:
    found = None
    for suffix in COMPANIONS:
        companion = path.with_name(path.name + suffix)
        if companion.exists() and companion.stat().st_size:
            found = kept.with_name(kept.name + suffix)
            _link(companion, found)
    return found


def _remove_companions(path: Path) -> None:
    for suffix in (*COMPANIONS, INDEX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _link(path: Path, kept: Path) -> None:
    """Give a file a second name; where the file system knows no such thing, copy it."""
    try:
        os.link(path, kept)
    except FileExistsError:
        raise
    except OSError:
        partial = new_partial(kept, stat.S_IMODE(path.stat().st_mode))
        shutil.copyfile(path, partial)
        sync(partial)
        backup_module.publish(partial, kept)
