"""Unregister an owner (S7), and an administrator's removal of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from sqlalchemy import bindparam, delete, exists, func, select

from registry.core.identity import Identity
from registry.core.records import ArtifactKey, Kept, OwnerState, Receipt, Removal, Unregistration
from registry.store.engine import Connection
from registry.store.journal import EventRow, find_unresolved, write_departure, write_events
from registry.store.ops.release import FIND_OWNERS, SINCE, FoundOwner, Freed, Release, release
from registry.store.owner_columns import identity, identity_of
from registry.store.sql import Statement, as_rows, json_column
from registry.store.tables import entries, events, owner_refs

_ids = json_column("rows", "id", int)


def unregister(conn: Connection, now: int, items: Sequence[Unregistration]) -> list[Receipt]:
    """unregister_for_owner (S7): release every ref of each owner and end it; a receipt each.

    An owner that is unknown, or ended already, gets a receipt of zeros. An ended one that still
    holds something, which it should not, lets go of it and stays ended as it was. One that was
    refused lately is put down as detached: its conflict is over.
    """
    wanted = as_rows([identity(item.owner) for item in items])
    found = {identity_of(row): row for row in conn.run(FIND_OWNERS, rows=wanted)}
    refused = _refused_of(conn, now, [who for who in map(_who, items) if _is_gone(found.get(who))])
    if refused and len(items) > 1:
        return [receipt for item in items for receipt in unregister(conn, now, [item])]
    for item in items if refused else ():
        last = conn.last_ids().get("events", 0)
        write_departure(conn, now, last, _who(item), item.actor, item.request_id)
    releases: dict[int, Release] = {}
    for index, item in enumerate(items):
        owner = found.pop(identity(item.owner), None)
        if owner is not None:
            releases[index] = Release(
                owner.id,
                ended=None if OwnerState(owner.state).ended else OwnerState.DETACHED,
                reason="unregistered",
                actor=item.actor,
                request_id=item.request_id,
            )
    freed = release(conn, now, list(releases.values()))
    told = _receipts(conn, freed, {each.owner_id: index for index, each in releases.items()}, items)
    return [told.get(index) or Receipt(item.owner) for index, item in enumerate(items)]


class _Line(NamedTuple):
    """A line of the journal about an entry."""

    owner_id: int
    kind: str
    entry_id: int
    slug: str
    suffix: str
    filename: str


class _HolderCount(NamedTuple):
    entry_id: int
    holders: int


_LINES = Statement(
    select(
        events.c.owner_id,
        events.c.kind,
        events.c.entry_id,
        events.c.slug,
        events.c.suffix,
        events.c.filename,
    )
    .where(SINCE, events.c.entry_id.is_not(None))
    .order_by(events.c.id),
    _Line,
)
_HOLDERS = Statement(
    select(owner_refs.c.entry_id, func.count().label("holders"))
    .where(owner_refs.c.entry_id.in_(select(_ids.c.id)))
    .group_by(owner_refs.c.entry_id),
    _HolderCount,
)


def _receipts(
    conn: Connection, freed: Freed, places: dict[int, int], items: Sequence[Unregistration]
) -> dict[int, Receipt]:
    """The receipts of the owners that held something, by the places of their items: what the
    journal has just been told of them."""
    if not freed.refs:
        return {}
    released: dict[int, dict[int, ArtifactKey]] = {}
    removed: set[tuple[int, int]] = set()
    for line in conn.run(_LINES, last_event_id=freed.last_event_id):
        if line.kind == "removed":
            removed.add((line.owner_id, line.entry_id))
        else:
            key = ArtifactKey(line.slug, line.suffix, line.filename)
            released.setdefault(line.owner_id, {})[line.entry_id] = key
    touched = {entry_id for keys in released.values() for entry_id in keys}
    rows = conn.run(_HOLDERS, rows=as_rows(touched))
    left: Counter[int] = Counter({row.entry_id: row.holders for row in rows})
    receipts: dict[int, Receipt] = {}
    for owner_id, keys in reversed(released.items()):
        gone = [entry_id for entry_id in keys if (owner_id, entry_id) in removed]
        kept = [entry_id for entry_id in keys if (owner_id, entry_id) not in removed]
        receipts[places[owner_id]] = Receipt(
            items[places[owner_id]].owner,
            len(keys),
            tuple(keys[entry_id] for entry_id in gone),
            tuple(Kept(keys[entry_id], left[entry_id]) for entry_id in kept),
        )
        left.update(list(keys))
    return receipts


def _who(item: Unregistration) -> Identity:
    return identity(item.owner)


def _is_gone(found: FoundOwner | None) -> bool:
    """Whether an owner has no row, or ended."""
    return found is None or OwnerState(found.state).ended


def _refused_of(conn: Connection, now: int, gone: Sequence[Identity]) -> Set[Identity]:
    """Those who were refused within the last hour, and neither succeeded nor left since."""
    return {identity_of(each) for each in find_unresolved(conn, now)} & set(gone) if gone else set()


# Remove

_model_keys = (entries.c.slug == bindparam("slug"), entries.c.suffix == bindparam("suffix"))


class _EntryOfModel(NamedTuple):
    id: int
    slug: str
    suffix: str
    filename: str


class _OwnerOfModel(NamedTuple):
    owner_id: int


_ENTRIES_OF_MODEL = Statement(
    select(entries.c.id, entries.c.slug, entries.c.suffix, entries.c.filename)
    .where(*_model_keys)
    .order_by(entries.c.id),
    _EntryOfModel,
)
_OWNERS_OF_MODEL = Statement(
    select(owner_refs.c.owner_id)
    .join(entries, entries.c.id == owner_refs.c.entry_id)
    .where(*_model_keys)
    .distinct()
    .order_by(owner_refs.c.owner_id),
    _OwnerOfModel,
)
_held = exists().where(owner_refs.c.entry_id == entries.c.id)
_DELETE_ORPHANS = Statement(delete(entries).where(entries.c.id.in_(select(_ids.c.id)), ~_held))


def remove(conn: Connection, now: int, items: Sequence[Removal]) -> list[Receipt]:
    """Administrator's removal: drop the entries of each model, whoever holds them."""
    return [_remove(conn, now, item) for item in items]


def _remove(conn: Connection, now: int, item: Removal) -> Receipt:
    model = {"slug": item.slug, "suffix": item.suffix}
    keys = [
        ArtifactKey(entry.slug, entry.suffix, entry.filename)
        for entry in conn.run(_ENTRIES_OF_MODEL, **model)
    ]
    releases = [
        Release(
            owner.owner_id, reason="administrator", actor=item.actor, request_id=item.request_id
        )
        for owner in conn.run(_OWNERS_OF_MODEL, **model)
    ]
    freed = release(conn, now, releases, model=(item.slug, item.suffix))
    orphans = [entry.id for entry in conn.run(_ENTRIES_OF_MODEL, **model)]
    _delete_orphans(conn, now, item, orphans)
    return Receipt(None, freed.refs, tuple(keys))


def _delete_orphans(conn: Connection, now: int, item: Removal, entry_ids: Sequence[int]) -> None:
    """Entries that nobody held: there should be none, and an administrator may clear them."""
    if entry_ids:
        first = conn.last_ids().get("events", 0) + 1
        rows = [
            EventRow(
                id=first + index,
                kind="removed",
                owner_id=None,
                entry_id=entry_id,
                reason="administrator",
                actor=item.actor,
                request_id=item.request_id,
            )
            for index, entry_id in enumerate(entry_ids)
        ]
        write_events(conn, now, rows)
        conn.run(_DELETE_ORPHANS, rows=as_rows(entry_ids))
