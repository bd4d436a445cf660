"""An owner's time: renewing its lease, announcing its detach (S9)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, and_, bindparam, case, func, null, select, update

from registry.core.identity import Identity
from registry.core.records import Drained, Owner
from registry.errors import LeaseGone, RegistryError, Superseded
from registry.store.engine import Connection
from registry.store.journal import EventRow, write_events
from registry.store.ops.supersede import find_superseded
from registry.store.owner_columns import OWNER_NAMES, identity, same_owner
from registry.store.sql import Statement, as_rows, json_rows, one_of
from registry.store.tables import owner_refs, owners


@dataclass(frozen=True, slots=True)
class Drain:
    """An announced detach: the owner is served until it unregisters, or until the deadline."""

    owner: Owner
    deadline_ms: int
    request_id: str | None = None
    actor: str | None = None


_ids = json_rows("rows", id=int)
_drains = json_rows("rows", id=int, deadline_ms=int)
_wanted = json_rows("rows", position=int, **dict.fromkeys(OWNER_NAMES, str))
_is_wanted = and_(same_owner(owners, _wanted), one_of(owners.c.state, "active", "draining"))


class Renewal(NamedTuple):
    """A lease that is renewed, if the owner has one, and what a renewal tells of its refs."""

    owner_id: int
    lease_ttl_ms: int | None
    lease_expires_at: int | None
    refs: int
    unserveable: int


_now = bindparam("now", type_=BigInteger)
# Never shorter: a clock that is an hour slow for a moment must not leave leases that lapse as it is
# put right. Where it stays slow, the next sweep cuts them.
_renewed_until = case(
    (owners.c.lease_expires_at > _now + owners.c.lease_ttl_ms, owners.c.lease_expires_at),
    else_=_now + owners.c.lease_ttl_ms,
)
_count_refs = select(func.count()).where(owner_refs.c.owner_id == owners.c.id).correlate(owners)
_FIND_RENEWALS = Statement(
    select(
        _wanted.c.position,
        owners.c.id.label("owner_id"),
        owners.c.lease_ttl_ms,
        _renewed_until.label("lease_expires_at"),
        _count_refs.scalar_subquery().label("refs"),
        _count_refs.where(owner_refs.c.status != "ok").scalar_subquery().label("unserveable"),
    ).join_from(_wanted, owners, _is_wanted)
)
"""Of each of the wanted that lives: its position, and what a `Renewal` is made of."""
_RENEW = Statement(
    update(owners)
    .values(renewed_at=bindparam("now"), lease_expires_at=_renewed_until)
    .where(owners.c.id.in_(select(_ids.c.id)))
)
_FIND_LIVE = Statement(
    select(_wanted.c.position, owners.c.id).join_from(_wanted, owners, _is_wanted)
)
_DRAIN = Statement(
    update(owners)
    .values(
        state="draining",
        drain_deadline_at=bindparam("now") + _drains.c.deadline_ms,
        ended_at=null(),
    )
    .where(owners.c.id == _drains.c.id)
)


def renew(conn: Connection, now: int, items: Sequence[Identity]) -> list[Renewal | RegistryError]:
    """New expiry per owner, and how many refs it holds; one that was ended is refused, not revived.

    An owner without a lease is only noted as seen. Nothing is journalled: a fleet renews often.
    """
    found = conn.run(_FIND_RENEWALS, now=now, rows=_numbered(items))
    outcomes: dict[int, Renewal | RegistryError] = {row[0]: Renewal._make(row[1:]) for row in found}
    if found:
        ids = {row[1] for row in found}
        conn.run(_RENEW, now=now, rows=as_rows([[owner_id] for owner_id in ids]))
    if len(found) < len(items):
        outcomes.update(_refusals(conn, items, outcomes.keys()))
    return [outcomes[position] for position in range(len(items))]


def renew_many(
    conn: Connection, now: int, items: Sequence[Sequence[Identity]]
) -> list[list[Renewal | RegistryError]]:
    """As `renew`, for lists of owners: what is said of each, in its order."""
    outcomes = renew(conn, now, [who for item in items for who in item])
    ends = list(itertools.accumulate(map(len, items)))
    return [outcomes[end - len(item) : end] for item, end in zip(items, ends, strict=True)]


def drain(conn: Connection, now: int, items: Sequence[Drain]) -> list[Drained | RegistryError]:
    """Announce a detach per owner; one that was ended is refused. The last deadline counts."""
    who = [identity(item.owner) for item in items]
    live: dict[int, int] = dict(sorted(conn.run(_FIND_LIVE, rows=_numbered(who))))
    outcomes: dict[int, Drained | RegistryError] = dict(_refusals(conn, who, live.keys()))
    if live:
        deadlines = {owner_id: items[position].deadline_ms for position, owner_id in live.items()}
        conn.run(_DRAIN, now=now, rows=as_rows(deadlines.items()))
        event_id = conn.last_ids().get("events", 0)
        events = []
        for index, owner_id in live.items():
            item = items[index]
            event_id += 1
            events.append(
                EventRow(
                    id=event_id,
                    kind="drained",
                    owner_id=owner_id,
                    entry_id=None,
                    reason=f"within {item.deadline_ms / 1000:g} s",
                    actor=item.actor,
                    request_id=item.request_id,
                )
            )
            outcomes[index] = Drained(item.owner, now + item.deadline_ms)
        write_events(conn, now, events)
    return [outcomes[index] for index in range(len(items))]


def _numbered(who: Sequence[Identity]) -> str:
    return as_rows([(position, *each) for position, each in enumerate(who)])


def _refusals(
    conn: Connection, who: Sequence[Identity], live: Set[int]
) -> dict[int, RegistryError]:
    """Why each of the owners is refused that is not at a live position: it has ended, or never
    was."""
    gone = {position: each[:4] for position, each in enumerate(who) if position not in live}
    # All owners of an instance are replaced with it, also those that left before or never came.
    replaced = find_superseded(conn, list(gone.values()))() if gone else set()
    return {
        position: Superseded() if instance in replaced else LeaseGone()
        for position, instance in gone.items()
    }
