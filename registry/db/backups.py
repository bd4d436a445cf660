"""Copies of a database file, made while it is in use."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from registry.db.sqlite_file import opened
from registry.errors import RegistryError, StorageUnavailable


def find_free_name(path: Path, revision: str) -> Path:
    """A name beside the database that nothing has: `registry.db.0001-20261123T120000Z.backup`."""
    stem = f"{path.name}.{revision}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in count(1):
        name = path.with_name(f"{stem}.backup" if number == 1 else f"{stem}-{number}.backup")
        if not os.path.lexists(name):
            return name
    raise AssertionError("unreachable")


def write_backup(path: Path, backup: Path) -> None:
    """Copy what is committed in a database to a new file. It is on the disk when this returns.

    A copy that is broken off has another name, `.partial` behind it.

    Raises:
        StorageUnavailable: it could not be written; nothing is left of it.
    """
    partial = backup.with_name(backup.name + ".partial")
    try:
        _create(partial, stat.S_IMODE(path.stat().st_mode))
        try:
            _copy(path, partial)
            _sync(partial)
            partial.rename(backup)
        finally:
            partial.unlink(missing_ok=True)
        _sync(backup.parent)
    except (OSError, RegistryError) as error:
        raise StorageUnavailable(
            f"The backup {backup} could not be written: {error}. Nothing was changed; remove the "
            "cause and start again."
        ) from error


def _create(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _copy(path: Path, target: Path) -> None:
    with opened(path, "rw") as source, opened(target, "rw") as copy:
        source.backup(copy)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
