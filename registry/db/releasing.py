"""Letting go: the one operation behind unregister, expiry, supersede and administrator's removal.

A dead worker and a polite one leave the same rows (S7, S9).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace

from sqlalchemy import bindparam, delete, exists, func, null, select, tuple_, update

from registry.db.blobs import collect_blobs
from registry.db.engine import Connection, Statement, as_rows, json_rows
from registry.db.journal import EventRow, find_unresolved, write_departure, write_events
from registry.db.sequences import last_ids
from registry.db.tables import entries, owner_refs, owners
from registry.records import (
    ArtifactKey,
    Kept,
    Owner,
    OwnerState,
    Receipt,
    Removal,
    Unregistration,
)


@dataclass(slots=True)
class Release:
    """Refs of one owner to let go, and the state that ends the owner, if it ends."""

    owner_id: int
    ended: OwnerState | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None
    entry_ids: list[int] = field(default_factory=list)
    removed_ids: list[int] = field(default_factory=list)
    """Filled in by `release`: the entries for which this was the last holder."""


_ids = json_rows("rows", id=int)
_pairs = json_rows("rows", owner_id=int, entry_id=int)
_identities = json_rows(
    "rows", namespace=str, component=str, endpoint=str, instance_id=str, lora_slug=str
)
_ends = json_rows("rows", owner_id=int, state=str, reason=str)
_models = json_rows("rows", slug=str, suffix=str)
_held = exists().where(owner_refs.c.entry_id == entries.c.id)

FIND_OWNERS = Statement(
    select(
        owners.c.namespace,
        owners.c.component,
        owners.c.endpoint,
        owners.c.instance_id,
        owners.c.lora_slug,
        owners.c.id,
        owners.c.state,
        owners.c.worker_name,
    ).join(
        _identities,
        (owners.c.namespace == _identities.c.namespace)
        & (owners.c.component == _identities.c.component)
        & (owners.c.endpoint == _identities.c.endpoint)
        & (owners.c.instance_id == _identities.c.instance_id)
        & (owners.c.lora_slug == _identities.c.lora_slug),
    )
)
_REFS_OF_OWNERS = Statement(
    select(owner_refs.c.owner_id, owner_refs.c.entry_id)
    .where(owner_refs.c.owner_id.in_(select(_ids.c.id)))
    .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
)
_REFS_OF_MODELS = Statement(
    select(owner_refs.c.owner_id, owner_refs.c.entry_id)
    .select_from(
        _models.join(
            entries, (entries.c.slug == _models.c.slug) & (entries.c.suffix == _models.c.suffix)
        ).join(owner_refs, owner_refs.c.entry_id == entries.c.id)
    )
    .order_by(owner_refs.c.owner_id, owner_refs.c.entry_id)
)
_ENTRIES_OF_MODELS = Statement(
    select(entries.c.id, entries.c.slug, entries.c.suffix, entries.c.filename)
    .select_from(
        _models.join(
            entries, (entries.c.slug == _models.c.slug) & (entries.c.suffix == _models.c.suffix)
        )
    )
    .order_by(entries.c.id)
)
_KEYS = Statement(
    select(entries.c.id, entries.c.slug, entries.c.suffix, entries.c.filename).where(
        entries.c.id.in_(select(_ids.c.id))
    )
)
_HOLDERS = Statement(
    select(owner_refs.c.entry_id, func.count())
    .where(owner_refs.c.entry_id.in_(select(_ids.c.id)))
    .group_by(owner_refs.c.entry_id)
)
_BLOBS_OF_REFS = Statement(
    select(owner_refs.c.blob_checksum)
    .join(
        _pairs,
        (owner_refs.c.owner_id == _pairs.c.owner_id) & (owner_refs.c.entry_id == _pairs.c.entry_id),
    )
    .where(owner_refs.c.blob_checksum.is_not(None))
    .distinct()
)
_DELETE_REFS = Statement(
    delete(owner_refs).where(
        tuple_(owner_refs.c.owner_id, owner_refs.c.entry_id).in_(
            select(_pairs.c.owner_id, _pairs.c.entry_id)
        )
    )
)
_UNHELD = Statement(select(entries.c.id).where(entries.c.id.in_(select(_ids.c.id)), ~_held))
_DELETE_ENTRIES = Statement(delete(entries).where(entries.c.id.in_(select(_ids.c.id))))
_END_OWNERS = Statement(
    update(owners)
    .values(
        state=_ends.c.state,
        end_reason=_ends.c.reason,
        ended_at=bindparam("now"),
        lease_ttl_ms=null(),
        lease_expires_at=null(),
        drain_deadline_at=null(),
    )
    .where(owners.c.id == _ends.c.owner_id)
)


def identity(owner: Owner) -> tuple[str, str, str, str, str]:
    """An owner as its columns spell it."""
    return (
        owner.namespace,
        owner.component,
        owner.endpoint,
        str(owner.instance_id),
        owner.lora_slug or "",
    )


def unregister(conn: Connection, now: int, items: Sequence[Unregistration]) -> list[Receipt]:
    """unregister_for_owner (S7): release every ref of each owner and end it; a receipt each.

    An owner that is unknown, or ended already, gets a receipt of zeros. An ended one that still
    holds something, which it should not, lets go of it and stays ended as it was. One that was
    refused lately is put down as detached: its conflict is over.
    """
    wanted = as_rows([identity(item.owner) for item in items])
    found = {row[:5]: (row[5], _ended(row[6])) for row in conn.run(FIND_OWNERS, rows=wanted)}
    refused = _refused_of(conn, now, [who for who in map(_who, items) if _is_gone(found.get(who))])
    if refused and len(items) > 1:
        return [receipt for item in items for receipt in unregister(conn, now, [item])]
    for item in items if refused else ():
        last = last_ids(conn).get("events", 0)
        write_departure(conn, now, last, _who(item), item.actor, item.request_id)
    releases: dict[int, Release] = {}
    for index, item in enumerate(items):
        owner_id, ended = found.pop(identity(item.owner), (None, False))
        if owner_id is not None:
            state = None if ended else OwnerState.DETACHED
            releases[index] = Release(owner_id, state, "unregistered", item.actor, item.request_id)
    load_refs(conn, list(releases.values()))
    keys = _keys(conn, [entry for release in releases.values() for entry in release.entry_ids])
    release(conn, now, list(releases.values()))
    left = _holders_after(conn, list(releases.values()))
    receipts = [Receipt(item.owner) for item in items]
    for index, done in reversed(releases.items()):
        removed = set(done.removed_ids)
        kept = [entry_id for entry_id in done.entry_ids if entry_id not in removed]
        receipts[index] = Receipt(
            items[index].owner,
            len(done.entry_ids),
            tuple(keys[entry_id] for entry_id in done.removed_ids),
            tuple(Kept(keys[entry_id], left[entry_id]) for entry_id in kept),
        )
        left.update(done.entry_ids)
    return receipts


def remove(conn: Connection, now: int, items: Sequence[Removal]) -> list[Receipt]:
    """Administrator's removal: drop the entries of each model, whoever holds them."""
    return [_remove(conn, now, item) for item in items]


