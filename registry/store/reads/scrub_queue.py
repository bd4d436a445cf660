"""Which in-place files are due to be hashed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, select, tuple_

from registry.store.engine import Connection
from registry.store.reads.lookup import Location
from registry.store.sql import Statement
from registry.store.tables import entries, owner_refs

Cursor = tuple[int, int, int]
"""verified_at, owner_id, entry_id of the last one that was looked at"""

START: Cursor = (-1, 0, 0)


@dataclass(frozen=True, slots=True)
class Due:
    """An in-place ref that was not hashed for a while."""

    location: Location
    cursor: Cursor


_place = (owner_refs.c.verified_at, owner_refs.c.owner_id, owner_refs.c.entry_id)


class _DueRow(NamedTuple):
    """A location, and when its file was hashed last."""

    entry_id: int
    checksum: str
    size: int
    owner_id: int
    path: str | None
    file_identity: str | None
    status: str
    verified_at: int


_DUE = Statement(
    select(
        entries.c.id.label("entry_id"),
        entries.c.checksum,
        entries.c.size,
        owner_refs.c.owner_id,
        owner_refs.c.path,
        owner_refs.c.file_identity,
        owner_refs.c.status,
        owner_refs.c.verified_at,
    )
    .select_from(owner_refs.join(entries, entries.c.id == owner_refs.c.entry_id))
    .where(
        owner_refs.c.path.is_not(None),
        owner_refs.c.verified_at <= bindparam("before"),
        tuple_(*_place) > tuple_(bindparam("after_0"), bindparam("after_1"), bindparam("after_2")),
    )
    .order_by(*_place)
    .limit(bindparam("row_limit")),
    _DueRow,
)


def find_due(conn: Connection, before: int, after: Cursor, limit: int) -> list[Due]:
    """In-place refs last hashed before a time, the longest ago first, behind a cursor."""
    rows = conn.run(
        _DUE,
        before=before,
        after_0=after[0],
        after_1=after[1],
        after_2=after[2],
        row_limit=limit,
    )
    return [
        Due(
            Location(
                entry_id=row.entry_id,
                checksum=row.checksum,
                size=row.size,
                owner_id=row.owner_id,
                path=row.path,
                file_identity=row.file_identity,
                status=row.status,
            ),
            (row.verified_at, row.owner_id, row.entry_id),
        )
        for row in rows
    ]
