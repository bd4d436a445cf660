"""What grows old besides leases: tombstones, the journal, uploads that nobody registered (S14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from registry.store.engine import Connection
from registry.store.ops.blobs import collect_blobs
from registry.store.ops.settings_table import policy_of, read_variables, write_variables
from registry.store.ops.supersede import UNREPLACED
from registry.store.sql import Row, Statement, as_rows, json_column, one_of
from registry.store.tables import blobs, events, owner_refs, owners

EVENTS_PER_PRUNE = 1_000
"""A step takes some 25 ms on a slow machine: as long does whoever registers meanwhile wait."""

TOMBSTONES_PER_PRUNE = 1_000
BLOBS_PER_PRUNE = 200
JOURNAL_ROUND_MS = 3_600_000
INSTANCES_REMEMBERED = 10
"""Of a worker that restarts often, as many superseded instances outlive their retention."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Uploads that looked abandoned; they are looked at again under the write lock. Tombstones are
    looked for among all owners, which is not done in every step of many."""

    checksums: tuple[str, ...] = ()
    tombstones: bool = True


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many tombstones and events went. `more`: there is more of it to do."""

    tombstones: int = 0
    events: int = 0
    more: bool = False

    def next_step(self, checksums: tuple[str, ...]) -> Prune:
        """What to prune then, besides uploads that look abandoned."""
        return Prune(checksums, tombstones=self.tombstones == TOMBSTONES_PER_PRUNE)


_named = owners.alias("named")
_alive = owners.alias("alive")


