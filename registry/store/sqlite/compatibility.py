"""Whether this program can work with a database as it is, and if not, what to do about it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from registry import __version__
from registry.errors import DatabaseRefused, RegistryError
from registry.store import tables
from registry.store.sqlite.inspect import Found, locate, look, look_through, no_registry


def find_problem(url: str) -> str | None:
    """Why a running service cannot work with the database as it is now, or None if it can."""
    try:
        path = locate(url)
        found = look(path)
        if is_usable(path, found):
            return None
    except RegistryError as error:
        return error.detail
    return _why_unusable(path, found)


def check_there(url: str, *, to_write: bool) -> None:
    """Raise DatabaseRefused unless a registry is there that a command can work with as it is."""
    path = locate(url)
    found = look(path, to_write=to_write)
    if found.revision is None:
        raise DatabaseRefused(no_registry(path))
    if not is_usable(path, found if to_write else replace(found, has_wal=True)):
        raise DatabaseRefused(_why_unusable(path, found))


def _why_unusable(path: Path, found: Found) -> str:
    if found.revision is None:
        return f"There is no registry in {path} any more. Restart the service, or restore a backup."
    return (
        f"{path} has schema revision {found.revision}, this program needs {tables.HEAD_REVISION}. "
        "Restart the service, or run `metadata-registry db upgrade`."
    )


def acceptor(url: str) -> Callable[[sqlite3.Connection], None]:
    """A function that raises DatabaseRefused for a connection to the database at a URL, unless it
    holds a registry that this program can work with as it is."""
    path = locate(url)

    def accept(connection: sqlite3.Connection) -> None:
        found = look_through(connection, path)
        if not is_usable(path, found):
            raise DatabaseRefused(_why_unusable(path, found))

    return accept


def check_usable(path: Path, found: Found) -> None:
    """Raise DatabaseRefused for a database that this program could not work with, even after an
    upgrade."""
    is_usable(path, found)


def is_usable(path: Path, found: Found) -> bool:
    """Whether this program can work with a database as it is. False: it is to be upgraded.

    Raises:
        DatabaseRefused: it needs a newer program.
    """
    if found.revision is None:
        return False
    if not re.fullmatch("[0-9]{4}", found.revision):
        raise DatabaseRefused(
            f"{path} has the schema revision {found.revision!r}, which no version of this program "
            "has made. Restore a backup of it."
        )
    if found.revision > tables.HEAD_REVISION:
        needed = found.min_program_revision
        if needed is None or needed > tables.HEAD_REVISION:
            raise _too_new(path, found)
    return found.revision >= tables.HEAD_REVISION and found.has_wal


def refuse_newer(path: Path, found: Found) -> None:
    """Raise DatabaseRefused for a schema that is newer than this program."""
    if found.revision is not None and found.revision > tables.HEAD_REVISION:
        raise _too_new(path, found)


def _too_new(path: Path, found: Found) -> DatabaseRefused:
    last = f", last used by version {found.program_version}" if found.program_version else ""
    return DatabaseRefused(
        f"{path} has schema revision {found.revision}{last}; it needs a program that knows "
        f"revision {found.min_program_revision or found.revision}. This is metadata-registry "
        f"{__version__}, which knows up to {tables.HEAD_REVISION}. Install a newer version, or go "
        "back to a backup: an upgrade writes one beside the file, "
        f"{path.name}.REVISION-TIME.backup."
    )
