"""Letting go: the one operation behind unregister, expiry, supersede and administrator's removal.

A dead worker and a polite one leave the same rows (S7, S9). It is done in SQL, a set at a time:

    the journal is written      released, what ends the owner, removed: numbered as if the owners
                                left one after the other
    refs are deleted            of these owners
    entries are deleted         those that the journal says are removed with their last ref
    blobs are deleted           those that no ref names any more
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from sqlalchemy import (
    CTE,
    BigInteger,
    Select,
    Text,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)

from registry.core.records import (
    ArtifactKey,
    Kept,
    Owner,
    OwnerState,
    Receipt,
    Removal,
    Unregistration,
)
from registry.store.journal import EventRow, find_unresolved, write_departure, write_events
from registry.store.ops.blobs import collect_blobs
from registry.store.sqlite.engine import Connection, Statement, as_rows, json_rows
from registry.store.sqlite.ids import last_ids
from registry.store.tables import entries, events, owner_refs, owners


@dataclass(frozen=True, slots=True)
class Release:
    """An owner that lets go of all that it holds, or of all of a model, and the state that ends
    it, if it ends."""

    owner_id: int
    ended: OwnerState | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Freed:
    """What was let go of: how many refs, since which event, and the content that they named."""

    refs: int = 0
    last_event_id: int = 0
    contents: Set[str] = field(default_factory=frozenset)


_ids = json_rows("rows", id=int)
_identities = json_rows(
    "rows", namespace=str, component=str, endpoint=str, instance_id=str, lora_slug=str
)
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


# What is let go of. With a slug and a suffix, it is only what is held of that model.

_leaving = json_rows(
    "rows", position=int, owner_id=int, state=str, reason=str, actor=str, request_id=str
)
_slug, _suffix = bindparam("of_slug", type_=Text), bindparam("of_suffix", type_=Text)
_of_model = select(entries.c.id).where(entries.c.slug == _slug, entries.c.suffix == _suffix)
_goes = or_(_slug.is_(None), owner_refs.c.entry_id.in_(_of_model))


def _lines(leaving: CTE, *, with_removals: bool) -> Select[tuple[int, str, int, int]]:
    """The lines of the journal in their order, each with its number: of every owner that it lets
    go of its refs, that it ends, and which entries go with their last ref."""
    said = (leaving.c.reason, leaving.c.actor, leaving.c.request_id)
    released = select(
        leaving.c.position,
        literal_column("0").label("step"),
        literal_column("'released'").label("kind"),
        leaving.c.owner_id,
        owner_refs.c.entry_id,
        *said,
    ).where(owner_refs.c.owner_id == leaving.c.owner_id, _goes)
    ended = select(
        leaving.c.position,
        literal_column("1"),
        leaving.c.state,
        leaving.c.owner_id,
        cast(null(), BigInteger),
        *said,
    ).where(leaving.c.state.is_not(None))
    parts = [released, ended]
    if with_removals:
        others = owner_refs.alias("others")
        last = (
            select(func.max(leaving.c.position).label("position"), owner_refs.c.entry_id)
            .where(owner_refs.c.owner_id == leaving.c.owner_id, _goes)
            # Not the bare id: to group by it SQLite would walk an index of everybody's refs.
            .group_by(owner_refs.c.entry_id + 0)
            .having(
                func.count()
                == select(func.count())
                .select_from(others)
                .where(others.c.entry_id == owner_refs.c.entry_id)
                .scalar_subquery()
            )
            .subquery("last_holders")
        )
        removed = select(
            leaving.c.position,
            literal_column("2"),
            literal_column("'removed'"),
            leaving.c.owner_id,
            last.c.entry_id,
            *said,
        ).where(last.c.position == leaving.c.position)
        parts.append(removed)
    steps = union_all(*parts).subquery("steps")
    number = func.row_number().over(order_by=(steps.c.position, steps.c.step, steps.c.entry_id))
    names = ("kind", "owner_id", "entry_id", "reason", "actor", "request_id")
    return select(number.label("number"), *(steps.c[name] for name in names))


def _journal(*, with_removals: bool) -> Statement:
    leaving = select(_leaving).cte("leaving").prefix_with("MATERIALIZED")
    lines = _lines(leaving, with_removals=with_removals).subquery("lines")
    who = ("namespace", "component", "endpoint", "instance_id", "lora_slug")
    what = ("slug", "suffix", "filename", "checksum")
    why = ("reason", "actor", "request_id")
    return Statement(
        insert(events).from_select(
            ["id", "at", "kind", "owner_id", "entry_id", *who, *what, *why],
            select(
                bindparam("last_event_id", type_=BigInteger) + lines.c.number,
                bindparam("now"),
                *(lines.c[name] for name in ("kind", "owner_id", "entry_id")),
                *(owners.c[name] for name in who),
                *(entries.c[name] for name in what),
                *(lines.c[name] for name in why),
            ).select_from(
                lines.outerjoin(owners, owners.c.id == lines.c.owner_id).outerjoin(
                    entries, entries.c.id == lines.c.entry_id
                )
            ),
        )
    )


_JOURNAL = _journal(with_removals=True)
_JOURNAL_BUT_REMOVALS = _journal(with_removals=False)
_DELETE_REFS = Statement(
    delete(owner_refs)
    .where(owner_refs.c.owner_id.in_(select(_ids.c.id)), _goes)
    .returning(owner_refs.c.blob_checksum)
)
_ends = json_rows("rows", owner_id=int, state=str, reason=str)
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
_since = events.c.id > bindparam("last_event_id")
_removed = select(events.c.entry_id).where(_since, events.c.kind == literal("removed"))
_DELETE_ENTRIES = Statement(delete(entries).where(entries.c.id.in_(_removed)))

# Of each entry, the last release that let go of it.
_last_release = events.alias("last_release")
_names = (
    *("owner_id", "entry_id", "namespace", "component", "endpoint", "instance_id", "lora_slug"),
    *("slug", "suffix", "filename", "checksum", "reason", "actor", "request_id"),
)
_JOURNAL_REMOVALS = Statement(
    insert(events).from_select(
        ["id", "at", "kind", *_names],
        select(
            bindparam("next_event_id", type_=BigInteger)
            + func.row_number().over(order_by=_last_release.c.id),
            bindparam("now"),
            literal_column("'removed'"),
            *(_last_release.c[name] for name in _names),
        ).where(
            _last_release.c.id.in_(
                select(func.max(events.c.id))
                .where(_since, events.c.kind == literal("released"))
                .group_by(events.c.entry_id + 0)
            ),
            ~exists().where(owner_refs.c.entry_id == _last_release.c.entry_id),
        ),
    )
)


def release(
    conn: Connection, now: int, releases: Sequence[Release], *, model: tuple[str, str] | None = None
) -> Freed:
    """Let go of the owners' refs, of all of them or of those of a model (slug, suffix); remove the
    entries left without any; journal; end the owners (S1, S7).

    Rows come out as if the releases ran one at a time in their order.
    """
    freed = _let_go(conn, now, releases, _JOURNAL, model)
    if freed.refs:
        conn.run(_DELETE_ENTRIES, last_event_id=freed.last_event_id)
        collect_blobs(conn, now, freed.contents)
    return freed


def let_go(conn: Connection, now: int, releases: Sequence[Release]) -> Freed:
    """As `release`, but what the refs leave behind is still there, until `collect`."""
    return _let_go(conn, now, releases, _JOURNAL_BUT_REMOVALS, None)


def collect(conn: Connection, now: int, freed: Freed) -> None:
    """Remove what was let go of and nobody holds by now, and journal it."""
    since = {"last_event_id": freed.last_event_id}
    conn.run(_JOURNAL_REMOVALS, now=now, next_event_id=last_ids(conn)["events"], **since)
    conn.run(_DELETE_ENTRIES, **since)
    collect_blobs(conn, now, freed.contents)


def _let_go(
    conn: Connection,
    now: int,
    releases: Sequence[Release],
    journal: Statement,
    model: tuple[str, str] | None,
) -> Freed:
    if not releases:
        return Freed()
    last_event_id = last_ids(conn).get("events", 0)
    slug, suffix = model or (None, None)
    of = {"of_slug": slug, "of_suffix": suffix}
    leaving = [
        (index, each.owner_id, each.ended, each.reason, each.actor, each.request_id)
        for index, each in enumerate(releases)
    ]
    conn.run(journal, now=now, last_event_id=last_event_id, rows=as_rows(leaving), **of)
    gone = conn.run(_DELETE_REFS, rows=as_rows([[each.owner_id] for each in releases]), **of)
    ends = [(each.owner_id, each.ended, each.reason) for each in releases if each.ended]
    if ends:
        conn.run(_END_OWNERS, now=now, rows=as_rows(ends))
    contents = {row[0] for row in gone} - {None}
    return Freed(len(gone), last_event_id, contents)


# Unregister


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
    freed = release(conn, now, list(releases.values()))
    told = _receipts(conn, freed, {each.owner_id: index for index, each in releases.items()}, items)
    return [told.get(index) or Receipt(item.owner) for index, item in enumerate(items)]


_LINES = Statement(
    select(
        events.c.owner_id,
        events.c.kind,
        events.c.entry_id,
        events.c.slug,
        events.c.suffix,
        events.c.filename,
    )
    .where(_since, events.c.entry_id.is_not(None))
    .order_by(events.c.id)
)
_HOLDERS = Statement(
    select(owner_refs.c.entry_id, func.count())
    .where(owner_refs.c.entry_id.in_(select(_ids.c.id)))
    .group_by(owner_refs.c.entry_id)
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
    for owner_id, kind, entry_id, *key in conn.run(_LINES, last_event_id=freed.last_event_id):
        if kind == "removed":
            removed.add((owner_id, entry_id))
        else:
            released.setdefault(owner_id, {})[entry_id] = ArtifactKey(*key)
    touched = {entry_id for keys in released.values() for entry_id in keys}
    rows = conn.run(_HOLDERS, rows=as_rows([[entry_id] for entry_id in touched]))
    left: Counter[int] = Counter(dict(rows))
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


# Remove

_model_keys = (entries.c.slug == bindparam("slug"), entries.c.suffix == bindparam("suffix"))
_ENTRIES_OF_MODEL = Statement(
    select(entries.c.id, entries.c.slug, entries.c.suffix, entries.c.filename)
    .where(*_model_keys)
    .order_by(entries.c.id)
)
_OWNERS_OF_MODEL = Statement(
    select(owner_refs.c.owner_id)
    .join(entries, entries.c.id == owner_refs.c.entry_id)
    .where(*_model_keys)
    .distinct()
    .order_by(owner_refs.c.owner_id)
)
_DELETE_ORPHANS = Statement(delete(entries).where(entries.c.id.in_(select(_ids.c.id)), ~_held))


def remove(conn: Connection, now: int, items: Sequence[Removal]) -> list[Receipt]:
    """Administrator's removal: drop the entries of each model, whoever holds them."""
    return [_remove(conn, now, item) for item in items]