def _at_endpoint_of(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    names = ("namespace", "component", "endpoint")
    return and_(*(one.c[name] == other.c[name] for name in names))


def _lives_with(other: FromClause) -> ColumnElement[bool]:
    """`alive` is an owner of the same instance, and lives."""
    return and_(
        _at_endpoint_of(_alive, other),
        _alive.c.instance_id == other.c.instance_id,
        one_of(_alive.c.state, "active", "draining"),
    )


# An instance lives as long as any owner of it does, whichever of them gave the worker's name.
_has_successor = (
    exists(literal(1))
    .select_from(_named.join(_alive, _lives_with(_named)))
    .where(
        _at_endpoint_of(_named, owners),
        _named.c.worker_name == owners.c.worker_name,
        one_of(_named.c.state, *UNREPLACED),
    )
    .correlate(owners)
)
# One tombstone is enough to refuse an instance.
_is_not_the_first = (
    exists(literal(1))
    .where(
        _at_endpoint_of(_named, owners),
        _named.c.instance_id == owners.c.instance_id,
        _named.c.state == literal_column("'superseded'"),
        _named.c.id < owners.c.id,
    )
    .correlate(owners)
)
_has_many_after_it = (
    select(func.count(_named.c.instance_id.distinct()))
    .where(
        _at_endpoint_of(_named, owners),
        _named.c.worker_name == owners.c.worker_name,
        _named.c.state == literal_column("'superseded'"),
        _named.c.ended_at > owners.c.ended_at,
    )
    .correlate(owners)
    .scalar_subquery()
) >= INSTANCES_REMEMBERED
_is_all_that_names_its_instance = and_(
    owners.c.worker_name.is_not(None),
    exists(literal(1)).where(_lives_with(owners)).correlate(owners),
    ~exists(literal(1))
    .where(_lives_with(owners), _alive.c.worker_name == owners.c.worker_name)
    .correlate(owners),
)
_old_tombstones = (
    select(owners.c.id)
    .where(
        owners.c.ended_at <= bindparam("before"),
        ~exists().where(owner_refs.c.owner_id == owners.c.id),
        or_(
            owners.c.state != "superseded",
            _is_not_the_first,
            _has_many_after_it,
            ~_has_successor,
        ),
        ~_is_all_that_names_its_instance,
    )
    .limit(bindparam("row_limit"))
)
_DELETE_TOMBSTONES = Statement(
    delete(owners).where(owners.c.id.in_(_old_tombstones)).returning(owners.c.id)
)

_NEXT_EVENTS = Statement(
    select(events.c.id, events.c.at)
    .where(events.c.id > bindparam("after"))
    .order_by(events.c.id)
    .limit(bindparam("row_limit"))
)
# By the age of each event: one written while the clock was wrong says nothing of its neighbours.
_is_old = or_(events.c.at <= bindparam("before"), events.c.id <= bindparam("surplus_id"))
_LAST_EVENT = Statement(select(func.coalesce(func.max(events.c.id), 0)))
_explains_a_ref = and_(
    one_of(events.c.kind, "registered", "replaced"),
    exists()
    .where(
        owner_refs.c.owner_id == events.c.owner_id,
        owner_refs.c.entry_id == events.c.entry_id,
        owner_refs.c.event_id == events.c.id,
    )
    .correlate(events),
)
_stretch = and_(events.c.id > bindparam("after"), events.c.id <= bindparam("up_to"), _is_old)
_release = events.alias("release")
_registration = events.alias("registration")
_DELETE_RELEASED = Statement(
    delete(events)
    .where(
        events.c.id.in_(
            select(_registration.c.id)
            .select_from(
                _release.join(
                    _registration,
                    and_(
                        _registration.c.owner_id == _release.c.owner_id,
                        _registration.c.entry_id == _release.c.entry_id,
                        _registration.c.id < _release.c.id,
                    ),
                )
            )
            .where(
                one_of(_registration.c.kind, "registered", "replaced"),
                _release.c.kind == literal("released"),
                _release.c.id > bindparam("after"),
                _release.c.id <= bindparam("up_to"),
                or_(
                    _release.c.at <= bindparam("before"),
                    _release.c.id <= bindparam("surplus_id"),
                ),
            )
        )
    )
    .returning(events.c.id)
)
_DELETE_EVENTS = Statement(delete(events).where(_stretch, ~_explains_a_ref).returning(events.c.id))

_ABANDONED = Statement(
    select(blobs.c.checksum)
    .where(
        or_(blobs.c.uploaded_at <= bindparam("before"), blobs.c.uploaded_at > bindparam("now")),
        ~exists().where(owner_refs.c.blob_checksum == blobs.c.checksum),
    )
    .limit(bindparam("row_limit"))
)
_names = json_column("rows", "checksum", str)
_TAKE_BACK = Statement(
    update(blobs)
    .values(uploaded_at=bindparam("now"))
    .where(blobs.c.checksum.in_(select(_names.c.checksum)), blobs.c.uploaded_at > bindparam("now"))
)


def find_abandoned(conn: Connection, now: int) -> tuple[str, ...]:
    """Uploads past their grace that nobody registered, or from a future that a clock went back
    from; at most 200. Looks at every blob."""
    policy = policy_of(read_variables(conn))
    before = now - policy.upload_grace_ms
    rows = conn.run(_ABANDONED, before=before, now=now, row_limit=BLOBS_PER_PRUNE)
    return tuple(checksum for (checksum,) in rows)


def prune(conn: Connection, now: int, items: Sequence[Prune]) -> list[Pruned]:
    """Delete abandoned uploads, old tombstones and old events, a bounded number of each.

    A tombstone of a superseded instance stays while its successor lives (S11), of those before it
    under the same name the last few, and so does one that alone tells under which name that
    successor came. The event that explains a live ref stays for as long as the ref (S14).
    """
    return [_prune(conn, now, item) for item in items]


def _prune(conn: Connection, now: int, item: Prune) -> Pruned:
    variables = read_variables(conn)
    policy = policy_of(variables)
    _prune_uploads(conn, now, item.checksums)
    tombstones = _prune_tombstones(conn, now - policy.tombstone_retention_ms, item)
    ((last,),) = conn.run(_LAST_EVENT)
    deleted, more = _prune_events(
        conn,
        variables,
        now,
        before=now - policy.journal_retention_ms,
        surplus_id=last - policy.journal_max_rows,
    )
    more = more or len(tombstones) == TOMBSTONES_PER_PRUNE
    return Pruned(len(tombstones), deleted, more or len(item.checksums) == BLOBS_PER_PRUNE)


def _prune_tombstones(conn: Connection, before: int, item: Prune) -> list[Row]:
    if not item.tombstones:
        return []
    return conn.run(_DELETE_TOMBSTONES, before=before, row_limit=TOMBSTONES_PER_PRUNE)


def _prune_uploads(conn: Connection, now: int, checksums: Sequence[str]) -> None:
    if checksums:
        conn.run(_TAKE_BACK, now=now, rows=as_rows(checksums))
        collect_blobs(conn, now, checksums)


def _prune_events(
    conn: Connection, variables: dict[str, str], now: int, *, before: int, surplus_id: int
) -> tuple[int, bool]:
    """The next stretch of the journal. What had to stay is looked at again an hour later.

    A release takes the registrations before it along, wherever they are: alone they would say
    that the owner still holds what it let go of.
    """
    after = int(variables.get("journal_pruned_to", 0))
    started_at = int(variables.get("journal_round_at", 0))
    if not 0 <= now - started_at < JOURNAL_ROUND_MS:
        after, started_at = 0, now
    rows = conn.run(_NEXT_EVENTS, after=after, row_limit=EVENTS_PER_PRUNE)
    old = [event_id for event_id, at in rows if at <= before or event_id <= surplus_id]
    deleted = 0
    if old:
        bounds = {"after": after, "up_to": old[-1], "before": before, "surplus_id": surplus_id}
        deleted += len(conn.run(_DELETE_RELEASED, **bounds))
        deleted += len(conn.run(_DELETE_EVENTS, **bounds))
        after = old[-1]
    write_variables(conn, {"journal_pruned_to": after, "journal_round_at": started_at})
    return deleted, len(old) == EVENTS_PER_PRUNE