def _remove(conn: Connection, now: int, item: Removal) -> Receipt:
    model = as_rows([[item.slug, item.suffix]])
    keys = {row[0]: ArtifactKey(*row[1:]) for row in conn.run(_ENTRIES_OF_MODELS, rows=model)}
    releases: dict[int, Release] = {}
    for owner_id, entry_id in conn.run(_REFS_OF_MODELS, rows=model):
        if owner_id not in releases:
            releases[owner_id] = Release(
                owner_id,
                reason="administrator",
                actor=item.actor,
                request_id=item.request_id,
            )
        releases[owner_id].entry_ids.append(entry_id)
    release(conn, now, list(releases.values()))
    _delete_orphans(
        conn, now, item, keys.keys() - {e for r in releases.values() for e in r.entry_ids}
    )
    released = sum(len(each.entry_ids) for each in releases.values())
    return Receipt(None, released, tuple(keys.values()))


def _delete_orphans(conn: Connection, now: int, item: Removal, entry_ids: Set[int]) -> None:
    """Entries that nobody held: there should be none, and an administrator may clear them."""
    if entry_ids:
        first = last_ids(conn).get("events", 0) + 1
        about = (None, None, "administrator", item.actor, item.request_id)
        rows = [
            EventRow(first + index, "removed", None, entry_id, *about)
            for index, entry_id in enumerate(sorted(entry_ids))
        ]
        write_events(conn, now, rows)
        conn.run(_DELETE_ENTRIES, rows=as_rows([[entry_id] for entry_id in entry_ids]))


def load_refs(conn: Connection, releases: Sequence[Release]) -> None:
    """Put every ref of their owners into the releases."""
    by_owner = {each.owner_id: each for each in releases}
    if by_owner:
        wanted = as_rows([[owner_id] for owner_id in by_owner])
        for owner_id, entry_id in conn.run(_REFS_OF_OWNERS, rows=wanted):
            by_owner[owner_id].entry_ids.append(entry_id)


