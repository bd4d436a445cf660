"""A SQLite file as it lies on the disk: whose it is, what is in it, and whether it can be used.

A file that is not ours is left as it is, and nothing is made beside it. Nothing here reads a
database with plain file calls: closing such a file would drop the locks that SQLite holds on it
for other connections of this process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.core import stopping
from registry.errors import DatabaseRefused, Refused, RegistryError, StorageUnavailable
from registry.store.compatibility import SchemaState, without_revision
from registry.store.sqlite import place
from registry.store.sqlite.address import sqlite_path
from registry.store.sqlite.errors import primary_code, translate
from registry.store.sqlite.file_access import (
    changed,
    check_file,
    is_immutable,
    may_write,
    reading_mode,
    state_of,
)
from registry.store.sqlite.in_use import (
    LOCK_BYTES,
    Announcement,
    find_files,
    size_of,
)

APPLICATION_ID = 0x4D524547
"""`PRAGMA application_id` of our SQLite files: "MREG"."""

SQLITE_MIN_VERSION = (3, 38, 0)

SMALLEST_BYTES = 512
"""A SQLite database has at least one page, and a page at least this size."""

LOCK_TIMEOUT_S = 60.0
"""How long a look or a change of the schema waits for other processes."""

FREE_WITHIN_S = 2.0
"""How long processes may take to let go of files that were removed."""


@dataclass(frozen=True, slots=True)
class Found(SchemaState):
    """What a look at a database showed."""

    has_wal: bool = False


NOTHING = Found()


def locate(url: str) -> Path:
    """The absolute path of the file in a `sqlite:///` URL.

    Raises:
        DatabaseRefused: it is another kind of URL, SQLite cannot keep a database there, or SQLite
            itself is too old for us.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN_VERSION:
        raise DatabaseRefused(
            f"The SQLite library of this Python is version {sqlite3.sqlite_version}; the registry "
            f"needs {'.'.join(map(str, SQLITE_MIN_VERSION))} or newer. Use a newer Python or "
            "system library."
        )
    path = Path(sqlite_path(url)).absolute()
    place.check(path)
    return path


def look(path: Path, *, to_write: bool = True) -> Found:
    """What is in a file. One that does not exist or is empty holds nothing.

    Raises:
        DatabaseRefused: it is not ours, damaged, or cannot be read by this user, or written if
            that is meant.
    """
    size = check_file(path, to_write=to_write)
    if size == 0:
        return NOTHING
    if size < SMALLEST_BYTES:
        raise _not_sqlite(path)  # SQLite would take it for an empty database.
    ours = _glance(path)
    if ours is False and size_of(path.with_name(path.name + "-wal")) == 0:
        # Between the glance and this a log may have been written back and removed.
        ours = _glance(path)
        if ours is False:
            return NOTHING
    # A read-only connection leaves the log of another program in its place.
    with looking(path) if ours else reading(path) as connection:
        return look_through(connection, path)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads, with whatever rights this user has.

    Raises:
        Busy: the file was read as it is, and was changed meanwhile.
        RegistryError: as `opened`, and as `reading_mode`.
    """
    mode = reading_mode(path)
    before = state_of(path)
    with opened(path, mode) as connection:
        yield connection
    if is_immutable(mode) and state_of(path) != before:
        raise changed(path)


@contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """As `reading`, but where this user may write, it leaves no log behind."""
    with opened(path, "rw") if may_write(path) else reading(path) as connection:
        yield connection


def look_through(connection: sqlite3.Connection, path: Path) -> Found:
    """What is in the database of a connection that has no transaction open.

    Raises:
        DatabaseRefused: it is not ours.
    """
    connection.execute("BEGIN")
    try:
        return _read(connection, path) if _is_ours(connection, path) else NOTHING
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection that creates no file and begins no transaction by itself.

    Raises:
        Busy: somebody has the database open with files that were removed since.
        RegistryError: what SQLite raised in the block, as ours.
    """
    announcement = Announcement(str(path))
    try:
        if not is_immutable(mode):
            announcement.wait_until_free(patience_s=FREE_WITHIN_S)
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=LOCK_TIMEOUT_S
        )
        try:
            with stopping.interruptible(connection):
                if not is_immutable(mode):
                    connection.execute("PRAGMA schema_version").fetchall()  # Its log is open now.
                    files = find_files(os.path.realpath(path))
                    if files.is_whole:
                        announcement.announce(files)
                yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        announcement.close()


def explained(path: Path, error: sqlite3.Error) -> RegistryError:
    """SQLite's error about a file as ours."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return _not_sqlite(path)
    known = translate(error, path)
    if known is None:
        return StorageUnavailable(f"{path}: {error}. Nothing was changed.")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT):
        return DatabaseRefused(f"{path}: {known.detail}")
    return type(known)(f"{path}: {known.detail}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A database that nobody else has open, nor can open while it is claimed."""

    size: int


@contextmanager
def claim(path: Path) -> Iterator[Claim]:
    """Keep everybody else from a database. This process must not have it open: the end of the
    claim would drop the locks of its connections.

    Where the file system knows no locks, nothing is kept from anybody.

    Raises:
        Refused: another process has it open.
        OSError: it may not be opened for writing.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            start, length = LOCK_BYTES
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            raise Refused(
                f"Another process has {path} open, as a running service does. Stop it first, then "
                "do this again."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield Claim(os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def is_foreign(path: Path) -> bool:
    """Whether a file is the SQLite database of another program, as far as it can be read."""
    try:
        with opened(path, "ro&immutable=1") as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            if application_id == 0:
                return bool(_names(connection) - {"alembic_version"})
            return bool(application_id != APPLICATION_ID)
    except RegistryError:
        return False


def _glance(path: Path) -> bool | None:
    """Whether the file alone, without its log, holds a registry. None: it cannot tell.

    It takes no lock and makes no file, which a usual look at a database with a log does.
    """
    with opened(path, "ro&immutable=1") as connection:
        try:
            return _is_ours(connection, path)
        except sqlite3.DatabaseError as error:
            if primary_code(error) != sqlite3.SQLITE_CORRUPT:
                raise
            return None  # It may be whole and just being written.


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a registry is in the database. False: nothing is.

    Raises:
        DatabaseRefused: it is another program's.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id == APPLICATION_ID:
        return True
    if application_id != 0 or _names(connection) - {"alembic_version"}:
        raise DatabaseRefused(
            f"{path} is the SQLite database of another program; it was left as it is. Name another "
            "file for the registry."
        )
    return False


def _read(connection: sqlite3.Connection, path: Path) -> Found:
    if not {"alembic_version", "settings"} <= _names(connection):
        raise without_revision(path)
    revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    if len(revisions) != 1:
        raise without_revision(path)
    settings = dict(connection.execute("SELECT name, value FROM settings").fetchall())
    views = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'").fetchall()
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return Found(
        revision=revisions[0][0],
        min_program_revision=settings.get("min_program_revision"),
        program_version=settings.get("program_version"),
        has_wal=mode == "wal",
        views=dict(views),
        views_version=settings.get("views_version"),
    )


def _names(connection: sqlite3.Connection) -> set[str]:
    """The names of the tables, views, indexes and triggers."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    ).fetchall()
    return {name for (name,) in rows}


def _not_sqlite(path: Path) -> DatabaseRefused:
    return DatabaseRefused(
        f"{path} is not a SQLite database; it was left as it is. Name another file."
    )
