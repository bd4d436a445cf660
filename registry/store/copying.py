"""Copying a whole registry from one database into another, of whichever engine.

What is copied is one snapshot, with ids, leases, journal and the ids to come. It arrives in one
transaction: what is broken off leaves nothing. Before it is committed, every table of the target is
read back and its digest compared with that of the rows which the source gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec
from blake3 import blake3
from sqlalchemy import Table

from registry.core import stopping
from registry.core.progress import OnProgress
from registry.errors import DatabaseRefused, StorageUnavailable
from registry.store import tables, views
from registry.store.compatibility import SchemaState, no_registry
from registry.store.sql import Row

TABLES: tuple[Table, ...] = (
    *(tables.settings, tables.owners, tables.entries, tables.blobs),
    *(tables.owner_refs, tables.events),
)

OWN_SETTINGS = (views.RECORDED_AS,)
"""Rows of the settings table that speak of one database, and not of the registry in it."""

ROWS_AT_ONCE = 1000
"""Between them it can be told to end, and tells how far it is."""

encode = msgspec.msgpack.Encoder().encode


class CopySource(Protocol):
    """One snapshot of a registry."""

    name: str
    users: int
    """How many others have the database open; they may go on writing."""

    def count(self, table: Table) -> int:
        """How many rows `rows` gives."""
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """The rows of a table in the order of its primary key, without OWN_SETTINGS."""
        ...

    def last_ids(self) -> dict[str, int]:
        """The last id ever given in each table that gives ids."""
        ...


class CopyTarget(Protocol):
    """An empty registry in a transaction."""

    name: str

    def load(self, table: Table, rows: Iterator[Row]) -> None:
        """Fill a table."""
        ...

    def complete(self, last_ids: Mapping[str, int]) -> None:
        """Make indexes and constraints, and let ids go on behind those that were given.

        Raises:
            StorageUnavailable: what was loaded contradicts itself.
        """
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """As of the source."""
        ...


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: rows by table."""

    source: str
    target: str
    rows: Mapping[str, int]
    users: int


def copy(
    source: AbstractContextManager[CopySource],
    target: AbstractContextManager[CopyTarget],
    on_progress: OnProgress | None = None,
) -> Copied:
    """Copy a registry. It is committed, on the disk, and read back when this returns.

    `on_progress` is told rows.

    Raises:
        DatabaseRefused: the source has no registry of this program's schema, or the target cannot
            keep one.
        Refused: the target is not empty.
        StorageUnavailable, Busy: it did not succeed; the target is as it was.
    """
    with source as origin, target as goal:
        counts = {table.name: origin.count(table) for table in TABLES}
        progress = _Rows(sum(counts.values()), on_progress)
        given = {}
        for table in TABLES:
            digest = _Digest()
            goal.load(table, progress.of("Copying", digest.of(origin.rows(table))))
            given[table.name] = digest
        progress.restart()
        goal.complete(origin.last_ids())
        for table in TABLES:
            wanted, found = given[table.name], _Digest()
            for _ in progress.of("Comparing", found.of(goal.rows(table))):
                pass
            if (found.count, found.value) != (wanted.count, wanted.value):
                raise StorageUnavailable(
                    f"The rows of {table.name} in {goal.name} are not those of {origin.name}: "
                    f"{found.count} instead of {wanted.count}, or others. Nothing was copied."
                )
        return Copied(origin.name, goal.name, {n: d.count for n, d in given.items()}, origin.users)


class _Digest:
    """What rows are, in their order."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = blake3()

    def of(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows, of which it takes note as they go by."""
        for row in rows:
            self._hash.update(encode(row))
            self.count += 1
            yield row

    @property
    def value(self) -> bytes:
        return self._hash.digest()


class _Rows:
    """Tells how many of all rows have gone by."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = 0

    def restart(self) -> None:
        self._done = 0

    def of(self, activity: str, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            yield row
            self._done += 1
            if self._done % ROWS_AT_ONCE == 0:
                stopping.check()
                if self._on_progress is not None:
                    self._on_progress(activity, self._done, self._total)


def query_of(table: Table) -> str:
    """The rows that are copied."""
    query = f"SELECT {columns_of(table)} FROM {table.name}"
    if table is tables.settings:
        names = ", ".join(f"'{name}'" for name in OWN_SETTINGS)
        query += f" WHERE name NOT IN ({names})"
    return query


def ordered(table: Table) -> str:
    """As `query_of`, in the order of the primary key: it is the same on every engine."""
    return f"{query_of(table)} ORDER BY {', '.join(each.name for each in table.primary_key)}"


def columns_of(table: Table) -> str:
    """Their names, as they stand in a statement."""
    return ", ".join(table.columns.keys())


def require_head(place: object, found: SchemaState) -> None:
    """Raise DatabaseRefused unless a schema is exactly this program's."""
    if found.revision is None:
        raise DatabaseRefused(no_registry(place))
    if found.revision != tables.HEAD_REVISION:
        raise DatabaseRefused(
            f"{place} has schema revision {found.revision}, and this program copies "
            f"{tables.HEAD_REVISION}. Run `metadata-registry db upgrade` on it, or use the version "
            "that it was made with."
        )
