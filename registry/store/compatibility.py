"""Whether this program can work with the schema of a database, and if not, what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry import __version__
from registry.errors import DatabaseRefused
from registry.store import tables


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a look at a database showed of its schema. Without a revision there is none yet."""

    revision: str | None = None
    min_program_revision: str | None = None
    program_version: str | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    views_version: str | None = None


def admits(place: object, found: SchemaState, backups: str) -> bool:
    """Whether a schema is one that this program can work with. False: it is to be upgraded.

    `place` is what people call the database, `backups` says where backups of it are.

    Raises:
        DatabaseRefused: it needs a newer program.
    """
    if found.revision is None:
        return False
    if not re.fullmatch("[0-9]{4}", found.revision):
        raise DatabaseRefused(
            f"{place} has the schema revision {found.revision!r}, which no version of this program "
            "has made. Restore a backup of it."
        )
    if found.revision > tables.HEAD_REVISION:
        needed = found.min_program_revision
        if needed is None or needed > tables.HEAD_REVISION:
            raise _too_new(place, found, backups)
    return found.revision >= tables.HEAD_REVISION


def refuse_newer(place: object, found: SchemaState, backups: str) -> None:
    """Raise DatabaseRefused for a schema that is newer than this program."""
    if found.revision is not None and found.revision > tables.HEAD_REVISION:
        raise _too_new(place, found, backups)


def why_unusable(place: object, found: SchemaState) -> str:
    """Why a running service cannot work with a schema that it does not admit."""
    if found.revision is None:
        return (
            f"There is no registry in {place} any more. Restart the service, or restore a backup."
        )
    return (
        f"{place} has schema revision {found.revision}, this program needs {tables.HEAD_REVISION}. "
        "Restart the service, or run `metadata-registry db upgrade`."
    )


def no_registry(place: object) -> str:
    """That there is none, for whoever only looks."""
    return f"There is no registry in {place}. Name another --database-url."


def without_revision(place: object) -> DatabaseRefused:
    """A registry that somebody has taken apart."""
    return DatabaseRefused(
        f"{place} does not say which schema revision it has. Restore a backup of it."
    )


def _too_new(place: object, found: SchemaState, backups: str) -> DatabaseRefused:
    last = f", last used by version {found.program_version}" if found.program_version else ""
    return DatabaseRefused(
        f"{place} has schema revision {found.revision}{last}; it needs a program that knows "
        f"revision {found.min_program_revision or found.revision}. This is metadata-registry "
        f"{__version__}, which knows up to {tables.HEAD_REVISION}. Install a newer version, or go "
        f"back to a backup: {backups}."
    )
