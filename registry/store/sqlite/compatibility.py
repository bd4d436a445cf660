"""Whether this program can work with a SQLite database as it is, and if not, what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from registry.errors import DatabaseRefused, RegistryError
from registry.store import compatibility
from registry.store.compatibility import admits, no_registry, why_unusable
from registry.store.sqlite.inspect import Found, locate, look, look_through


def find_problem(url: str) -> str | None:
    """Why a running service cannot work with the database as it is now, or None if it can."""
    try:
        path = locate(url)
        found = look(path)
        if is_usable(path, found):
            return None
    except RegistryError as error:
        return error.detail
    return why_unusable(path, found)


def check_there(url: str, *, to_write: bool) -> None:
    """Raise DatabaseRefused unless a registry is there that a command can work with as it is."""
    path = locate(url)
    found = look(path, to_write=to_write)
    if found.revision is None:
        raise DatabaseRefused(no_registry(path))
    if not is_usable(path, found if to_write else replace(found, has_wal=True)):
        raise DatabaseRefused(why_unusable(path, found))


def acceptor(url: str) -> Callable[[sqlite3.Connection], None]:
    """A function that raises DatabaseRefused for a connection to the database at a URL, unless it
    holds a registry that this program can work with as it is."""
    path = locate(url)

    def accept(connection: sqlite3.Connection) -> None:
        found = look_through(connection, path)
        if not is_usable(path, found):
            raise DatabaseRefused(why_unusable(path, found))

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
    return admits(path, found, _backups_of(path)) and found.has_wal


def refuse_newer(path: Path, found: Found) -> None:
    """Raise DatabaseRefused for a schema that is newer than this program."""
    compatibility.refuse_newer(path, found, _backups_of(path))


def _backups_of(path: Path) -> str:
    return f"an upgrade writes one beside the file, {path.name}.REVISION-TIME.backup"
