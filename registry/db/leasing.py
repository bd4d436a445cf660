"""An owner's time: renewing its lease, announcing its detach (S9)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, null, select, update

from registry.db.engine import Connection, Statement, json_rows
from registry.db.journal import EventRow, write_events
from registry.db.releasing import FIND_OWNERS, identity
from registry.db.sequences import last_ids
from registry.db.tables import owner_refs, owners
from registry.errors import LeaseGone, RegistryError, Superseded
from registry.records import Drained, Lease, Owner, OwnerState, Renewed


@dataclass(frozen=True, slots=True)
class Drain:
    """An announced detach: the owner is served until it unregisters, or until the deadline."""

    owner: Owner
    deadline_ms: int
    request_id: str | None = None
    actor: str | None = None


_rows = json_rows("rows", id=int)
_drains = json_rows("rows", id=int, deadline_ms=int)
_RENEW = Statement(
    update(owners)
    .values(
        renewed_at=bindparam("now"),
        lease_expires_at=bindparam("now") + owners.c.lease_ttl_ms,
    )
    .where(owners.c.id.in_(select(_rows.c.id)))
)
_RENEWED = Statement(
    select(
        owners.c.id,
        owners.c.lease_ttl_ms,
        owners.c.lease_expires_at,
        select(func.count())
        .where(owner_refs.c.owner_id == owners.c.id)
        .correlate(owners)
        .scalar_subquery(),
    ).where(owners.c.id.in_(select(_rows.c.id)))
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


def renew(conn: Connection, now: int, items: Sequence[Owner]) -> list[Renewed | RegistryError]:
    """New expiry per owner, and how many refs it holds; one that was ended is refused, not revived.

    An owner without a lease is only noted as seen. Nothing is journalled: a fleet renews often.
    """
    outcomes, live = _find_live(conn, items)
    if live:
        wanted = json.dumps([[owner_id] for owner_id in set(live.values())])
        conn.run(_RENEW, now=now, rows=wanted)
        renewed = {row[0]: row[1:] for row in conn.run(_RENEWED, rows=wanted)}
        for index, owner_id in live.items():
            ttl_ms, expires_at, refs = renewed[owner_id]
            lease = None if ttl_ms is None else Lease(ttl_ms, expires_at)
            outcomes[index] = Renewed(items[index], lease, refs)
    return outcomes


def drain(conn: Connection, now: int, items: Sequence[Drain]) -> list[Drained | RegistryError]:
    """Announce a detach per owner; one that was ended is refused. The last deadline counts."""
    refused, live = _find_live(conn, [item.owner for item in items])
    outcomes: list[Drained | RegistryError] = list(refused)  # type: ignore[arg-type]
    if live:
        deadlines = {owner_id: items[index].deadline_ms for index, owner_id in live.items()}
        conn.run(_DRAIN, now=now, rows=json.dumps(list(deadlines.items())))
        event_id = last_ids(conn).get("events", 0)
        events = []
        for index, owner_id in live.items():
            item = items[index]
            event_id += 1
            about = (f"within {item.deadline_ms / 1000:g} s", item.actor, item.request_id)
            events.append(EventRow(event_id, "drained", owner_id, None, None, None, *about))
            outcomes[index] = Drained(item.owner, now + item.deadline_ms)
        write_events(conn, now, events)
    return outcomes


def _find_live(
    conn: Connection, items: Sequence[Owner]
) -> tuple[list[Renewed | RegistryError], dict[int, int]]:
    """The refusal of each owner that has ended or never was; the ids of the others by position."""
    wanted = json.dumps([identity(owner) for owner in items])
    found = {row[:5]: (row[5], OwnerState(row[6])) for row in conn.run(FIND_OWNERS, rows=wanted)}
    refusals: list[Renewed | RegistryError] = []
    live: dict[int, int] = {}
    for index, owner in enumerate(items):
        owner_id, state = found.get(identity(owner), (0, OwnerState.DETACHED))
        if not state.ended:
            live[index] = owner_id
        superseded = state is OwnerState.SUPERSEDED
        refusals.append(Superseded() if superseded else LeaseGone())
    return refusals, live
