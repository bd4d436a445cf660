"""Looking: what the registry holds, who holds it and what happened. Nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, bindparam, func, select, tuple_

from registry.db.engine import Connection, Row, Statement, json_rows
from registry.db.tables import entries, events, owner_refs, owners
from registry.records import (
    ArtifactKey,
    Entry,
    Event,
    Explanation,
    Holder,
    Lease,
    Owner,
    OwnerRecord,
    OwnerState,
    RefStatus,
    Source,
)

EXPLAINED_EVENTS = 20
EXPLAINED_HOLDERS = 1000

_identity = (
    owners.c.namespace,
    owners.c.component,
    owners.c.endpoint,
    owners.c.instance_id,
    owners.c.lora_slug,
)
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
    _holder_count.label("holders"),
)
_ref_count = (
    select(func.count())
    .where(owner_refs.c.owner_id == owners.c.id)
    .correlate(owners)
    .scalar_subquery()
)
_owner = select(
    *_identity,
    owners.c.state,
    owners.c.worker_name,
    owners.c.lease_ttl_ms,
    owners.c.lease_expires_at,
    owners.c.registered_at,
    owners.c.renewed_at,
    owners.c.drain_deadline_at,
    owners.c.ended_at,
    owners.c.end_reason,
    _ref_count.label("refs"),
    owners.c.id,
)
_event = select(
    events.c.id,
    events.c.at,
    events.c.kind,
    events.c.namespace,
    events.c.component,
    events.c.endpoint,
    events.c.instance_id,
    events.c.lora_slug,
    events.c.slug,
    events.c.suffix,
    events.c.filename,
    events.c.checksum,
    events.c.previous_checksum,
    events.c.reason,
    events.c.actor,
    events.c.request_id,
)

_excepted = json_rows("rows", id=int)
_HOLDERS_OF = Statement(
    select(
        *_identity,
        owners.c.state,
        owners.c.lease_expires_at,
        owner_refs.c.path,
        owner_refs.c.status,
        owner_refs.c.created_at,
    )
    .select_from(owner_refs.join(owners, owners.c.id == owner_refs.c.owner_id))
    .where(
        owner_refs.c.entry_id == bindparam("entry_id"),
        owner_refs.c.owner_id.not_in(select(_excepted.c.id)),
    )
    .order_by(owner_refs.c.owner_id)
    .limit(bindparam("row_limit"))
)
_FIND_ENTRY = Statement(
    _entry.where(
        entries.c.slug == bindparam("slug"),
        entries.c.suffix == bindparam("suffix"),
        entries.c.filename == bindparam("filename"),
    )
)
_EVENTS_OF_KEY = Statement(
    _event.where(
        events.c.slug == bindparam("slug"),
        events.c.suffix == bindparam("suffix"),
        events.c.filename == bindparam("filename"),
    )
    .order_by(events.c.id.desc())
    .limit(bindparam("row_limit"))
)
_FIND_OWNER = Statement(
    _owner.where(
        owners.c.namespace == bindparam("namespace"),
        owners.c.component == bindparam("component"),
        owners.c.endpoint == bindparam("endpoint"),
        owners.c.instance_id == bindparam("instance_id"),
        owners.c.lora_slug == bindparam("lora_slug"),
    )
)
_ENTRIES_OF_OWNER = Statement(
    _entry.join(owner_refs, owner_refs.c.entry_id == entries.c.id)
    .where(owner_refs.c.owner_id == bindparam("owner_id"))
    .order_by(entries.c.id)
)
_OWNERS_AFTER = Statement(
    _owner.where(
        tuple_(*_identity)
        > tuple_(*[bindparam(f"after_{index}") for index in range(len(_identity))])
    )
    .order_by(*_identity)
    .limit(bindparam("row_limit"))
)
_COUNT_ENTRIES = Statement(select(func.count()).select_from(entries))


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
    count: int = conn.run(_COUNT_ENTRIES)[0][0]
    return count


def explain(conn: Connection, key: ArtifactKey) -> Explanation:
    """An entry, its holders (at most 1000) and its last 20 events, newest first."""
    entry = find_entry(conn, key)
    return Explanation(
        entry,
        holders_of(conn, entry.id, limit=EXPLAINED_HOLDERS) if entry else (),
        tuple(
            _event_record(row)
            for row in conn.run(
                _EVENTS_OF_KEY,
                slug=key.slug,
                suffix=key.suffix,
                filename=key.filename,
                row_limit=EXPLAINED_EVENTS,
            )
        ),
    )


def holders_of(
    conn: Connection, entry_id: int, *, limit: int, except_owner_ids: Sequence[int] = ()
) -> tuple[Holder, ...]:
    """Who holds an entry, in the order in which they came."""
    rows = conn.run(
        _HOLDERS_OF,
        entry_id=entry_id,
        row_limit=limit,
        rows=json.dumps([[owner_id] for owner_id in except_owner_ids]),
    )
    return tuple(_holder_record(row) for row in rows)


def find_owner(conn: Connection, owner: Owner) -> tuple[OwnerRecord, list[Entry]] | None:
    """An owner with its entries, or None: unknown. An ended owner is known by its tombstone."""
    rows = conn.run(
        _FIND_OWNER,
        namespace=owner.namespace,
        component=owner.component,
        endpoint=owner.endpoint,
        instance_id=str(owner.instance_id),
        lora_slug=owner.lora_slug or "",
    )
    if not rows:
        return None
    held = conn.run(_ENTRIES_OF_OWNER, owner_id=rows[0][-1])
    return _owner_record(rows[0]), [_entry_record(row) for row in held]


def list_owners(conn: Connection, *, after: Owner | None, limit: int) -> list[OwnerRecord]:
    """A page of owners in the order of their identity, which compares as text."""
    start: Sequence[str] = ("",) * len(_identity)
    if after is not None:
        start = (
            after.namespace,
            after.component,
            after.endpoint,
            str(after.instance_id),
            after.lora_slug or "",
        )
    bounds: dict[str, Any] = {f"after_{index}": part for index, part in enumerate(start)}
    return [_owner_record(row) for row in conn.run(_OWNERS_AFTER, row_limit=limit, **bounds)]


_pages: dict[tuple[str, ...], Statement] = {}


def _entries_page(filters: tuple[str, ...]) -> Statement:
    statement = _pages.get(filters)
    if statement is None:
        query: Select[Any] = _entry.where(entries.c.id > bindparam("after"))
        for name in filters:
            query = query.where(entries.c[name] == bindparam(name))
        statement = Statement(query.order_by(entries.c.id).limit(bindparam("row_limit")))
        _pages[filters] = statement
    return statement


def _owner_of(row: Sequence[Any]) -> Owner:
    namespace, component, endpoint, instance_id, lora_slug = row
    return Owner(namespace, component, endpoint, int(instance_id), lora_slug or None)


def _entry_record(row: Row) -> Entry:
    return Entry(row[0], ArtifactKey(*row[1:4]), *row[4:])


def _holder_record(row: Row) -> Holder:
    state, lease_expires_at, path, status, since = row[5:]
    source = Source.COPIED if path is None else Source.IN_PLACE
    return Holder(
        _owner_of(row[:5]),
        OwnerState(state),
        lease_expires_at,
        source,
        path,
        RefStatus(status),
        since,
    )


def _owner_record(row: Row) -> OwnerRecord:
    ttl_ms, expires_at = row[7:9]
    return OwnerRecord(
        _owner_of(row[:5]),
        OwnerState(row[5]),
        row[6],
        None if ttl_ms is None else Lease(ttl_ms, expires_at),
        *row[9:15],
    )


def _event_record(row: Row) -> Event:
    event_id, at, kind = row[:3]
    owner = None if row[3] is None else _owner_of(row[3:8])
    return Event(event_id, at, kind, owner, *row[8:])
