"""Owners as the pages list them, and what they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, func, literal_column, select, text, tuple_

from registry.core.identity import Identity
from registry.core.listings import OwnerRecord
from registry.core.records import Owner
from registry.errors import Invalid
from registry.store.engine import Connection
from registry.store.owner_columns import (
    OWNER_COLUMNS,
    OWNER_NAMES,
    identity,
    names_owner,
    owner_of,
    parameters_of,
    same_owner,
)
from registry.store.reads.bounded import (
    COUNTED,
    FILE,
    OWNER_IDS,
    FileLine,
    FileRow,
    UpTo,
    count_refs,
    counted,
    file_line,
)
from registry.store.reads.queries import OWNER_FACTS, OwnerRow, owner_record
from registry.store.reads.stats import SUSPECT
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import ABOUT_OWNERS, entries, events, owner_refs, owners

OWNERS_OF_INSTANCE = 50
ENDPOINTS_SEARCHED = 200
STATES_LOOKED_AT = 2000


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """An owner, with what it holds counted up to a limit."""

    id: int
    record: OwnerRecord
    refs: UpTo


@dataclass(frozen=True, slots=True)
class FileOfOwner:
    """A file of an owner, and what the last look at that owner's bytes found, and when."""

    file: FileLine
    status: str
    verified_at: int


class _OwnerPlace(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    id: int
    state: str
    lease_expires_at: int | None


class _WorkerRow(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    worker_name: str


class _HeldRow(NamedTuple):
    id: int
    slug: str
    suffix: str
    filename: str
    checksum: str
    size: int
    holders: int
    is_served: bool
    status: str
    verified_at: int


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
_PLACES_AFTER = Statement(
    select(*OWNER_COLUMNS, owners.c.id, owners.c.state, owners.c.lease_expires_at)
    .where(tuple_(*OWNER_COLUMNS) > _place)
    .order_by(*OWNER_COLUMNS)
    .limit(bindparam("row_limit")),
    _OwnerPlace,
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
_some_refs = (
    select(owner_refs.c.status)
    .where(owner_refs.c.owner_id == bindparam("owner_id"))
    .limit(COUNTED)
    .subquery("some_refs")
)
_WRONG_REFS = Statement(
    select(func.count())
    .select_from(_some_refs)
    .where(_some_refs.c.status != literal_column("'ok'"))
)
_known = (
    select(events.c.lora_slug)
    .where(
        *(events.c[name] == bindparam(name) for name in _Endpoint._fields),
        events.c.instance_id == bindparam("wanted"),
        text(f"({ABOUT_OWNERS})"),
    )
    .limit(COUNTED)
    .subquery("known")
)
_LORAS_IN_JOURNAL = Statement(select(_known.c.lora_slug).distinct())
_named = json_rows("rows", **dict.fromkeys(OWNER_NAMES, str))
_WORKER_NAMES = Statement(
    select(*OWNER_COLUMNS, owners.c.worker_name)
    .select_from(_named.join(owners, same_owner(_named, owners)))
    .where(owners.c.worker_name.is_not(None)),
    _WorkerRow,
)
_FILES_OF_OWNER = Statement(
    FILE.join(owner_refs, owner_refs.c.entry_id == entries.c.id)
    .add_columns(owner_refs.c.status, owner_refs.c.verified_at)
    .where(
        owner_refs.c.owner_id == bindparam("owner_id"), owner_refs.c.entry_id > bindparam("after")
    )
    .order_by(owner_refs.c.entry_id)
    .limit(bindparam("row_limit")),
    _HeldRow,
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


def owners_in_states(
    conn: Connection, after: Owner | None, states: Collection[str], limit: int
) -> tuple[list[OwnerLine], Owner | None]:
    """Owners in one of these states, `suspect` among them, in the order of their identity, and
    where more may follow. Of 2000 owners at most is the state looked at."""
    place = dict.fromkeys(OWNER_NAMES, "") if after is None else parameters_of(after)
    rows = conn.run(_PLACES_AFTER, row_limit=STATES_LOOKED_AT, **place)
    fitting = [row for row in rows if _state_of(row, conn.now) in states][:limit]
    lines = {each.id: each for each in owners_by_id(conn, [row.id for row in fitting])}
    last = None
    if len(fitting) == limit:
        last = owner_of(fitting[-1])
    elif len(rows) == STATES_LOOKED_AT:
        last = owner_of(rows[-1])
    return [lines[row.id] for row in fitting if row.id in lines], last


def _state_of(row: _OwnerPlace, now: int) -> str:
    lapsed = row.lease_expires_at is not None and row.lease_expires_at <= now
    return SUSPECT if lapsed and row.state == "active" else row.state


def owners_in_journal(conn: Connection, instance_id: str) -> list[Owner]:
    """Owners of an instance that the journal knows, at the first 200 endpoints that there are."""
    return [
        owner_of(Identity(*endpoint, instance_id, lora_slug))
        for endpoint in _endpoints(conn)
        for (lora_slug,) in conn.run(_LORAS_IN_JOURNAL, **endpoint._asdict(), wanted=instance_id)
    ][:OWNERS_OF_INSTANCE]


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


def files_of_owner(conn: Connection, owner_id: int, after: int, limit: int) -> list[FileOfOwner]:
    """What an owner holds, by the ids of entries, behind one of them."""
    rows = conn.run(_FILES_OF_OWNER, owner_id=owner_id, after=after, row_limit=limit)
    return [FileOfOwner(file_line(FileRow(*row[:-2])), row.status, row.verified_at) for row in rows]


def count_wrong_files(conn: Connection, owner_id: int) -> int:
    """How many of the first 1000 files of an owner have other bytes, or are gone, on its disk."""
    ((count,),) = conn.run(_WRONG_REFS, owner_id=owner_id)
    return int(count)


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


def owners_by_id(conn: Connection, ids: Sequence[int]) -> list[OwnerLine]:
    """Owners by their ids, in the order of these."""
    rows = conn.run(_OWNERS_BY_ID, rows=as_rows(ids))
    return list(map(_owner_line, rows))


def worker_names(conn: Connection, named: Iterable[Owner | str]) -> dict[str, str]:
    """The names of the workers of owners that have one, by the text of the owner. What is no text
    of an owner has none."""
    rows = []
    for each in set(map(str, named)):
        with suppress(Invalid):
            rows.append(list(identity(Owner.parse(each))))
    found = conn.run(_WORKER_NAMES, rows=as_rows(rows)) if rows else []
    return {str(owner_of(row)): row.worker_name for row in found}


def _owner_line(row: OwnerRow) -> OwnerLine:
    return OwnerLine(row.id, owner_record(row), counted(row.refs))
