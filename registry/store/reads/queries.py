"""Looking: what the registry holds and who holds it. The journal is in events.py."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Select,
    bindparam,
    cast,
    exists,
    func,
    select,
    tuple_,
)

from registry.core.findings import Explanation
from registry.core.listings import Entry, Model, OwnerRecord
from registry.core.records import ArtifactKey, Holder, Owner, OwnerState, RefStatus, Source
from registry.store.engine import Connection
from registry.store.owner_columns import (
    OWNER_COLUMNS,
    OWNER_NAMES,
    REF_COUNT,
    lease_of,
    names_owner,
    owner_of,
    parameters_of,
)
from registry.store.reads.events import last_events
from registry.store.reads.model_revisions import find_other_revisions
from registry.store.sql import Statement, as_rows, json_column
from registry.store.tables import entries, owner_refs, owners

EXPLAINED_HOLDERS = 1000
REFS_COUNTED = 100_000
"""A page of models ends where this many owner refs were counted for it."""


class _EntryRow(NamedTuple):
    id: int
    slug: str
    suffix: str
    filename: str
    checksum: str
    size: int
    generation: int
    created_at: int
    updated_at: int
    base_slug: str | None
    holders: int


class OwnerRow(NamedTuple):
    """All that is known of an owner."""

    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    state: str
    worker_name: str | None
    lease_ttl_ms: int | None
    lease_expires_at: int | None
    registered_at: int
    renewed_at: int
    drain_deadline_at: int | None
    ended_at: int | None
    end_reason: str | None
    refs: int
    id: int


class HolderRow(NamedTuple):
    """An owner that holds an entry, and where its bytes are."""

    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    state: str
    lease_expires_at: int | None
    path: str | None
    status: str
    created_at: int


class _ModelRow(NamedTuple):
    slug: str
    suffix: str
    files: int
    size: int
    base_slug: str | None


class _Holding(NamedTuple):
    holders: int
    refs: int


_holder_count = (
    select(func.count())
    .where(owner_refs.c.entry_id == entries.c.id)
    .correlate(entries)
    .scalar_subquery()
)
_entry = select(
    entries.c.id,
    entries.c.slug,
    entries.c.suffix,
    entries.c.filename,
    entries.c.checksum,
    entries.c.size,
    entries.c.generation,
    entries.c.created_at,
    entries.c.updated_at,
    entries.c.base_slug,
    _holder_count.label("holders"),
)
OWNER_FACTS = (
    *OWNER_COLUMNS,
    owners.c.state,
    owners.c.worker_name,
    owners.c.lease_ttl_ms,
    owners.c.lease_expires_at,
    owners.c.registered_at,
    owners.c.renewed_at,
    owners.c.drain_deadline_at,
    owners.c.ended_at,
    owners.c.end_reason,
)
"""The columns of an `OwnerRow` before its refs and its id."""

HOLDER_FACTS = (
    *OWNER_COLUMNS,
    owners.c.state,
    owners.c.lease_expires_at,
    owner_refs.c.path,
    owner_refs.c.status,
    owner_refs.c.created_at,
)
"""The columns of a `HolderRow`."""

_owner = select(*OWNER_FACTS, REF_COUNT, owners.c.id)
_excepted = json_column("rows", "id", int)
_HOLDERS_OF = Statement(
    select(*HOLDER_FACTS)
    .select_from(owner_refs.join(owners, owners.c.id == owner_refs.c.owner_id))
    .where(
        owner_refs.c.entry_id == bindparam("entry_id"),
        owner_refs.c.owner_id.not_in(select(_excepted.c.id)),
    )
    .order_by(owner_refs.c.owner_id)
    .limit(bindparam("row_limit")),
    HolderRow,
)
_FIND_ENTRY = Statement(
    _entry.where(
        entries.c.slug == bindparam("slug"),
        entries.c.suffix == bindparam("suffix"),
        entries.c.filename == bindparam("filename"),
    ),
    _EntryRow,
)
_FIND_OWNER = Statement(_owner.where(names_owner(owners)), OwnerRow)
_ENTRIES_OF_OWNER = Statement(
    _entry.join(owner_refs, owner_refs.c.entry_id == entries.c.id)
    .where(owner_refs.c.owner_id == bindparam("owner_id"))
    .order_by(entries.c.id),
    _EntryRow,
)
_OWNERS_AFTER = Statement(
    _owner.where(
        tuple_(*OWNER_COLUMNS) > tuple_(*[bindparam(f"after_{name}") for name in OWNER_NAMES])
    )
    .order_by(*OWNER_COLUMNS)
    .limit(bindparam("row_limit")),
    OwnerRow,
)
_COUNT_ENTRIES = Statement(select(func.count()).select_from(entries))
_MODELS_AFTER = Statement(
    select(
        entries.c.slug,
        entries.c.suffix,
        func.count().label("files"),
        cast(func.sum(entries.c.size), BigInteger).label("size"),
        func.max(entries.c.base_slug).label("base_slug"),
    )
    .where(
        tuple_(entries.c.slug, entries.c.suffix)
        > tuple_(bindparam("after_slug"), bindparam("after_suffix"))
    )
    .group_by(entries.c.slug, entries.c.suffix)
    .order_by(entries.c.slug, entries.c.suffix)
    .limit(bindparam("row_limit")),
    _ModelRow,
)
_of_model = (entries.c.slug == bindparam("slug")) & (entries.c.suffix == bindparam("suffix"))
_HOLDERS_OF_MODEL = Statement(
    select(
        func.count(owner_refs.c.owner_id.distinct()).label("holders"),
        func.count().label("refs"),
    )
    .select_from(entries.join(owner_refs, owner_refs.c.entry_id == entries.c.id))
    .where(_of_model),
    _Holding,
)
_has_bytes = exists().where(owner_refs.c.entry_id == entries.c.id, owner_refs.c.status == "ok")
_UNSERVEABLE_ENTRY = Statement(select(entries.c.id).where(_of_model, ~_has_bytes).limit(1))


def find_entry(conn: Connection, key: ArtifactKey) -> Entry | None:
    """The entry of a key, or None: nobody holds it."""
    rows = conn.run(_FIND_ENTRY, slug=key.slug, suffix=key.suffix, filename=key.filename)
    return _entry_record(rows[0]) if rows else None


def list_entries(
    conn: Connection, *, after: int, limit: int, filters: Mapping[str, str]
) -> list[Entry]:
    """A page of entries in the order of their ids.

    `filters` gives values of slug, suffix, filename and checksum to look for.
    """
    return [
        _entry_record(row)
        for row in conn.run(
            _entries_page(tuple(sorted(filters))), after=after, row_limit=limit, **filters
        )
    ]


def count_entries(conn: Connection) -> int:
    """How many entries there are."""
    ((count,),) = conn.run(_COUNT_ENTRIES)
    return int(count)


def list_models(
    conn: Connection, after: tuple[str, str], limit: int
) -> tuple[list[Model], tuple[str, str] | None]:
    """A page of models in the order of (slug, suffix), and the last of it if more may follow."""
    rows = conn.run(_MODELS_AFTER, after_slug=after[0], after_suffix=after[1], row_limit=limit)
    models: list[Model] = []
    counted = 0
    for row in rows:
        held = conn.run(_HOLDERS_OF_MODEL, slug=row.slug, suffix=row.suffix)[0]
        serveable = not conn.run(_UNSERVEABLE_ENTRY, slug=row.slug, suffix=row.suffix)
        models.append(
            Model(
                row.slug,
                row.suffix,
                row.files,
                row.size,
                holders=held.holders,
                serveable=serveable,
                base_slug=row.base_slug,
            )
        )
        counted += held.refs
        if counted >= REFS_COUNTED:
            break
    complete = len(rows) < limit and len(models) == len(rows)
    return models, None if complete else (models[-1].slug, models[-1].suffix)


def explain(conn: Connection, key: ArtifactKey) -> Explanation:
    """An entry, its holders (at most 1000) and its last 20 events, newest first."""
    entry = find_entry(conn, key)
    return Explanation(
        entry,
        holders_of(conn, entry.id, limit=EXPLAINED_HOLDERS) if entry else (),
        tuple(last_events(conn, key, entry)),
        find_other_revisions(conn, entry) if entry else (),
    )


def with_ways(explained: Explanation, ways: Mapping[str, str]) -> Explanation:
    """The same with where the paths of holders lead, as far as that is known."""
    holders = tuple(
        replace(holder, path=ways.get(holder.path, holder.path)) if holder.path else holder
        for holder in explained.holders
    )
    return replace(explained, holders=holders)


def holders_of(
    conn: Connection, entry_id: int, *, limit: int, except_owner_ids: Sequence[int] = ()
) -> tuple[Holder, ...]:
    """Who holds an entry, in the order in which they came."""
    rows = conn.run(
        _HOLDERS_OF,
        entry_id=entry_id,
        row_limit=limit,
        rows=as_rows(except_owner_ids),
    )
    return tuple(holder_record(row) for row in rows)


def find_owner(conn: Connection, owner: Owner) -> tuple[OwnerRecord, list[Entry]] | None:
    """An owner with its entries, or None: unknown. An ended owner is known by its tombstone."""
    for row in conn.run(_FIND_OWNER, **parameters_of(owner)):
        held = conn.run(_ENTRIES_OF_OWNER, owner_id=row.id)
        return owner_record(row), [_entry_record(entry) for entry in held]
    return None


def list_owners(conn: Connection, *, after: Owner | None, limit: int) -> list[OwnerRecord]:
    """A page of owners in the order of their identity, which compares as text."""
    start = dict.fromkeys(OWNER_NAMES, "") if after is None else parameters_of(after)
    bounds: dict[str, Any] = {f"after_{name}": part for name, part in start.items()}
    return [owner_record(row) for row in conn.run(_OWNERS_AFTER, row_limit=limit, **bounds)]


@functools.lru_cache(maxsize=16)
def _entries_page(filters: tuple[str, ...]) -> Statement[_EntryRow]:
    query: Select[Any] = _entry.where(entries.c.id > bindparam("after"))
    for name in filters:
        query = query.where(entries.c[name] == bindparam(name))
    return Statement(query.order_by(entries.c.id).limit(bindparam("row_limit")), _EntryRow)


def _entry_record(row: _EntryRow) -> Entry:
    return Entry(
        id=row.id,
        key=ArtifactKey(row.slug, row.suffix, row.filename),
        checksum=row.checksum,
        size=row.size,
        generation=row.generation,
        created_at=row.created_at,
        updated_at=row.updated_at,
        holders=row.holders,
        base_slug=row.base_slug,
    )


def holder_record(row: HolderRow) -> Holder:
    """A holder's row as a record."""
    return Holder(
        owner=owner_of(row),
        state=OwnerState(row.state),
        lease_expires_at=row.lease_expires_at,
        source=Source.COPIED if row.path is None else Source.IN_PLACE,
        path=row.path,
        status=RefStatus(row.status),
        since=row.created_at,
    )


def owner_record(row: OwnerRow) -> OwnerRecord:
    """An owner's row as a record."""
    return OwnerRecord(
        owner=owner_of(row),
        state=OwnerState(row.state),
        worker_name=row.worker_name,
        lease=lease_of(row.lease_ttl_ms, row.lease_expires_at),
        registered_at=row.registered_at,
        renewed_at=row.renewed_at,
        drain_deadline_at=row.drain_deadline_at,
        ended_at=row.ended_at,
        end_reason=row.end_reason,
        refs=row.refs,
    )
