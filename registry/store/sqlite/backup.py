"""Copies of a database file, made while it is in use.

A copy gets its name when it is whole and on the disk, and never takes the place of another file.
What is left of one that was broken off ends in `.partial` and may be removed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from registry.core import stopping
from registry.errors import DatabaseRefused, Refused, RegistryError, StorageUnavailable
from registry.store.compatibility import no_registry
from registry.store.sqlite.errors import translate
from registry.store.sqlite.inspect import locate, look, looking, opened

PROBLEMS_MAX = 10
PAGES_AT_ONCE = 4096
"""Of a copy that is being made; between them it can be told to end."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy that was made."""

    path: Path
    revision: str
    size: int


def back_up(url: str, target: Path) -> Backup:
    """Copy a registry to a new file, while writers go on.

    The copy holds exactly what was committed at one moment. It was read back and found sound.

    Raises:
        Refused: something is at `target`, or the database is damaged.
        DatabaseRefused: there is no registry, or it is not ours.
        StorageUnavailable: the copy could not be written; nothing is left of it.
    """
    path, target = locate(url), target.absolute()
    revision = look(path, to_write=False).revision
    if revision is None:
        raise DatabaseRefused(no_registry(path))
    write_backup(path, target, check=lambda copy: _refuse_damaged(path, copy))
    return Backup(target, revision, target.stat().st_size)


def _refuse_damaged(path: Path, copy: Path) -> None:
    problems = find_damage(copy)
    if problems:
        raise Refused(
            f"{path} is damaged: {'; '.join(problems)}. No backup was written. Copy the file, and "
            "those beside it whose names begin alike, before anything else, then restore an older "
            "backup: `metadata-registry db restore FILE --force`."
        )


def find_free_name(path: Path, revision: str) -> Path:
    """A name beside the database that nothing has: `registry.db.0001-20261123T120000Z.backup`."""
    stem = f"{path.name}.{revision}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in count(1):
        name = path.with_name(f"{stem}.backup" if number == 1 else f"{stem}-{number}.backup")
        if not os.path.lexists(name):
            return name
    raise AssertionError("unreachable")


def write_backup(path: Path, backup: Path, *, check: Callable[[Path], None] | None = None) -> None:
    """Copy what is committed in a database to a new file. It is on the disk when this returns.

    `check` may refuse the copy, by raising, before it gets its name.

    Raises:
        Refused: the name is taken.
        StorageUnavailable: it could not be written; nothing is left of it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR
        partial = new_partial(backup, mode)
        try:
            with looking(path) as source:
                copy_into(source, partial)
            if check is not None:
                check(partial)
            sync(partial)
            publish(partial, backup)
        finally:
            partial.unlink(missing_ok=True)
    except Refused:
        raise
    except (OSError, RegistryError) as error:
        raise StorageUnavailable(
            f"The backup {backup} could not be written: {error}. Nothing was changed; remove the "
            "cause and start again."
        ) from error


def keep_copy(connection: sqlite3.Connection, path: str) -> Path:
    """Copy what a connection has open beside the path of its database; where the copy is.

    Raises:
        OSError, RegistryError: it could not be written; nothing is left of it.
    """
    backup = find_free_name(Path(path), "removed")
    partial = new_partial(backup, 0o600)
    try:
        copy_into(connection, partial)
        sync(partial)
        publish(partial, backup)
    finally:
        partial.unlink(missing_ok=True)
    return backup


def new_partial(target: Path, mode: int) -> Path:
    """A new empty file beside `target` that nobody else uses.

    Raises:
        Refused: something is at `target`.
        OSError: it cannot be made.
    """
    if os.path.lexists(target):
        raise _taken(target)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    return partial


def publish(partial: Path, target: Path) -> None:
    """Give a file that is on the disk its name, unless that is taken.

    Raises:
        Refused: something is at `target`.
    """
    try:
        os.link(partial, target)
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # The file system knows no second name.
        if os.path.lexists(target):
            raise _taken(target) from None
        partial.rename(target)
    partial.unlink(missing_ok=True)
    sync(target.parent)


def _taken(target: Path) -> Refused:
    return Refused(f"{target} is there already; nothing was overwritten. Choose another name.")


def copy_into(source: sqlite3.Connection, target: Path) -> None:
    """Copy a database, as it is at one moment, into an empty file. It does not reach the disk yet.

    Raises:
        RegistryError: what SQLite raised, as ours.
    """
    with opened(target, "rw") as copy:
        copy.execute("PRAGMA synchronous = OFF")  # The whole file is synced when it is complete.
        source.execute("BEGIN")
        # From here on it is one snapshot: a copy in steps would begin again whenever others write.
        source.execute("SELECT count(*) FROM sqlite_master").fetchall()
        source.backup(copy, pages=PAGES_AT_ONCE, progress=lambda *_: stopping.check())
        source.execute("ROLLBACK")


def find_damage(copy: Path) -> list[str]:
    """What is wrong with a database that nobody has open: a line each, at most 10."""
    connection = sqlite3.connect(f"{copy.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        with closing(connection), stopping.interruptible(connection):
            rows = connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})").fetchall()
            found = [line for (line,) in rows if line != "ok"]
            broken = connection.execute("PRAGMA foreign_key_check").fetchmany(PROBLEMS_MAX)
            found += [f"row {row} of {table} refers to nothing" for table, row, *_ in broken]
    except sqlite3.Error as error:
        ours = translate(error)
        found = [ours.detail if ours else str(error)]
    return found[:PROBLEMS_MAX]


def sync(path: Path) -> None:
    """See to it that a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
