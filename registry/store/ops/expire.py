"""The sweeper's operations: who is to be ended, when nobody is, and what else grows old (S9, S10).

A sweep is a few small transactions. The first judges and ends at most 500 owners; while there are
more it is repeated, so that reads and registrations go on in between. Each judges again under the
write lock: a renewal that came in time is never overlooked.

What protects the fleet from the registry's own troubles:

- The *floor*. When nobody swept for longer than a third of the grace, the registry was down or
  stalled, and workers could not renew. From that moment on nobody is ended before one full lease
  and the grace have passed. The floor is stored, and moves only after such a gap. Drain deadlines
  do not run on in the gap either.
- The *brake*. When more than a part of the leased owners have lapsed together, something between
  them and the registry is broken. Expiry pauses until renewals return, until an operator says
  otherwise, or until `brake_max_ms` is over; from then on it goes on at a bounded rate. Renewals
  return over the third of a lease, not at once: whoever is still lapsed when the brake lets go by
  itself has one full lease more.
- A clock that was moved. Forward is a gap like any other. After it went back, what it left in the
  future is cut to what it could be by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    update,
)

from registry.core.checks import LEASE_MAX_MS
from registry.core.policy import Policy
from registry.core.records import OwnerState
from registry.core.sweeping import Ending as Ending
from registry.core.sweeping import Swept as Swept
from registry.store.engine import Connection
from registry.store.ops.brake import Brake
from registry.store.ops.release import Release, release
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.ops.sweep_state import LeaseCounts, SweepState, state_of, write_state
from registry.store.owner_columns import OWNER_COLUMNS, REF_COUNT, owner_of
from registry.store.sql import Statement
from registry.store.tables import owner_refs, owners

OWNERS_PER_SWEEP = 500
REFS_PER_SWEEP = 10_000
CLOCK_TOLERANCE_MS = 1_000
ALL = 2**62


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to do: `force` sweeps even if another process just did; `release_brake` lets go of
    the brake; `dry_run` changes nothing and says of everybody who would be ended."""

    force: bool = False
    release_brake: bool = False
    dry_run: bool = False
    repeated: bool = False


def _least(first: ColumnElement[int], second: ColumnElement[int]) -> ColumnElement[int]:
    return case((first > second, second), else_=first)


def _greatest(first: ColumnElement[int], second: ColumnElement[int]) -> ColumnElement[int]:
    return case((first > second, first), else_=second)


_now: ColumnElement[int] = bindparam("now", type_=BigInteger)
_grace: ColumnElement[int] = bindparam("grace", type_=BigInteger)
# By times, which are read faster than states: constraints say that who lives has not ended, and
# that who drains has a deadline. What most owners are not comes first. To what a row has nothing is
# added before it is bounded: it may be any number where somebody wrote it by hand, and neither
# engine stores, nor PostgreSQL computes, what is larger. Every sweep would end there.
_lives = owners.c.ended_at.is_(None)
_leased = and_(owners.c.lease_expires_at.is_not(None), _lives)
_lapsed = and_(owners.c.lease_expires_at <= _now, _lives)
_overdrained = owners.c.drain_deadline_at <= _now
_overdue = and_(
    owners.c.lease_expires_at <= _now - _grace,
    _lives,
    or_(owners.c.drain_deadline_at.is_(None), owners.c.drain_deadline_at > _now),
)
_expirable = and_(_overdue, owners.c.lease_ttl_ms <= _now - _grace - bindparam("floor"))


