"""Looking: what the registry holds, who holds it and what happened. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Select,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
)

from registry.core.records import (
    ArtifactKey,
    Entry,
    Event,
    EventFilter,
    EventOrder,
    EventPage,
    Explanation,
    Holder,
    Lease,
    Model,
    Owner,
    OwnerRecord,
    OwnerState,
    RefStatus,
    Source,
)
from registry.store.sqlite.engine import Connection, Row, Statement, as_rows, json_rows
from registry.store.tables import ABOUT_OWNERS, entries, events, owner_refs, owners

EXPLAINED_EVENTS = 20
EXPLAINED_HOLDERS = 1000
EVENTS_LOOKED_AT = 10_000
"""Most rows of the journal that are read for one page of it, in a row."""
EVENTS_LOOKED_UP = 4_000
"""Most rows of the journal that are looked up for one page of it, wherever they are."""
REFS_COUNTED = 100_000
"""A page of models ends where this many owner refs were counted for it."""

OWNER_NAMES = ("namespace", "component", "endpoint", "instance_id", "lora_slug")

_identity = tuple(owners.c[name] for name in OWNER_NAMES)
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
_earlier = events.alias("earlier")
_ENTRY_IDS_GONE = Statement(
    select(_earlier.c.entry_id)
    .where(
        _earlier.c.slug == bindparam("slug"),
        _earlier.c.suffix == bindparam("suffix"),
        _earlier.c.filename == bindparam("filename"),
        _earlier.c.kind == literal_column("'removed'"),
    )
    .order_by(_earlier.c.id.desc())
    .limit(bindparam("row_limit"))
)
_EVENTS_OF_ENTRY = Statement(
    _event.where(events.c.entry_id == bindparam("entry_id"))
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
_MODELS_AFTER = Statement(
    select(entries.c.slug, entries.c.suffix, func.count(), func.sum(entries.c.size))
    .where(
        tuple_(entries.c.slug, entries.c.suffix)
        > tuple_(bindparam("after_slug"), bindparam("after_suffix"))
    )
    .group_by(entries.c.slug, entries.c.suffix)
    .order_by(entries.c.slug, entries.c.suffix)
    .limit(bindparam("row_limit"))
)
_of_model = (entries.c.slug == bindparam("slug")) & (entries.c.suffix == bindparam("suffix"))
_HOLDERS_OF_MODEL = Statement(
    select(func.count(owner_refs.c.owner_id.distinct()), func.count())
    .select_from(entries.join(owner_refs, owner_refs.c.entry_id == entries.c.id))
    .where(_of_model)
)
_has_bytes = exists().where(owner_refs.c.entry_id == entries.c.id, owner_refs.c.status == "ok")
_UNSERVEABLE_ENTRY = Statement(select(entries.c.id).where(_of_model, ~_has_bytes).limit(1))
_LAST_EVENT = Statement(select(func.coalesce(func.max(events.c.id), 0)))


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


def list_models(
    conn: Connection, after: tuple[str, str], limit: int
) -> tuple[list[Model], tuple[str, str] | None]:
    """A page of models in the order of (slug, suffix), and the last of it if more may follow."""
    rows = conn.run(_MODELS_AFTER, after_slug=after[0], after_suffix=after[1], row_limit=limit)
    models: list[Model] = []
    counted = 0
    for slug, suffix, files, size in rows:
        holders, refs = conn.run(_HOLDERS_OF_MODEL, slug=slug, suffix=suffix)[0]
        serveable = not conn.run(_UNSERVEABLE_ENTRY, slug=slug, suffix=suffix)
        models.append(Model(slug, suffix, files, size, holders, serveable))
        counted += refs
        if counted >= REFS_COUNTED:
            break
    complete = len(rows) < limit and len(models) == len(rows)
    return models, None if complete else (models[-1].slug, models[-1].suffix)


def list_events(
    conn: Connection, wanted: EventFilter, order: EventOrder, after: int | None, limit: int
) -> EventPage:
    """A page of the journal, in an order of ids, from behind `after`; None begins at its start.

    At most 10,000 rows are read for it, however rare what is wanted may be: a page can hold fewer
    events than `limit`, or none, and have a next one.
    """
    newest_first = order is EventOrder.NEWEST
    last: int = conn.run(_LAST_EVENT)[0][0]
    if after is None:
        after = last + 1 if newest_first else 0
    values = _event_values(wanted)
    bounds = {"after": after, "row_limit": limit}
    window = EVENTS_LOOKED_AT if values else limit
    found = _event_statements(tuple(values), newest_first)
    window_end = None
    if found.few and len(conn.run(found.few, window=EVENTS_LOOKED_UP, **values)) < EVENTS_LOOKED_UP:
        rows = conn.run(found.from_index, **bounds, **values)
    else:
        rows = conn.run(found.from_window, window=window, **bounds, **values)
        if len(rows) < limit:
            ends = conn.run(found.window_end, window=window, after=after)
            window_end = ends[0][0] if ends else None
    following = rows[-1][0] if len(rows) == limit else window_end
    return EventPage(tuple(map(_event_record, rows)), following, last)


def explain(conn: Connection, key: ArtifactKey) -> Explanation:
    """An entry, its holders (at most 1000) and its last 20 events, newest first."""
    entry = find_entry(conn, key)
    return Explanation(
        entry,
        holders_of(conn, entry.id, limit=EXPLAINED_HOLDERS) if entry else (),
        tuple(_last_events(conn, key, entry)),
    )


def _last_events(conn: Connection, key: ArtifactKey, entry: Entry | None) -> list[Event]:
    """The last events of a key: of the entry that is there, then of those that were before it."""
    gone = conn.run(
        _ENTRY_IDS_GONE,
        slug=key.slug,
        suffix=key.suffix,
        filename=key.filename,
        row_limit=EXPLAINED_EVENTS,
    )
    found: list[Event] = []
    for entry_id in dict.fromkeys(([entry.id] if entry else []) + [row[0] for row in gone]):
        missing = EXPLAINED_EVENTS - len(found)
        if not missing:
            break
        rows = conn.run(_EVENTS_OF_ENTRY, entry_id=entry_id, row_limit=missing)
        found += map(_event_record, rows)
    return found


def holders_of(
    conn: Connection, entry_id: int, *, limit: int, except_owner_ids: Sequence[int] = ()
) -> tuple[Holder, ...]:
    """Who holds an entry, in the order in which they came."""
    rows = conn.run(
        _HOLDERS_OF,
        entry_id=entry_id,
        row_limit=limit,
        rows=as_rows([[owner_id] for owner_id in except_owner_ids]),
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


@dataclass(frozen=True, slots=True)
class _EventStatements:
    """How a page of events is found that match certain filters, in one order.

    What an index leads to is counted first, and taken from there if it is not too much. What no
    index leads to, or too much of it, is looked for in a window: the next so many rows of the
    journal.
    """

    few: Statement | None
    from_index: Statement
    from_window: Statement
    window_end: Statement


_event_pages: dict[tuple[tuple[str, ...], bool], _EventStatements] = {}


def _event_values(wanted: EventFilter) -> dict[str, str]:
    values: dict[str, str] = {}
    if wanted.owner is not None:
        owner = wanted.owner
        values = {
            "namespace": owner.namespace,
            "component": owner.component,
            "endpoint": owner.endpoint,
            "instance_id": str(owner.instance_id),
            "lora_slug": owner.lora_slug or "",
        }
    if wanted.slug is not None:
        values["slug"] = wanted.slug
    if wanted.kind is not None:
        values["kind"] = wanted.kind
    return values


def _event_statements(names: tuple[str, ...], newest_first: bool) -> _EventStatements:
    found = _event_pages.get((names, newest_first))
    if found is None:
        found = _event_pages[names, newest_first] = _build_event_statements(names, newest_first)
    return found


def _build_event_statements(names: tuple[str, ...], newest_first: bool) -> _EventStatements:
    is_wanted = [events.c[name] == bindparam(name) for name in names]
    indexed = _found_by_name(names)
    # Not the bare id: with it SQLite may walk the whole table in its order instead of the index.
    number: ColumnElement[int] = events.c.id + 0
    window = _in_order(_event, events.c.id, newest_first).limit(bindparam("window")).subquery()
    window_order = window.c.id.desc() if newest_first else window.c.id
    from_index = _event.where(*is_wanted)
    if indexed is not None:
        from_index = from_index.where(events.c.id.in_(indexed))
    return _EventStatements(
        None if indexed is None else Statement(indexed.limit(bindparam("window"))),
        Statement(_in_order(from_index, number, newest_first).limit(bindparam("row_limit"))),
        Statement(
            select(window)
            .where(*(window.c[name] == bindparam(name) for name in names))
            .order_by(window_order)
            .limit(bindparam("row_limit"))
        ),
        Statement(
            _in_order(select(events.c.id), events.c.id, newest_first)
            .limit(1)
            .offset(bindparam("window") - 1)
        ),
    )


def _found_by_name(names: tuple[str, ...]) -> CompoundSelect[tuple[int]] | None:
    """The ids of the events of an owner, or of a slug, or of both; some of them more than once.

    Names lead to the ids that they stand for or stood for, and those to the events.
    """
    is_slug = [events.c.slug == bindparam("slug")] if "slug" in names else []
    if "namespace" in names:
        is_owner = [events.c[name] == bindparam(name) for name in OWNER_NAMES]
        is_about = text(f"({ABOUT_OWNERS})")
        was_owner = select(_earlier.c.owner_id).where(
            *(_earlier.c[name] == bindparam(name) for name in OWNER_NAMES),
            is_about,
        )
        owner_ids = union_all(
            select(owners.c.id).where(*(owners.c[name] == bindparam(name) for name in OWNER_NAMES)),
            was_owner,
        )
        return union_all(
            select(events.c.id).where(events.c.owner_id.in_(owner_ids), *is_slug),
            select(events.c.id).where(*is_owner, is_about, *is_slug),
        )
    if is_slug:
        is_there = select(entries.c.id).where(entries.c.slug == bindparam("slug"))
        was_there = select(_earlier.c.entry_id).where(
            _earlier.c.slug == bindparam("slug"), _earlier.c.kind == literal_column("'removed'")
        )
        return union_all(
            select(events.c.id).where(events.c.entry_id.in_(is_there)),
            select(events.c.id).where(events.c.entry_id.in_(was_there)),
        )
    return None


def _in_order(query: Select[Any], number: ColumnElement[int], newest_first: bool) -> Select[Any]:
    """The rows behind `after` in an order of ids."""
    after: BindParameter[int] = bindparam("after")
    if newest_first:
        return query.where(number < after).order_by(number.desc())
    return query.where(number > after).order_by(number)


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
