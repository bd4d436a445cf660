"""The sweeper's operations: who is to be ended, when nobody is, and what else grows old (S9, S10).

A sweep is a few small transactions. The first judges and ends at most 500 owners; while there are
more it is repeated, so that reads and registrations go on in between. Each judges again under the
write lock: a renewal that came in time is never overlooked.

What protects the fleet from the registry's own troubles:

- The *floor*. When nobody swept for longer than a third of the grace, the registry was down or
  stalled, and workers could not renew. From that moment on nobody is ended before one full lease
  and the grace have passed. The floor is stored, and moves only after such a gap.
- The *brake*. When more than a part of the leased owners have lapsed together, something between
  them and the registry is broken. Expiry pauses until renewals return, until an operator says
  otherwise, or until `brake_max_ms` is over; from then on it goes on at a bounded rate.
- A clock that went back. Leases, the floor and the brake are cut to what they could be by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, case, func, or_, select, update

from registry.db.engine import Connection, Statement, one_of
from registry.db.journal import write_service_event
from registry.db.releasing import Release, load_refs, release
from registry.db.tables import owners
from registry.db.variables import Policy, policy_of, read_variables, write_variables
from registry.records import Owner, OwnerState

OWNERS_PER_SWEEP = 500
CLOCK_TOLERANCE_MS = 1_000


@dataclass(frozen=True, slots=True)
class Ending:
    """An owner that is to be ended, and why."""

    owner: Owner
    state: OwnerState
    reason: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to do: `force` sweeps even if another process just did; `release_brake` lets go of
    the brake; `dry_run` only says who would be ended."""

    force: bool = False
    release_brake: bool = False
    dry_run: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did. `paused` says why owners that lapsed were left alone, if any were."""

    skipped: bool = False
    ended: tuple[Ending, ...] = ()
    released: int = 0
    more: bool = False
    paused: str | None = None
    waiting: int = 0


@dataclass(slots=True)
class _State:
    """The sweepers' common memory, kept in the settings table."""

    last_sweep_at: int | None
    expiry_floor_at: int
    brake_engaged_at: int | None
    brake_leased: int
    brake_released: bool


_live = one_of(owners.c.state, "active", "draining")
_leased = and_(_live, owners.c.lease_expires_at.is_not(None))
_floor_passed = bindparam("floor") + owners.c.lease_ttl_ms + bindparam("grace") <= bindparam("now")
_expirable = and_(
    _leased,
    owners.c.lease_expires_at + bindparam("grace") <= bindparam("now"),
    _floor_passed,
)
_overdrained = and_(owners.c.state == "draining", owners.c.drain_deadline_at <= bindparam("now"))

_COUNTS = Statement(
    select(
        func.count(),
        func.coalesce(
            func.sum(case((owners.c.lease_expires_at <= bindparam("now"), 1), else_=0)), 0
        ),
        func.coalesce(func.sum(case((_expirable, 1), else_=0)), 0),
    ).where(_leased)
)
_identity = (
    owners.c.namespace,
    owners.c.component,
    owners.c.endpoint,
    owners.c.instance_id,
    owners.c.lora_slug,
)
_DUE = Statement(
    select(owners.c.id, *_identity, _overdrained.label("overdrained"))
    .where(or_(_expirable, _overdrained))
    .order_by(_overdrained.desc(), owners.c.lease_expires_at, owners.c.id)
    .limit(bindparam("row_limit"))
)
_OVERDRAINED = Statement(
    select(owners.c.id, *_identity, _overdrained.label("overdrained"))
    .where(_overdrained)
    .order_by(owners.c.drain_deadline_at, owners.c.id)
    .limit(bindparam("row_limit"))
)
_CUT_LEASES = Statement(
    update(owners)
    .values(lease_expires_at=bindparam("now") + owners.c.lease_ttl_ms)
    .where(_leased, owners.c.lease_expires_at > bindparam("now") + owners.c.lease_ttl_ms)
)


def sweep(conn: Connection, now: int, items: Sequence[Sweep]) -> list[Swept]:
    """End at most 500 owners that are due; a sweep that another process just made is skipped."""
    return [_sweep(conn, now, item) for item in items]


def _sweep(conn: Connection, now: int, item: Sweep) -> Swept:
    variables = read_variables(conn)
    policy = policy_of(variables)
    state = _state_of(variables)
    if not (item.force or item.repeated) and _just_swept(state, policy, now):
        return Swept(skipped=True)
    _mind_the_clock(conn, state, policy, now)
    leased, lapsed, expirable = conn.run(
        _COUNTS, now=now, grace=policy.lease_grace_ms, floor=state.expiry_floor_at
    )[0]
    allowed, paused = _brake(conn, state, policy, item, now, (leased, lapsed, expirable))
    due = _due(conn, state, policy, now, allowed)
    if not item.dry_run:
        releases = [Release(owner_id, end.state, end.reason) for owner_id, end in due]
        load_refs(conn, releases)
        release(conn, now, releases)
        _write_state(conn, state, now)
    else:
        releases = []
    expired = sum(end.state is OwnerState.EXPIRED for _, end in due)
    return Swept(
        ended=tuple(end for _, end in due),
        released=sum(len(each.entry_ids) for each in releases),
        more=len(due) == OWNERS_PER_SWEEP and not item.dry_run,
        paused=paused,
        waiting=expirable - expired,
    )