def _count_of(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


_longest_lease = _least(owners.c.lease_ttl_ms, literal_column(str(LEASE_MAX_MS), BigInteger))
_latest_lease = _now + _longest_lease
_latest_drain = _now + LEASE_MAX_MS
_ahead = or_(
    owners.c.lease_expires_at > _latest_lease,
    owners.c.drain_deadline_at > _latest_drain,
    owners.c.ended_at > _now,
)
_COUNTS = Statement(
    select(
        _count_of(_leased).label("leased"),
        _count_of(_lapsed).label("lapsed"),
        _count_of(_overdue).label("overdue"),
        _count_of(_expirable).label("expirable"),
        _count_of(_overdrained).label("overdrained"),
        _count_of(_ahead).label("ahead"),
    ),
    LeaseCounts,
)
"""Most sweeps have nothing to do: they see it by this one walk over the owners."""


class _DueOwner(NamedTuple):
    """An owner that is to be ended, and how many refs it holds."""

    id: int
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    refs: int


_owner = select(
    owners.c.id,
    *OWNER_COLUMNS,
    REF_COUNT,
)
_OVERDRAINED = Statement(
    _owner.where(_overdrained)
    .order_by(owners.c.drain_deadline_at, owners.c.id)
    .limit(bindparam("row_limit")),
    _DueOwner,
)
_EXPIRABLE = Statement(
    _owner.where(_expirable)
    .order_by(owners.c.lease_expires_at, owners.c.id)
    .limit(bindparam("row_limit")),
    _DueOwner,
)
_POSTPONE_DRAINS = Statement(
    update(owners)
    .values(
        drain_deadline_at=_greatest(
            _least(owners.c.drain_deadline_at, _latest_drain) + bindparam("passed"),
            _now + func.coalesce(_longest_lease, 0) + _grace,
        )
    )
    .where(owners.c.state == "draining")
)
_TAKE_BACK = Statement(
    update(owners)
    .values(
        lease_expires_at=_least(owners.c.lease_expires_at, _latest_lease),
        drain_deadline_at=_least(owners.c.drain_deadline_at, _latest_drain),
        ended_at=_least(owners.c.ended_at, _now),
    )
    .where(_ahead)
)
_TAKE_BACK_VERIFIED = Statement(
    update(owner_refs)
    .values(verified_at=_now)
    .where(owner_refs.c.path.is_not(None), owner_refs.c.verified_at > _now)
)


def sweep(conn: Connection, now: int, items: Sequence[Sweep]) -> list[Swept]:
    """End at most 500 owners that are due; a sweep that another process just made is skipped.

    A dry run writes nothing and names everybody; it may be given a connection that only reads.
    """
    return [_sweep(conn, now, item) for item in items]


def rehearse(conn: Connection, release_brake: bool = False) -> Swept:
    """Whom a sweep would end now, without the brake if it is let go of. Takes no lock and writes
    nothing."""
    item = Sweep(force=True, release_brake=release_brake, dry_run=True)
    return _sweep(conn, conn.now, item)


def _sweep(conn: Connection, now: int, item: Sweep) -> Swept:
    variables = read_variables(conn)
    policy = policy_of(variables)
    state = state_of(variables)
    if not (item.force or item.repeated) and _just_swept(state, policy, now):
        return Swept(skipped=True)
    outage = _was_out(state, policy, now)
    _mind_the_clock(conn, state, policy, item, now, outage=outage)
    counts = _count(conn, state, policy, now)
    if counts.ahead and not item.dry_run:
        conn.run(_TAKE_BACK, now=now)
        counts = _count(conn, state, policy, now)
    floor = state.expiry_floor_at
    brake = Brake(conn, now, policy, tells=not item.dry_run)
    allowed, paused = brake.judge(state, counts, _most(item), release=item.release_brake)
    if state.expiry_floor_at != floor:
        counts = _count(conn, state, policy, now)
    if paused is None and counts.overdue > counts.expirable:
        paused = (
            "after an outage, or when the brake let go, everybody has time to renew; nobody is "
            "ended before its lease and the grace have passed anew"
        )
    drained = [] if outage else _due(conn, _OVERDRAINED, item, counts.overdrained, now=now)
    expired = _due(
        conn,
        _EXPIRABLE,
        item,
        min(counts.expirable, allowed, _most(item) - len(drained)),
        now=now,
        grace=policy.lease_grace_ms,
        floor=state.expiry_floor_at,
    )
    due = [(row, OwnerState.DETACHED, "drain deadline") for row in drained]
    due += [(row, OwnerState.EXPIRED, "expired") for row in expired]
    taken = due if item.dry_run else _within_bounds(due)
    if not item.dry_run:
        release(conn, now, [Release(row.id, end, reason) for row, end, reason in taken])
        write_state(conn, state, now)
    ended = tuple(Ending(owner_of(row), end, reason) for row, end, reason in taken)
    return Swept(
        ended=ended,
        released=sum(row.refs for row, _, _ in taken),
        more=not item.dry_run and (len(taken) < len(due) or len(due) >= OWNERS_PER_SWEEP),
        paused=paused,
        waiting=counts.overdue - sum(each.state is OwnerState.EXPIRED for each in ended),
    )


def _just_swept(state: SweepState, policy: Policy, now: int) -> bool:
    """Whether another process swept within the last half of the interval."""
    last = state.last_sweep_at
    return last is not None and 0 <= now - last < policy.sweep_interval_ms // 2


# The clock


def _was_out(state: SweepState, policy: Policy, now: int) -> bool:
    """Whether the registry was down or stalled since the last sweep, as far as the clock tells."""
    last = state.last_sweep_at
    return last is None or not -CLOCK_TOLERANCE_MS <= now - last <= policy.outage_ms


def _mind_the_clock(
    conn: Connection, state: SweepState, policy: Policy, item: Sweep, now: int, *, outage: bool
) -> None:
    """Move the floor and the drain deadlines after a gap; take back what a clock that went back
    left in the future of files. (That of owners shows when they are counted.)"""
    state.expiry_floor_at = now if outage else min(state.expiry_floor_at, now)
    if state.brake_engaged_at is not None:
        state.brake_engaged_at = min(state.brake_engaged_at, now)
    if item.dry_run:
        return
    if outage and state.last_sweep_at is not None:
        passed = now - state.last_sweep_at
        conn.run(_POSTPONE_DRAINS, now=now, passed=passed, grace=policy.lease_grace_ms)
    conn.run(_TAKE_BACK_VERIFIED, now=now)


def _count(conn: Connection, state: SweepState, policy: Policy, now: int) -> LeaseCounts:
    times = {"now": now, "grace": policy.lease_grace_ms, "floor": state.expiry_floor_at}
    return conn.run(_COUNTS, **times)[0]


# Who is due

_Due = tuple[_DueOwner, OwnerState, str]


def _due(
    conn: Connection, statement: Statement[_DueOwner], item: Sweep, at_most: int, **times: int
) -> list[_DueOwner]:
    """Owners that are due, longest first, as many as one sweep may end."""
    row_limit = min(at_most, _most(item))
    return conn.run(statement, row_limit=row_limit, **times) if row_limit > 0 else []


def _most(item: Sweep) -> int:
    """How many owners one transaction ends at most; a dry run ends none and names all."""
    return ALL if item.dry_run else OWNERS_PER_SWEEP


def _within_bounds(due: list[_Due]) -> list[_Due]:
    """The first of them, so that one transaction releases about 10,000 refs at most."""
    refs = 0
    for index, (row, _, _) in enumerate(due[:OWNERS_PER_SWEEP]):
        refs += row.refs
        if refs > REFS_PER_SWEEP and index:
            return due[:index]
    return due[:OWNERS_PER_SWEEP]
