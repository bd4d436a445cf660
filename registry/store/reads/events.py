"""The journal as it is looked at: pages of it, and the last events of a key."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.sql.selectable import GenerativeSelect

from registry.core.events import Event, EventFilter, EventOrder, EventPage
from registry.core.listings import Entry
from registry.core.records import ArtifactKey
from registry.store.engine import Connection
from registry.store.owner_columns import names_owner, owner_of, parameters_of
from registry.store.sql import Row, Statement
from registry.store.tables import ABOUT_OWNERS, entries, events, owners

EXPLAINED_EVENTS = 20
EVENTS_LOOKED_AT = 10_000
"""Most rows of the journal that are read for one page of it, in a row."""
EVENTS_LOOKED_UP = 4_000
"""Most rows of the journal that are looked up for one page of it, wherever they are."""


class _EventRow(NamedTuple):
    """A line of the journal. The names of an owner are there, or none of them."""

    id: int
    at: int
    kind: str
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    slug: str | None
    suffix: str | None
    filename: str | None
    checksum: str | None
    previous_checksum: str | None
    reason: str | None
    actor: str | None
    request_id: str | None
    size: int | None
    previous_size: int | None


_event = select(*(events.c[name] for name in _EventRow._fields))
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
    .limit(bindparam("row_limit")),
    _EventRow,
)
_LAST_EVENT = Statement(select(func.coalesce(func.max(events.c.id), 0)))


def list_events(
    conn: Connection, wanted: EventFilter, order: EventOrder, after: int | None, limit: int
) -> EventPage:
    """A page of the journal, in an order of ids, from behind `after`; None begins at its start.

    At most 10,000 rows are read for it, however rare what is wanted may be: a page can hold fewer
    events than `limit`, or none, and have a next one.
    """
    newest_first = order is EventOrder.NEWEST
    ((last,),) = conn.run(_LAST_EVENT)
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
            for (event_id,) in conn.run(found.window_end, window=window, after=after):
                window_end = event_id
    following = rows[-1].id if len(rows) == limit else window_end
    return EventPage(tuple(map(_event_record, rows)), following, last)


def last_events(conn: Connection, key: ArtifactKey, entry: Entry | None) -> list[Event]:
    """The last events of a key: of the entry that is there, then of those that were before it."""
    gone = conn.run(
        _ENTRY_IDS_GONE,
        slug=key.slug,
        suffix=key.suffix,
        filename=key.filename,
        row_limit=EXPLAINED_EVENTS,
    )
    found: list[Event] = []
    for entry_id in dict.fromkeys(
        [*([entry.id] if entry else []), *(entry_id for (entry_id,) in gone)]
    ):
        missing = EXPLAINED_EVENTS - len(found)
        if not missing:
            break
        rows = conn.run(_EVENTS_OF_ENTRY, entry_id=entry_id, row_limit=missing)
        found += map(_event_record, rows)
    return found


# Pages of it, by filters


@dataclass(frozen=True, slots=True)
class _EventStatements:
    """How a page of events is found that match certain filters, in one order.

    What an index leads to is counted first, and taken from there if it is not too much. What no
    index leads to, or too much of it, is looked for in a window: the next so many rows of the
    journal.
    """

    few: Statement[Row] | None
    from_index: Statement[_EventRow]
    from_window: Statement[_EventRow]
    window_end: Statement[Row]


def _event_values(wanted: EventFilter) -> dict[str, str]:
    values: dict[str, str] = {}
    if wanted.owner is not None:
        values = parameters_of(wanted.owner)
    if wanted.slug is not None:
        values["slug"] = wanted.slug
    if wanted.kind is not None:
        values["kind"] = wanted.kind
    if wanted.request_id is not None:
        values["request_id"] = wanted.request_id
    return values


@functools.lru_cache(maxsize=16)
def _event_statements(names: tuple[str, ...], newest_first: bool) -> _EventStatements:
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
        few=None if indexed is None else Statement(indexed.limit(bindparam("window"))),
        from_index=Statement(
            _in_order(from_index, number, newest_first).limit(bindparam("row_limit")), _EventRow
        ),
        from_window=Statement(
            select(window)
            .where(*(window.c[name] == bindparam(name) for name in names))
            .order_by(window_order)
            .limit(bindparam("row_limit")),
            _EventRow,
        ),
        window_end=Statement(
            _in_order(select(events.c.id), events.c.id, newest_first)
            .limit(1)
            .offset(bindparam("window") - 1)
        ),
    )


def _found_by_name(names: tuple[str, ...]) -> GenerativeSelect | None:
    """The ids of the events of a request; or of an owner, or of a slug, or of both, some of them
    more than once.

    Names lead to the ids that they stand for or stood for, and those to the events.
    """
    if "request_id" in names:
        # All that it is asked for with: one request has few events.
        return select(events.c.id).where(*(events.c[name] == bindparam(name) for name in names))
    is_slug = [events.c.slug == bindparam("slug")] if "slug" in names else []
    if "namespace" in names:
        is_about = text(f"({ABOUT_OWNERS})")
        was_owner = select(_earlier.c.owner_id).where(names_owner(_earlier), is_about)
        owner_ids = union_all(
            select(owners.c.id).where(names_owner(owners)),
            was_owner,
        )
        return union_all(
            select(events.c.id).where(events.c.owner_id.in_(owner_ids), *is_slug),
            select(events.c.id).where(names_owner(events), is_about, *is_slug),
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


def _event_record(row: _EventRow) -> Event:
    return Event(
        id=row.id,
        at=row.at,
        kind=row.kind,
        owner=None if row.namespace is None else owner_of(row),
        slug=row.slug,
        suffix=row.suffix,
        filename=row.filename,
        checksum=row.checksum,
        previous_checksum=row.previous_checksum,
        reason=row.reason,
        actor=row.actor,
        request_id=row.request_id,
        size=row.size,
        previous_size=row.previous_size,
    )
