"""The refs that are held in place, in pages, for an audit that looks at their files."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, select

from registry.store.engine import Connection
from registry.store.owner_columns import OWNER_COLUMNS
from registry.store.sql import Statement
from registry.store.tables import entries, owner_refs, owners

PAGE_ROWS = 1000


class InPlaceRef(NamedTuple):
    """A ref with the path of its file, its entry and its owner."""

    owner_id: int
    entry_id: int
    path: str
    file_identity: str | None
    verified_at: int
    checksum: str
    size: int
    slug: str
    suffix: str
    filename: str
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str


_IN_PLACE = Statement(
    select(
        owner_refs.c.owner_id,
        owner_refs.c.entry_id,
        owner_refs.c.path,
        owner_refs.c.file_identity,
        owner_refs.c.verified_at,
        entries.c.checksum,
        entries.c.size,
        entries.c.slug,
        entries.c.suffix,
        entries.c.filename,
        *OWNER_COLUMNS,
    )
    .select_from(
        owner_refs.join(entries, entries.c.id == owner_refs.c.entry_id).join(
            owners, owners.c.id == owner_refs.c.owner_id
        )
    )
    .where(
        owner_refs.c.path.is_not(None),
        (owner_refs.c.owner_id > bindparam("owner_id"))
        | (
            (owner_refs.c.owner_id == bindparam("owner_id"))
            & (owner_refs.c.entry_id > bindparam("entry_id"))
        ),
    )
    .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
    .limit(bindparam("row_limit")),
    InPlaceRef,
)


_STILL = Statement(
    select(owner_refs.c.owner_id)
    .join(entries, entries.c.id == owner_refs.c.entry_id)
    .where(
        owner_refs.c.owner_id == bindparam("owner_id"),
        owner_refs.c.entry_id == bindparam("entry_id"),
        owner_refs.c.path == bindparam("path"),
        entries.c.checksum == bindparam("checksum"),
    )
)


def list_in_place(conn: Connection, owner_id: int, entry_id: int) -> list[InPlaceRef]:
    """The refs in place behind one of an owner and an entry; 0 and 0 to begin with."""
    return conn.run(_IN_PLACE, owner_id=owner_id, entry_id=entry_id, row_limit=PAGE_ROWS)


def is_still_held(conn: Connection, ref: InPlaceRef) -> bool:
    """Whether the ref is still there with the same path and content."""
    return bool(
        conn.run(
            _STILL,
            owner_id=ref.owner_id,
            entry_id=ref.entry_id,
            path=ref.path,
            checksum=ref.checksum,
        )
    )