def _just_swept(state: _State, policy: Policy, now: int) -> bool:
    """Whether another process swept within the last half of the interval."""
    last = state.last_sweep_at
    return last is not None and 0 <= now - last < policy.sweep_interval_ms // 2


def _mind_the_clock(conn: Connection, state: _State, policy: Policy, now: int) -> None:
    """Move the floor after a gap; take back what a clock that went back left in the future."""
    last = state.last_sweep_at
    if last is None or now < last - CLOCK_TOLERANCE_MS or now - last > policy.lease_grace_ms // 3:
        state.expiry_floor_at = now
    state.expiry_floor_at = min(state.expiry_floor_at, now)
    if state.brake_engaged_at is not None:
        state.brake_engaged_at = min(state.brake_engaged_at, now)
    conn.run(_CUT_LEASES, now=now)


def _brake(
    conn: Connection,
    state: _State,
    policy: Policy,
    item: Sweep,
    now: int,
    counts: tuple[int, int, int],
) -> tuple[int, str | None]:
    """How many owners may expire in this sweep, and why not all that are due."""
    leased, lapsed, expirable = counts
    together = lapsed >= policy.brake_min_owners and lapsed * 100 > policy.brake_percent * leased
    if state.brake_engaged_at is None:
        if state.brake_released and not together:
            state.brake_released = False
        if not (together and expirable) or state.brake_released or item.release_brake:
            state.brake_released = state.brake_released or (item.release_brake and together)
            return OWNERS_PER_SWEEP, None
        state.brake_engaged_at, state.brake_leased = now, leased
        _tell(conn, item, now, "expiry_paused", f"{lapsed} of {leased} leased owners lapsed")
    elif item.release_brake:
        state.brake_engaged_at, state.brake_released = None, together
        _tell(conn, item, now, "expiry_resumed", "released by command")
        return OWNERS_PER_SWEEP, None
    elif not together:
        state.brake_engaged_at = None
        _tell(conn, item, now, "expiry_resumed", "renewals returned")
        return OWNERS_PER_SWEEP, None
    if now - state.brake_engaged_at < policy.brake_max_ms:
        return 0, (
            f"the brake is engaged: {lapsed} of {leased} leased owners lapsed together; it ends "
            "when renewals return, with `sweep --release-brake`, or "
            f"{policy.brake_max_ms / 1000:g} s after it engaged"
        )
    allowed = _bounded_rate(state, policy, now)
    return allowed, f"the brake lets {allowed} owners expire in this sweep"


def _bounded_rate(state: _State, policy: Policy, now: int) -> int:
    """What may expire after the longest pause: the brake's part of the fleet in a minute."""
    elapsed_ms = min(max(now - (state.last_sweep_at or now), 0), policy.sweep_interval_ms * 2)
    share = state.brake_leased * policy.brake_percent * elapsed_ms // (100 * 60_000)
    return min(OWNERS_PER_SWEEP, max(policy.brake_min_owners, share))


def _due(
    conn: Connection, state: _State, policy: Policy, now: int, allowed: int
) -> list[tuple[int, Ending]]:
    """The owners to end, those past their drain deadline first: the brake is not for them."""
    rows = conn.run(_OVERDRAINED, now=now, row_limit=OWNERS_PER_SWEEP)
    found = {row[0]: row for row in rows}
    left = min(allowed, OWNERS_PER_SWEEP - len(found))
    if left:
        for row in conn.run(
            _DUE,
            now=now,
            grace=policy.lease_grace_ms,
            floor=state.expiry_floor_at,
            row_limit=len(found) + left,
        ):
            found.setdefault(row[0], row)
    return [(row[0], _ending(row)) for row in found.values()]


def _ending(row: Sequence[object]) -> Ending:
    namespace, component, endpoint, instance_id, lora_slug = (str(part) for part in row[1:6])
    owner = Owner(namespace, component, endpoint, int(instance_id), lora_slug or None)
    if row[6]:
        return Ending(owner, OwnerState.DETACHED, "drain deadline")
    return Ending(owner, OwnerState.EXPIRED, "expired")


def _tell(conn: Connection, item: Sweep, now: int, kind: str, reason: str) -> None:
    if not item.dry_run:
        write_service_event(conn, now, kind, reason)


def _state_of(variables: dict[str, str]) -> _State:
    def number(name: str) -> int | None:
        return int(variables[name]) if name in variables else None

    return _State(
        number("last_sweep_at"),
        number("expiry_floor_at") or 0,
        number("brake_engaged_at"),
        number("brake_leased") or 0,
        variables.get("brake_released") == "1",
    )


def _write_state(conn: Connection, state: _State, now: int) -> None:
    write_variables(
        conn,
        {
            "last_sweep_at": now,
            "expiry_floor_at": state.expiry_floor_at,
            "brake_engaged_at": state.brake_engaged_at,
            "brake_leased": state.brake_leased if state.brake_engaged_at is not None else None,
            "brake_released": "1" if state.brake_released else None,
        },
    )
