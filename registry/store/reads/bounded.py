"""What the pages read, a page at a time and at a bounded cost: what they have in common.

However many files a model has, and however many owners hold it, no more rows are read than the
limits here and beside their statements allow. What is counted up to a limit says so (`UpTo`).
Models are in model_lines.py, owners in owner_lines.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, exists, func, literal, select

from registry.core.records import ArtifactKey
from registry.store.engine import Connection
from registry.store.sql import Statement, json_column
from registry.store.tables import entries, owner_refs

COUNTED = 1000
"""Refs of an owner, and holders of a file."""
HOLDERS_TRIED = 200
"""Holders of a file that are looked at to say whether anybody has its bytes."""

OWNER_IDS = json_column("rows", "id", int)
"""Owners that are given by their ids."""


@dataclass(frozen=True, slots=True)
class UpTo:
    """A count that ends at a limit: then there may be more."""

    count: int
    is_all: bool


@dataclass(frozen=True, slots=True)
class FileLine:
    """A file of a model or of an owner, how many hold it, and whether one of them has its bytes."""

    id: int
    key: ArtifactKey
    checksum: str
    size: int
    holders: UpTo
    is_served: bool


class FileRow(NamedTuple):
    """The row of a file in a list."""

    id: int
    slug: str
    suffix: str
    filename: str
    checksum: str
    size: int
    holders: int
    is_served: bool


class _StatusCount(NamedTuple):
    status: str
    refs: int


def counted(count: int, limit: int = COUNTED) -> UpTo:
    """What was counted up to a limit and one more."""
    return UpTo(min(count, limit), count <= limit)


def count_refs(of: ColumnElement[bool], table: Any) -> ScalarSelect[int]:
    """How many refs a row of a table has, up to the limit and one more."""
    some = select(literal(1)).where(of).correlate(table).limit(COUNTED + 1).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


def has_bytes(entry: Any, *, elsewhere: bool = False) -> ColumnElement[bool]:
    """Whether a holder of an entry has its bytes, of the first so many; one that is none of
    `OWNER_IDS`."""
    tried = (
        select(owner_refs.c.owner_id, owner_refs.c.status)
        .where(owner_refs.c.entry_id == entry.c.id)
        .correlate(entry)
        .limit(HOLDERS_TRIED)
        .subquery("tried")
    )
    is_other = [tried.c.owner_id.not_in(select(OWNER_IDS.c.id))] if elsewhere else []
    return exists().where(tried.c.status == "ok", *is_other)


FILE = select(
    entries.c.id,
    entries.c.slug,
    entries.c.suffix,
    entries.c.filename,
    entries.c.checksum,
    entries.c.size,
    count_refs(owner_refs.c.entry_id == entries.c.id, entries).label("holders"),
    has_bytes(entries).label("is_served"),
)
_some_statuses = (
    select(owner_refs.c.status)
    .where(owner_refs.c.entry_id == bindparam("entry_id"))
    .limit(HOLDERS_TRIED)
    .subquery("some_statuses")
)
_STATUSES = Statement(
    select(_some_statuses.c.status, func.count().label("refs"))
    .group_by(_some_statuses.c.status)
    .order_by(_some_statuses.c.status),
    _StatusCount,
)


def file_line(row: FileRow) -> FileLine:
    """A file's row as a record."""
    key = ArtifactKey(row.slug, row.suffix, row.filename)
    return FileLine(row.id, key, row.checksum, row.size, counted(row.holders), bool(row.is_served))


def why_dark(conn: Connection, entry_id: int) -> str:
    """Why nobody has the bytes of an entry, as far as its first 200 holders tell."""
    counts = {row.status: row.refs for row in conn.run(_STATUSES, entry_id=entry_id)}
    total = sum(counts.values())
    if total == 0:
        return "nobody holds it"
    who = {1: "its only holder", 2: "both holders"}.get(total, f"all {total} holders")
    if total == HOLDERS_TRIED:
        who = f"the first {total} holders"
    found = [
        f"{count} {'has' if count == 1 else 'have'} {_HAS[status]}"
        for status, count in counts.items()
    ]
    if len(counts) > 1:
        return f"of {who} {' and '.join(found)}"
    return f"{who} {found[0].partition(' ')[2]}"


_HAS = {
    "ok": "its bytes",
    "drifted": "other bytes than were registered",
    "missing": "a file that is gone or cannot be read",
}
