"""Letting go: the one operation behind unregister, expiry, supersede and administrator's removal.

A dead worker and a polite one leave the same rows (S7, S9). It is done in SQL, a set at a time:

    the journal is written      released, what ends the owner, removed: numbered as if the owners
                                left one after the other
    refs are deleted            of these owners
    entries are deleted         those that the journal says are removed with their last ref
    blobs are deleted           those that no ref names any more
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    true,
    union_all,
    update,
)

from registry.core.records import OwnerState
from registry.store.engine import Connection
from registry.store.ops.blobs import collect_blobs
from registry.store.owner_columns import OWNER_COLUMNS, OWNER_NAMES, same_owner
from registry.store.sql import Row, Statement, as_rows, json_rows
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
_identities = json_rows("rows", **dict.fromkeys(OWNER_NAMES, str))


class FoundOwner(NamedTuple):
    """An owner's row, whether it lives or has ended."""

    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    id: int
    state: str
    worker_name: str | None


FIND_OWNERS = Statement(
    select(*OWNER_COLUMNS, owners.c.id, owners.c.state, owners.c.worker_name).join(
        _identities, same_owner(owners, _identities)
    ),
    FoundOwner,
)


# What is let go of: everything, or what is held of a model, which are statements of their own. One
# for both, with an OR, has no plan that is good for both.

_leaving = json_rows(
    "rows", position=int, owner_id=int, state=str, reason=str, actor=str, request_id=str
)
_of_model = select(entries.c.id).where(
    entries.c.slug == bindparam("of_slug"), entries.c.suffix == bindparam("of_suffix")
)


def _goes(*, of_model: bool) -> ColumnElement[bool]:
    return owner_refs.c.entry_id.in_(_of_model) if of_model else true()


def _lines(
    leaving: CTE, *, with_removals: bool, of_model: bool
) -> Select[tuple[int, str, int, int]]:
    """The lines of the journal in their order, each with its number: of every owner that it lets
    go of its refs, that it ends, and which entries go with their last ref."""
    said = ("reason", "actor", "request_id")
    # Not the bare id: to go by it SQLite would walk an index of everybody's refs.
    of_entry = owner_refs.c.entry_id + literal_column("0")
    # Who leaves last, by a window: a join with it would have no index (PostgreSQL).
    going = (
        select(
            *(leaving.c[name] for name in ("position", "owner_id", *said)),
            owner_refs.c.entry_id,
            func.max(leaving.c.position).over(partition_by=of_entry).label("last_position"),
            func.count().over(partition_by=of_entry).label("refs"),
        )
        .where(owner_refs.c.owner_id == leaving.c.owner_id, _goes(of_model=of_model))
        .cte("going")
        .prefix_with("MATERIALIZED")
    )

    def lines(step: int, kind: str) -> Select[Any]:
        return select(
            going.c.position,
            literal_column(str(step)).label("step"),
            literal_column(f"'{kind}'").label("kind"),
            going.c.owner_id,
            going.c.entry_id,
            *(going.c[name] for name in said),
        )

    ended = select(
        leaving.c.position,
        literal_column("1"),
        leaving.c.state,
        leaving.c.owner_id,
        cast(null(), BigInteger),
        *(leaving.c[name] for name in said),
    ).where(leaving.c.state.is_not(None))
    parts = [lines(0, "released"), ended]
    if with_removals:
        others = owner_refs.alias("others")
        all_refs = select(func.count()).where(others.c.entry_id == going.c.entry_id)
        parts.append(
            lines(2, "removed").where(
                going.c.position == going.c.last_position,
                going.c.refs == all_refs.scalar_subquery(),
            )
        )
    steps = union_all(*parts).subquery("steps")
    number = func.row_number().over(order_by=(steps.c.position, steps.c.step, steps.c.entry_id))
    names = ("kind", "owner_id", "entry_id", "reason", "actor", "request_id")
    return select(number.label("number"), *(steps.c[name] for name in names))


