"""Files in place whose artifact root is not there, or not configured, any more (S12, S13)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from registry.core.records import RefStatus
from registry.store.engine import Connection
from registry.store.journal import EventRow, write_events
from registry.store.ops.settings_table import read_variables, write_variables
from registry.store.reads.lookup import Location
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import entries, owner_refs

ROOTS = "artifact_roots"
"""The row of the `settings` table with the roots that a service serves from and that are there: a
JSON list of directories, each with a slash at its end. The `leaks` view goes by it."""

REASON = "below no artifact root that is configured and there"

Ref = tuple[int, int]
"""The owner's id and the entry's."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots that are configured and there, as they are kept in the settings table."""

    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """Refs that were seen below none of the roots."""

    refs: tuple[Ref, ...]


_refs = json_rows("refs", owner_id=int, entry_id=int)
_wanted = tuple_(owner_refs.c.owner_id, owner_refs.c.entry_id)


class _RefRow(NamedTuple):
    owner_id: int
    entry_id: int


_STILL_OK = Statement(
    select(owner_refs.c.owner_id, owner_refs.c.entry_id)
    .join(
        _refs,
        (owner_refs.c.owner_id == _refs.c.owner_id) & (owner_refs.c.entry_id == _refs.c.entry_id),
    )
    .where(owner_refs.c.path.is_not(None), owner_refs.c.status != literal_column("'missing'")),
    _RefRow,
)
_LOSE = Statement(
    update(owner_refs)
    .values(status=RefStatus.MISSING.value, verified_at=bindparam("now"))
    .where(_wanted.in_(select(_refs.c.owner_id, _refs.c.entry_id)))
)


def keep_roots(conn: Connection, _now: int, items: Sequence[Roots]) -> list[None]:
    """Put the roots where the `leaks` view looks."""
    for item in items:
        text = msgspec.json.encode(list(item.prefixes)).decode()
        if read_variables(conn).get(ROOTS) != text:
            write_variables(conn, {ROOTS: text})
    return [None] * len(items)


def lose(conn: Connection, now: int, items: Sequence[Loss]) -> list[None]:
    """Note the files as missing, whose journal says that it is for their root."""
    refs = sorted({tuple(ref) for item in items for ref in item.refs})
    lost = conn.run(_STILL_OK, refs=as_rows(refs))
    if lost:
        conn.run(_LOSE, now=now, refs=as_rows([[row.owner_id, row.entry_id] for row in lost]))
        event_id = conn.last_ids().get("events", 0)
        write_events(
            conn,
            now,
            [
                EventRow(event_id + number, "missing", *row, reason=REASON)
                for number, row in enumerate(lost, 1)
            ],
        )
    return [None] * len(items)


def find_outside(
    conn: Connection, prefixes: Sequence[str], after: Ref, limit: int
) -> list[tuple[Ref, str]]:
    """Refs and their paths that lie below none of the roots and are not noted as missing, behind
    one, in their order."""
    rows = conn.run(_outside(len(prefixes)), **_page(prefixes, after, limit))
    return [((row.owner_id, row.entry_id), row.path) for row in rows]


def count_lost(conn: Connection, prefixes: Sequence[str]) -> int:
    """How many refs are noted as missing and lie below none of the roots."""
    names = {f"root_{n}": prefix for n, prefix in enumerate(prefixes)}
    return conn.run(_count_lost(len(prefixes)), **names)[0].refs


def find_missing_below(
    conn: Connection, prefixes: Sequence[str], after: Ref, limit: int
) -> list[Location]:
    """Refs that are noted as missing and lie below one of the roots, behind one, in their order."""
    return conn.run(_missing_below(len(prefixes)), **_page(prefixes, after, limit))


class _OutsideRow(NamedTuple):
    owner_id: int
    entry_id: int
    path: str


class _CountRow(NamedTuple):
    refs: int


def _below(count: int) -> ColumnElement[bool]:
    """Whether a path lies below one of so many roots."""
    roots = [bindparam(f"root_{n}", type_=Text) for n in range(count)]
    path = owner_refs.c.path
    return or_(False, *(func.substr(path, 1, func.length(root)) == root for root in roots))


def _page(prefixes: Sequence[str], after: Ref, limit: int) -> dict[str, object]:
    names = {f"root_{n}": prefix for n, prefix in enumerate(prefixes)}
    return {**names, "after_owner": after[0], "after_entry": after[1], "row_limit": limit}


_behind = _wanted > tuple_(bindparam("after_owner"), bindparam("after_entry"))
_is_missing = owner_refs.c.status == RefStatus.MISSING.value


@functools.lru_cache(maxsize=64)
def _outside(count: int) -> Statement[_OutsideRow]:
    return Statement(
        select(owner_refs.c.owner_id, owner_refs.c.entry_id, owner_refs.c.path)
        .where(owner_refs.c.path.is_not(None), ~_is_missing, ~_below(count), _behind)
        .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
        .limit(bindparam("row_limit")),
        _OutsideRow,
    )


@functools.lru_cache(maxsize=64)
def _count_lost(count: int) -> Statement[_CountRow]:
    return Statement(
        select(func.count().label("refs")).where(
            owner_refs.c.path.is_not(None), _is_missing, ~_below(count)
        ),
        _CountRow,
    )


@functools.lru_cache(maxsize=64)
def _missing_below(count: int) -> Statement[Location]:
    return Statement(
        select(
            entries.c.id.label("entry_id"),
            entries.c.checksum,
            entries.c.size,
            owner_refs.c.owner_id,
            owner_refs.c.path,
            owner_refs.c.file_identity,
            owner_refs.c.status,
        )
        .select_from(owner_refs.join(entries, entries.c.id == owner_refs.c.entry_id))
        .where(owner_refs.c.path.is_not(None), _is_missing, _below(count), _behind)
        .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
        .limit(bindparam("row_limit")),
        Location,
    )
