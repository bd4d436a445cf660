"""Owners as the pages list them, what they hold, and what would go dark without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, func, select, tuple_

from registry.core.listings import OwnerRecord
from registry.core.records import Owner
from registry.store.engine import Connection
from registry.store.owner_columns import OWNER_COLUMNS, OWNER_NAMES, names_owner, parameters_of
from registry.store.reads.bounded import (
    FILE,
    OWNER_IDS,
    FileLine,
    FileRow,
    UpTo,
    count_refs,
    counted,
    file_line,
    has_bytes,
)
from registry.store.reads.queries import OWNER_FACTS, OwnerRow, owner_record
from registry.store.sql import Statement, as_rows
from registry.store.tables import entries, owner_refs, owners

OWNERS_OF_INSTANCE = 50
REFS_OF_INSTANCE = 1000
ENDPOINTS_SEARCHED = 200


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """An owner, with what it holds counted up to a limit."""

    id: int
    record: OwnerRecord
    refs: UpTo


@dataclass(frozen=True, slots=True)
class DarkModel:
    """A model, and how many of its files nobody else has."""

    slug: str
    suffix: str
    files: int


class _Endpoint(NamedTuple):
    namespace: str
    component: str
    endpoint: str


_owner = select(
    *OWNER_FACTS,
    count_refs(owner_refs.c.owner_id == owners.c.id, owners).label("refs"),
    owners.c.id,
)
_FIND_OWNER = Statement(_owner.where(names_owner(owners)), OwnerRow)
_OWNERS_BY_ID = Statement(
    _owner.where(owners.c.id.in_(select(OWNER_IDS.c.id))).order_by(owners.c.id), OwnerRow
)
_place = tuple_(*[bindparam(name) for name in OWNER_NAMES])
_OWNERS_FROM, _OWNERS_AFTER = (
    Statement(
        _owner.where(is_there).order_by(*OWNER_COLUMNS).limit(bindparam("row_limit")), OwnerRow
    )
    for is_there in (tuple_(*OWNER_COLUMNS) >= _place, tuple_(*OWNER_COLUMNS) > _place)
)
_endpoint = [owners.c[name] for name in _Endpoint._fields]
_NEXT_ENDPOINT = Statement(
    select(*_endpoint)
    .where(tuple_(*_endpoint) > tuple_(*[bindparam(f"after_{name}") for name in _Endpoint._fields]))
    .order_by(*_endpoint)
    .limit(1),
    _Endpoint,
)
_at_endpoint = [column == bindparam(column.name) for column in _endpoint]
_OF_INSTANCE = Statement(
    _owner.where(*_at_endpoint, owners.c.instance_id == bindparam("wanted"))
    .order_by(owners.c.lora_slug)
    .limit(bindparam("row_limit")),
    OwnerRow,
)
_OF_WORKER = Statement(
    _owner.where(*_at_endpoint, owners.c.worker_name == bindparam("wanted"))
    .order_by(owners.c.id.desc())
    .limit(bindparam("row_limit")),
    OwnerRow,
)
_held = (
    select(owner_refs.c.entry_id)
    .where(owner_refs.c.owner_id.in_(select(OWNER_IDS.c.id)))
    .limit(REFS_OF_INSTANCE)
    .subquery("held")
)
_GOING_DARK = Statement(
    select(entries.c.slug, entries.c.suffix, func.count(entries.c.id.distinct()).label("files"))
    .select_from(entries.join(_held, _held.c.entry_id == entries.c.id))
    .where(~has_bytes(entries, elsewhere=True))
    .group_by(entries.c.slug, entries.c.suffix)
    .order_by(entries.c.slug, entries.c.suffix)
)
_FILES_OF_OWNER = Statement(
    FILE.join(owner_refs, owner_refs.c.entry_id == entries.c.id)
    .where(
        owner_refs.c.owner_id == bindparam("owner_id"), owner_refs.c.entry_id > bindparam("after")
    )
    .order_by(owner_refs.c.entry_id)
    .limit(bindparam("row_limit")),
    FileRow,
)


def owners_page(
    conn: Connection, after: Owner | None, beginning: Sequence[str], limit: int
) -> list[OwnerLine]:
    """Owners in the order of their identity, whose first parts are those given."""
    wanted = tuple(beginning)
    if after is None:
        parts = (*wanted, *[""] * len(OWNER_NAMES))
        place = dict(zip(OWNER_NAMES, parts, strict=False))
        rows = conn.run(_OWNERS_FROM, row_limit=limit, **place)
    else:
        rows = conn.run(_OWNERS_AFTER, row_limit=limit, **parameters_of(after))
    return [_owner_line(row) for row in rows if row[: len(wanted)] == wanted]


def find_workers(conn: Connection, text: str, limit: int) -> list[OwnerLine]:
    """Owners of an instance of this number, and of workers of this name, at the first 200
    endpoints."""
    found: dict[int, OwnerLine] = {}
    for endpoint in _endpoints(conn):
        for statement in (_OF_INSTANCE, _OF_WORKER):
            rows = conn.run(statement, **endpoint._asdict(), wanted=text, row_limit=limit)
            found |= {row.id: _owner_line(row) for row in rows}
        if len(found) >= limit:
            break
    return list(found.values())[:limit]


def _endpoints(conn: Connection, namespace: str = "") -> list[_Endpoint]:
    """The first endpoints from a namespace on."""
    found: list[_Endpoint] = []
    place = _Endpoint(namespace, "", "")
    while len(found) < ENDPOINTS_SEARCHED:
        bounds = {f"after_{name}": part for name, part in place._asdict().items()}
        rows = conn.run(_NEXT_ENDPOINT, **bounds)
        if not rows:
            break
        place = rows[0]
        found.append(place)
    return found


def find_owner_line(conn: Connection, owner: Owner) -> OwnerLine | None:
    """An owner, or None: unknown. An ended owner is known by its tombstone."""
    for row in conn.run(_FIND_OWNER, **parameters_of(owner)):
        return _owner_line(row)
    return None


def files_of_owner(conn: Connection, owner_id: int, after: int, limit: int) -> list[FileLine]:
    """What an owner holds, by the ids of entries, behind one of them."""
    rows = conn.run(_FILES_OF_OWNER, owner_id=owner_id, after=after, row_limit=limit)
    return list(map(file_line, rows))


def owners_of_instance(conn: Connection, owner: Owner) -> list[OwnerLine]:
    """The owners of one instance in a namespace that have not ended, at all endpoints, for its base
    models and its LoRAs: what dies together."""
    found: list[OwnerLine] = []
    for endpoint in _endpoints(conn, owner.namespace):
        if endpoint.namespace == owner.namespace and len(found) < OWNERS_OF_INSTANCE:
            rows = conn.run(
                _OF_INSTANCE,
                **endpoint._asdict(),
                wanted=str(owner.instance_id),
                row_limit=OWNERS_OF_INSTANCE,
            )
            found += [line for line in map(_owner_line, rows) if not line.record.state.ended]
    return found[:OWNERS_OF_INSTANCE]


def going_dark(conn: Connection, owner_ids: Sequence[int]) -> list[DarkModel]:
    """The models of which files would have no holder with their bytes left if these owners ended.

    The first 1000 refs are looked at, and of each file the first 200 holders.
    """
    rows = conn.run(_GOING_DARK, rows=as_rows([[owner_id] for owner_id in owner_ids]))
    return [DarkModel(*row) for row in rows]


def owners_by_id(conn: Connection, ids: Sequence[int]) -> list[OwnerLine]:
    """Owners by their ids, in the order of these."""
    rows = conn.run(_OWNERS_BY_ID, rows=as_rows([[owner_id] for owner_id in ids]))
    return list(map(_owner_line, rows))


def _owner_line(row: OwnerRow) -> OwnerLine:
    return OwnerLine(row.id, owner_record(row), counted(row.refs))
