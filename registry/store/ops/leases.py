"""An owner's time: renewing its lease, announcing its detach (S9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, bindparam, case, func, null, select, update

from registry.core.records import ENDED, Drained, Owner, Renewed
from registry.errors import LeaseGone, RegistryError, Superseded
from registry.store.engine import Connection
from registry.store.journal import EventRow, write_events
from registry.store.ops.release import FIND_OWNERS
from registry.store.ops.supersede import find_superseded, instance_of
from registry.store.owner_columns import identity, identity_of, lease_of
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import owner_refs, owners


@dataclass(frozen=True, slots=True)
class Drain:
    """An announced detach: the owner is served until it unregisters, or until the deadline."""

    owner: Owner
    deadline_ms: int
    request_id: str | None = None
    actor: str | None = None


_rows = json_rows("rows", id=int)
_drains = json_rows("rows", id=int, deadline_ms=int)
_renewed_until = bindparam("now", type_=BigInteger) + owners.c.lease_ttl_ms


class _RenewedRow(NamedTuple):
    id: int
    lease_ttl_ms: int | None
    lease_expires_at: int | None
    refs: int
    unserveable: int


_count_refs = select(func.count()).where(owner_refs.c.owner_id == owners.c.id).correlate(owners)
_RENEW = Statement(
    update(owners)
    .values(
        renewed_at=bindparam("now"),
        # Never shorter: a clock that is an hour slow for a moment must not leave leases that lapse
        # as it is put right. Where it stays slow, the next sweep cuts them.
        lease_expires_at=case(
            (owners.c.lease_expires_at > _renewed_until, owners.c.lease_expires_at),
            else_=_renewed_until,
        ),
    )
    .where(owners.c.id.in_(select(_rows.c.id)))
    .returning(
        owners.c.id,
        owners.c.lease_ttl_ms,
        owners.c.lease_expires_at,
        _count_refs.scalar_subquery().label("refs"),
        _count_refs.where(owner_refs.c.status != "ok").scalar_subquery().label("unserveable"),
    ),
    _RenewedRow,
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
    live, refused = _find_live(conn, items)
    outcomes: list[Renewed | RegistryError] = []
    wanted = as_rows([[owner_id] for owner_id in set(live.values())])
    renewed = {row.id: row for row in conn.run(_RENEW, now=now, rows=wanted)} if live else {}
    for index, owner in enumerate(items):
        owner_id = live.get(index)
        if owner_id is None:
            outcomes.append(refused[index])
            continue
        _, ttl_ms, expires_at, refs, unserveable = renewed[owner_id]
        outcomes.append(Renewed(owner, lease_of(ttl_ms, expires_at), refs, unserveable))
    return outcomes


def renew_many(
    conn: Connection, now: int, items: Sequence[Sequence[Owner]]
) -> list[list[Renewed | RegistryError]]:
    """As `renew`, for lists of owners: what is said of each, in its order."""
    outcomes = iter(renew(conn, now, [owner for item in items for owner in item]))
    return [[next(outcomes) for _ in item] for item in items]


def drain(conn: Connection, now: int, items: Sequence[Drain]) -> list[Drained | RegistryError]:
    """Announce a detach per owner; one that was ended is refused. The last deadline counts."""
    live, refused = _find_live(conn, [item.owner for item in items])
    outcomes: dict[int, Drained | RegistryError] = dict(refused)
    if live:
        deadlines = {owner_id: items[index].deadline_ms for index, owner_id in live.items()}
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


def _find_live(
    conn: Connection, items: Sequence[Owner]
) -> tuple[dict[int, int], dict[int, RegistryError]]:
    """The id of each owner that lives, and why each of the others is refused: it has ended, or
    never was. Both by position."""
    identities = [identity(owner) for owner in items]
    found = {
        identity_of(row): row.id
        for row in conn.run(FIND_OWNERS, rows=as_rows(identities))
        if row.state not in ENDED
    }
    live = {index: found[each] for index, each in enumerate(identities) if each in found}
    if len(live) == len(items):
        return live, {}
    gone = {index: instance_of(items[index]) for index in range(len(items)) if index not in live}
    # All owners of an instance are replaced with it, also those that left before or never came.
    replaced = find_superseded(conn, list(gone.values()))()
    return live, {
        index: Superseded() if instance in replaced else LeaseGone()
        for index, instance in gone.items()
    }