@dataclass(slots=True)
class Freed:
    """What releases let go of and may have left behind."""

    last_holder: dict[int, Release] = field(default_factory=dict)
    """The release that was the last to hold each entry."""
    contents: list[str] = field(default_factory=list)

    def releases(self) -> list[Release]:
        """Those releases that were the last to hold something, in their order."""
        return list({id(each): each for each in self.last_holder.values()}.values())


def release(conn: Connection, now: int, releases: Sequence[Release]) -> None:
    """Let go of the refs, remove the entries left without any, journal, end the owners (S1, S7).

    Rows come out as if the releases ran one at a time in their order.
    """
    if releases:
        freed = let_go(conn, releases)
        unheld = find_unheld(conn, freed)
        write_events(conn, now, events_of(releases, last_ids(conn).get("events", 0)))
        end_owners(conn, now, releases)
        delete_unheld(conn, now, unheld, freed)


def let_go(conn: Connection, releases: Sequence[Release]) -> Freed:
    """Delete the refs. What they leave behind is still there."""
    freed = Freed({entry: each for each in releases for entry in each.entry_ids})
    pairs = [(each.owner_id, entry) for each in releases for entry in each.entry_ids]
    if pairs:
        refs = as_rows(pairs)
        freed.contents = [row[0] for row in conn.run(_BLOBS_OF_REFS, rows=refs)]
        conn.run(_DELETE_REFS, rows=refs)
    return freed


def find_unheld(conn: Connection, freed: Freed) -> list[int]:
    """The entries that nobody holds any more, noted in the release that was the last to."""
    if not freed.last_holder:
        return []
    touched = as_rows([[entry_id] for entry_id in freed.last_holder])
    unheld = sorted(row[0] for row in conn.run(_UNHELD, rows=touched))
    for entry_id in unheld:
        freed.last_holder[entry_id].removed_ids.append(entry_id)
    return unheld


def delete_unheld(conn: Connection, now: int, unheld: Sequence[int], freed: Freed) -> None:
    """Delete the entries, and the content that nothing names any more."""
    if unheld:
        conn.run(_DELETE_ENTRIES, rows=as_rows([[entry_id] for entry_id in unheld]))
    collect_blobs(conn, now, freed.contents)


def collect(conn: Connection, now: int, freed: Freed) -> None:
    """Remove what releases left behind and nobody holds by now, and journal it."""
    unheld = find_unheld(conn, freed)
    leavings = [replace(each, entry_ids=[], ended=None) for each in freed.releases()]
    write_events(conn, now, events_of(leavings, last_ids(conn).get("events", 0)))
    delete_unheld(conn, now, unheld, freed)


def end_owners(conn: Connection, now: int, releases: Sequence[Release]) -> None:
    """Make tombstones of the owners that end."""
    ends = [[each.owner_id, each.ended, each.reason] for each in releases if each.ended]
    if ends:
        conn.run(_END_OWNERS, now=now, rows=as_rows(ends))


def events_of(releases: Sequence[Release], event_id: int) -> list[EventRow]:
    """What the journal says of releases, in their order; ids go on behind `event_id`."""
    rows: list[EventRow] = []
    for each in releases:
        about = (None, None, each.reason, each.actor, each.request_id)
        steps: list[tuple[str, int | None]] = [("released", entry) for entry in each.entry_ids]
        if each.ended:
            steps.append((each.ended, None))
        steps += [("removed", entry) for entry in each.removed_ids]
        for kind, entry_id in steps:
            event_id += 1
            rows.append(EventRow(event_id, kind, each.owner_id, entry_id, *about))
    return rows


def _keys(conn: Connection, entry_ids: Sequence[int]) -> dict[int, ArtifactKey]:
    wanted = as_rows([[entry_id] for entry_id in set(entry_ids)])
    return {row[0]: ArtifactKey(*row[1:]) for row in conn.run(_KEYS, rows=wanted)}


def _holders_after(conn: Connection, releases: Sequence[Release]) -> Counter[int]:
    touched = {entry_id for each in releases for entry_id in each.entry_ids}
    rows = conn.run(_HOLDERS, rows=as_rows([[entry_id] for entry_id in touched]))
    return Counter(dict(rows))


def _ended(state: str) -> bool:
    return OwnerState(state).ended


def _who(item: Unregistration) -> tuple[str, ...]:
    return identity(item.owner)


def _is_gone(found: tuple[int, bool] | None) -> bool:
    """Whether the owner of this id and end has no row, or ended."""
    return found is None or found[1]


def _refused_of(
    conn: Connection, now: int, gone: Sequence[tuple[str, ...]]
) -> Set[tuple[str, ...]]:
    """Those who were refused within the last hour, and neither succeeded nor left since."""
    return {row[:5] for row in find_unresolved(conn, now)} & set(gone) if gone else set()