def _journal(*, with_removals: bool = True, of_model: bool = False) -> Statement[Row]:
    leaving = select(_leaving).cte("leaving").prefix_with("MATERIALIZED")
    lines = _lines(leaving, with_removals=with_removals, of_model=of_model).subquery("lines")
    what = ("slug", "suffix", "filename", "checksum", "size")
    why = ("reason", "actor", "request_id")
    return Statement(
        insert(events).from_select(
            ["id", "at", "kind", "owner_id", "entry_id", *OWNER_NAMES, *what, *why],
            select(
                bindparam("last_event_id", type_=BigInteger) + lines.c.number,
                bindparam("now"),
                *(lines.c[name] for name in ("kind", "owner_id", "entry_id")),
                *OWNER_COLUMNS,
                *(entries.c[name] for name in what),
                *(lines.c[name] for name in why),
            ).select_from(
                lines.outerjoin(owners, owners.c.id == lines.c.owner_id).outerjoin(
                    entries, entries.c.id == lines.c.entry_id
                )
            ),
        )
    )


_JOURNAL = _journal()
_JOURNAL_OF_MODEL = _journal(of_model=True)
_JOURNAL_BUT_REMOVALS = _journal(with_removals=False)


class DroppedRef(NamedTuple):
    """An owner ref that was deleted, and the copied content that it named."""

    blob_checksum: str | None


def _delete_refs(*, of_model: bool) -> Statement[DroppedRef]:
    return Statement(
        delete(owner_refs)
        .where(owner_refs.c.owner_id.in_(select(_ids.c.id)), _goes(of_model=of_model))
        .returning(owner_refs.c.blob_checksum),
        DroppedRef,
    )


_DELETE_REFS = _delete_refs(of_model=False)
_DELETE_REFS_OF_MODEL = _delete_refs(of_model=True)
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
SINCE = events.c.id > bindparam("last_event_id")
_removed = select(events.c.entry_id).where(SINCE, events.c.kind == literal("removed"))
_DELETE_ENTRIES = Statement(delete(entries).where(entries.c.id.in_(_removed)))

# Of each entry, the last release that let go of it.
_last_release = events.alias("last_release")
_names = (
    *("owner_id", "entry_id", *OWNER_NAMES),
    *("slug", "suffix", "filename", "checksum", "size", "reason", "actor", "request_id"),
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
                .where(SINCE, events.c.kind == literal("released"))
                .group_by(events.c.entry_id + literal_column("0"))
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
    if model is None:
        freed = _let_go(conn, now, releases, _JOURNAL, _DELETE_REFS)
    else:
        of = {"of_slug": model[0], "of_suffix": model[1]}
        freed = _let_go(conn, now, releases, _JOURNAL_OF_MODEL, _DELETE_REFS_OF_MODEL, **of)
    if freed.refs:
        conn.run(_DELETE_ENTRIES, last_event_id=freed.last_event_id)
        collect_blobs(conn, now, freed.contents)
    return freed


def let_go(conn: Connection, now: int, releases: Sequence[Release]) -> Freed:
    """As `release`, but what the refs leave behind is still there, until `collect`."""
    return _let_go(conn, now, releases, _JOURNAL_BUT_REMOVALS, _DELETE_REFS)


def collect(conn: Connection, now: int, freed: Freed) -> None:
    """Remove what was let go of and nobody holds by now, and journal it."""
    since = {"last_event_id": freed.last_event_id}
    conn.run(_JOURNAL_REMOVALS, now=now, next_event_id=conn.last_ids()["events"], **since)
    conn.run(_DELETE_ENTRIES, **since)
    collect_blobs(conn, now, freed.contents)


def _let_go(
    conn: Connection,
    now: int,
    releases: Sequence[Release],
    journal: Statement[Row],
    delete_refs: Statement[DroppedRef],
    **of: str,
) -> Freed:
    if not releases:
        return Freed()
    last_event_id = conn.last_ids().get("events", 0)
    leaving = [
        (index, each.owner_id, each.ended, each.reason, each.actor, each.request_id)
        for index, each in enumerate(releases)
    ]
    conn.run(journal, now=now, last_event_id=last_event_id, rows=as_rows(leaving), **of)
    gone = conn.run(delete_refs, rows=as_rows([[each.owner_id] for each in releases]), **of)
    ends = [(each.owner_id, each.ended, each.reason) for each in releases if each.ended]
    if ends:
        conn.run(_END_OWNERS, now=now, rows=as_rows(ends))
    contents = {ref.blob_checksum for ref in gone if ref.blob_checksum is not None}
    return Freed(len(gone), last_event_id, contents)
