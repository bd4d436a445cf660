"""The files of a database that this process has open, and those that are there."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass

from registry.errors import StorageUnavailable
from registry.store.sqlite.in_use import SHM_SUFFIX, WAL_SUFFIX, Announcement, Files, find_id


@dataclass(slots=True)
class OpenFiles:
    """A connection and the files that it has open; once it is closed, what was there last."""

    connection: sqlite3.Connection | None
    files: Files
    size: int
    schema_version: int
    """SQLite's count of changes of the schema when it was last accepted; -1: it is not any more."""
    announcement: Announcement
    descriptor: int | None
    """Tells whether the file still has a name. It cannot be read through, and so SQLite's locks
    outlast its end."""
    kept_before: frozenset[str]
    """The copies of removed databases that were there when this one was opened."""

    def close(self) -> None:
        """Close the connection, and say no more that the files are open."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.announcement.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        # From here on, their inodes may be another file's.
        self.files = Files(self.files.database, None, None)


def look_at_files(path: str, real_path: str) -> tuple[Files, int]:
    """The files that are there now, and the size of the database. `real_path` is the path without
    symlinks.

    Raises:
        StorageUnavailable: there is no database, or it is out of reach.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StorageUnavailable(
            f"The database {path} is gone. Put it back, or restore a backup: "
            "`metadata-registry db restore FILE`. A running service then goes on by itself."
        ) from None
    except OSError as error:
        raise StorageUnavailable(
            f"The database {path} cannot be reached: {error.strerror}. Give the "
            "service's user access to its directory."
        ) from error
    files = Files(
        (status.st_dev, status.st_ino),
        find_id(real_path + WAL_SUFFIX),
        find_id(real_path + SHM_SUFFIX),
    )
    return files, status.st_size


def check_pages(path: str, connection: sqlite3.Connection, size: int) -> None:
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
            f"The database {path} was cut and is damaged: {found}. Restore a backup: "
            "`metadata-registry db restore FILE --force`."
        )