def _remove(conn: Connection, now: int, item: Removal) -> Receipt:
    model = {"slug": item.slug, "suffix": item.suffix}
    keys = {row[0]: ArtifactKey(*row[1:]) for row in conn.run(_ENTRIES_OF_MODEL, **model)}
    releases = [
        Release(row[0], None, "administrator", item.actor, item.request_id)
        for row in conn.run(_OWNERS_OF_MODEL, **model)
    ]
    freed = release(conn, now, releases, model=(item.slug, item.suffix))
    orphans = [row[0] for row in conn.run(_ENTRIES_OF_MODEL, **model)]
    _delete_orphans(conn, now, item, orphans)
    return Receipt(None, freed.refs, tuple(keys.values()))


def _delete_orphans(conn: Connection, now: int, item: Removal, entry_ids: Sequence[int]) -> None:
    """Entries that nobody held: there should be none, and an administrator may clear them."""
    if entry_ids:
        first = last_ids(conn).get("events", 0) + 1
        rows = [
            EventRow(
                first + index,
                "removed",
                None,
                entry_id,
                None,
                "administrator",
                item.actor,
                item.request_id,
            )
            for index, entry_id in enumerate(entry_ids)
        ]
        write_events(conn, now, rows)
        conn.run(_DELETE_ORPHANS, rows=as_rows([[entry_id] for entry_id in entry_ids]))
