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
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from registry.core.records import OwnerState
from registry.store.engine import Connection
from registry.store.ops.blobs import collect_blobs
from registry.store.owner_columns import OWNER_COLUMNS, OWNER_NAMES, same_owner
from registry.store.sql import CrossJoin, Row, Statement, as_rows, json_column, json_rows
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


_ids = json_column("rows", "id", int)
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

RELEASED, ENDED, REMOVED = range(3)
"""The lines of the journal about an owner that leaves, in their order."""

_leaving = json_rows(
    "rows", position=int, owner_id=int, state=str, reason=str, actor=str, request_id=str
)
_of_model = select(entries.c.id).where(
    entries.c.slug == bindparam("of_slug"), entries.c.suffix == bindparam("of_suffix")
)


def _goes(*, of_model: bool) -> ColumnElement[bool]:
    return owner_refs.c.entry_id.in_(_of_model) if of_model else true()


class _LineNumber(FunctionElement[int]):
    """The id of a line of the journal: the last id, and behind it by what the lines are ordered.

    SQLite sorts nothing: the loops of the statement are nested in that order (see `CrossJoin`), and
    the refs of an owner are found by an index, in the order of their entries.
    """

    inherit_cache = True


@compiles(_LineNumber)
def _by_order(element: _LineNumber, compiler: Any, **options: Any) -> str:
    last, *order = element.clauses
    return str(compiler.process(last + func.row_number().over(order_by=order), **options))


@compiles(_LineNumber, "sqlite")
def _as_they_come(element: _LineNumber, compiler: Any, **options: Any) -> str:
    return "NULL"  # The next one that was never given: the table has AUTOINCREMENT.


def _journal(*, with_removals: bool = True, of_model: bool = False) -> Statement[Row]:
    """Append the lines in their order: of every owner that it lets go of its refs, that it ends,
    and which entries go with their last ref."""
    leaving = select(_leaving).cte("leaving").prefix_with("MATERIALIZED")
    numbers = (RELEASED, ENDED, REMOVED) if with_removals else (RELEASED, ENDED)
    steps = union_all(
        *(select(literal_column(str(number), BigInteger).label("step")) for number in numbers)
    ).cte("steps")
    step, position = steps.c.step, leaving.c.position
    refs = and_(
        step != ENDED, owner_refs.c.owner_id == leaving.c.owner_id, _goes(of_model=of_model)
    )
    is_line = or_(
        and_(step == RELEASED, owner_refs.c.entry_id.is_not(None)),
        and_(step == ENDED, leaving.c.state.is_not(None)),
    )
    if with_removals:
        gone = _gone(leaving, of_model=of_model)
        is_line = or_(
            is_line,
            and_(step == REMOVED, tuple_(owner_refs.c.entry_id, position).in_(select(gone))),
        )
    what = ("slug", "suffix", "filename", "checksum", "size")
    why = ("reason", "actor", "request_id")
    return Statement(
        insert(events).from_select(
            ["id", "at", "kind", "owner_id", "entry_id", *OWNER_NAMES, *what, *why],
            select(
                _LineNumber(
                    bindparam("last_event_id", type_=BigInteger),
                    position,
                    step,
                    owner_refs.c.entry_id,
                ),
                bindparam("now"),
                case(
                    (step == RELEASED, literal_column("'released'")),
                    (step == ENDED, leaving.c.state),
                    else_=literal_column("'removed'"),
                ),
                leaving.c.owner_id,
                owner_refs.c.entry_id,
                *OWNER_COLUMNS,
                *(entries.c[name] for name in what),
                *(leaving.c[name] for name in why),
            )
            .select_from(
                CrossJoin(leaving, steps)
                .outerjoin(owners, owners.c.id == leaving.c.owner_id)
                .outerjoin(owner_refs, refs)
                .outerjoin(entries, entries.c.id == owner_refs.c.entry_id)
            )
            .where(is_line),
        )
    )


def _gone(leaving: CTE, *, of_model: bool) -> CTE:
    """The entries of which all refs go, each with the position of who leaves last."""
    # Not the bare id: to go by it SQLite would walk an index of everybody's refs.
    entry_id = (owner_refs.c.entry_id + literal_column("0")).label("entry_id")
    going = (
        select(entry_id, func.max(leaving.c.position).label("position"), func.count().label("refs"))
        .join_from(leaving, owner_refs, owner_refs.c.owner_id == leaving.c.owner_id)
        .where(_goes(of_model=of_model))
        .group_by(entry_id)
        .subquery("going")
    )
    others = owner_refs.alias("others")
    all_refs = select(func.count()).where(others.c.entry_id == going.c.entry_id)
    return (
        select(going.c.entry_id, going.c.position)
        .where(going.c.refs == all_refs.scalar_subquery())
        .cte("gone")
        .prefix_with("MATERIALIZED")
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
    gone = conn.run(delete_refs, rows=as_rows([each.owner_id for each in releases]), **of)
    ends = [(each.owner_id, each.ended, each.reason) for each in releases if each.ended]
    if ends:
        conn.run(_END_OWNERS, now=now, rows=as_rows(ends))
    contents = {ref.blob_checksum for ref in gone if ref.blob_checksum is not None}
    return Freed(len(gone), last_event_id, contents)
