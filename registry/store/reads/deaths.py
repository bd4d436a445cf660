"""What would go dark if a worker died, and what is dark already: for the page of an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, func, select

from registry.core.listings import OwnerRecord
from registry.core.records import ArtifactKey
from registry.store.engine import Connection
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.reads.bounded import (
    HOLDERS_TRIED,
    OWNER_IDS,
    count_refs,
    has_bytes,
    why_dark,
)
from registry.store.reads.owner_lines import OwnerLine
from registry.store.sql import Statement, as_rows
from registry.store.tables import entries, owner_refs

REFS_LOOKED_AT = 1000
"""Refs of an instance."""
DARK_NAMED = 10
"""Files that are dark already, of which the page says why."""


@dataclass(frozen=True, slots=True)
class DarkModel:
    """A model, and how many of its files nobody else has."""

    slug: str
    suffix: str
    files: int


@dataclass(frozen=True, slots=True)
class DarkFile:
    """A file whose bytes nobody has, and why."""

    key: ArtifactKey
    why: str


@dataclass(frozen=True, slots=True)
class Death:
    """What the end of an instance would do to models: to those that are served by it alone, `dark`.

    `already` are files of it that nobody has the bytes of now, the first 10 of `already_count`.
    `ends_at` is when the last of its owners ends that ends by itself, None: none of them does;
    `endless` of them do not. `all_refs` and `all_holders` say whether all were looked at.
    """

    dark: tuple[DarkModel, ...]
    already: tuple[DarkFile, ...]
    already_count: int
    ends_at: int | None
    endless: int
    grace_ms: int
    all_refs: bool
    all_holders: bool


class _AtStake(NamedTuple):
    id: int
    slug: str
    suffix: str
    filename: str
    is_served: bool
    holders: int


_some_refs = (
    select(owner_refs.c.entry_id)
    .where(owner_refs.c.owner_id.in_(select(OWNER_IDS.c.id)))
    .limit(bindparam("row_limit"))
    .subquery("some_refs")
)
_held = select(_some_refs.c.entry_id).distinct().subquery("held")
_AT_STAKE = Statement(
    select(
        entries.c.id,
        entries.c.slug,
        entries.c.suffix,
        entries.c.filename,
        has_bytes(entries).label("is_served"),
        count_refs(owner_refs.c.entry_id == entries.c.id, entries).label("holders"),
    )
    .select_from(entries.join(_held, _held.c.entry_id == entries.c.id))
    .where(~has_bytes(entries, elsewhere=True))
    .order_by(entries.c.slug, entries.c.suffix, entries.c.filename),
    _AtStake,
)
_COUNT_REFS = Statement(select(func.count()).select_from(_some_refs))


def what_would_go_dark(conn: Connection, instance: Sequence[OwnerLine]) -> Death:
    """What would have no holder with its bytes left if these owners ended, and when they would.

    The first 1000 refs are looked at, and of each file the first 200 holders.
    """
    rows = as_rows([each.id for each in instance])
    ((refs,),) = conn.run(_COUNT_REFS, rows=rows, row_limit=REFS_LOOKED_AT + 1)
    at_stake = conn.run(_AT_STAKE, rows=rows, row_limit=REFS_LOOKED_AT)
    dark = Counter((row.slug, row.suffix) for row in at_stake if row.is_served)
    already = [row for row in at_stake if not row.is_served]
    grace_ms = policy_of(read_variables(conn)).lease_grace_ms
    ends = [_ends_at(each.record, grace_ms) for each in instance]
    known = [at for at in ends if at is not None]
    return Death(
        dark=tuple(DarkModel(*model, files) for model, files in dark.items()),
        already=tuple(
            DarkFile(ArtifactKey(row.slug, row.suffix, row.filename), why_dark(conn, row.id))
            for row in already[:DARK_NAMED]
        ),
        already_count=len(already),
        ends_at=max(known, default=None),
        endless=len(ends) - len(known),
        grace_ms=grace_ms,
        all_refs=refs <= REFS_LOOKED_AT,
        all_holders=all(row.holders <= HOLDERS_TRIED for row in at_stake),
    )


def _ends_at(owner: OwnerRecord, grace_ms: int) -> int | None:
    """When an owner that is not heard of any more is ended; None: never."""
    lapses = [] if owner.lease is None else [owner.lease.expires_at + grace_ms]
    drains = [] if owner.drain_deadline_at is None else [owner.drain_deadline_at]
    return min([*lapses, *drains], default=None)
