"""An owner's time: renewing its lease, announcing its detach (S9)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    update,
)

from registry.core.identity import Identity
from registry.core.records import Drained, Owner
from registry.errors import LeaseGone, RegistryError, Superseded
from registry.store.engine import Connection
from registry.store.journal import EventRow, write_events
from registry.store.ops.supersede import find_superseded
from registry.store.owner_columns import OWNER_COLUMNS, OWNER_NAMES, identity, same_owner
from registry.store.sql import Row, Statement, as_rows, json_column, json_rows, one_of
from registry.store.tables import owner_refs, owners


@dataclass(frozen=True, slots=True)
class Drain:
    """An announced detach: the owner is served until it unregisters, or until the deadline."""

    owner: Owner
    deadline_ms: int
    request_id: str | None = None
    actor: str | None = None


_ids = json_column("rows", "id", int)
_drains = json_rows("rows", id=int, deadline_ms=int)
_names = json_rows("rows", **dict.fromkeys(OWNER_NAMES, str))
_wanted = json_rows("rows", position=int, **dict.fromkeys(OWNER_NAMES, str))
_lives = one_of(owners.c.state, "active", "draining")


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
UNSERVEABLE = 2**32
"""What a ref counts more, in a sum, if its file is gone or drifted: two counts in one walk."""
_unserveable = literal_column(str(UNSERVEABLE), BigInteger)
_counts = (
    select(func.count() + _unserveable * func.count(func.nullif(owner_refs.c.status, "ok")))
    .where(owner_refs.c.owner_id == owners.c.id)
    .correlate(owners)
    .scalar_subquery()
)
_found = select(
    owners.c.id.label("owner_id"),
    owners.c.lease_ttl_ms,
    _renewed_until.label("lease_expires_at"),
    cast(_counts, BigInteger).label("counts"),
    *OWNER_COLUMNS,
)
_FIND_BY_NAME = Statement(
    _found.join_from(_names, owners, and_(same_owner(owners, _names), _lives))
)
_FIND_BY_ID = Statement(_found.join_from(_ids, owners, and_(owners.c.id == _ids.c.id, _lives)))
"""Those of the owners that live: what a `Renewal` is made of, and their names."""
_RENEW = Statement(
    update(owners)
    .values(renewed_at=bindparam("now"), lease_expires_at=_renewed_until)
    .where(owners.c.id.in_(select(_ids.c.id)))
)
_FIND_LIVE = Statement(
    select(_wanted.c.position, owners.c.id).join_from(
        _wanted, owners, and_(same_owner(owners, _wanted), _lives)
    )
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


KNOWN_MAX = 1 << 16
"""So many ids are remembered, some 150 bytes each."""


class RenewOperation:
    """Renews leases, and remembers the ids of their owners: by an id an owner is found in half the
    time that its names take. What is found is believed only if it has the names that were asked
    for."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        """By the hash of an owner's names, so that nothing of what callers send is kept."""

    def renew(
        self, conn: Connection, now: int, items: Sequence[Identity]
    ) -> list[Renewal | RegistryError]:
        """New expiry per owner, and how many refs it holds; one that was ended is refused, not
        revived.

        An owner without a lease is only noted as seen. Nothing is journalled: a fleet renews often.
        """
        outcomes = self._find(conn, now, items)
        found = [each for each in outcomes if each is not None]
        if found:
            ids = sorted({each.owner_id for each in found})
            conn.run(_RENEW, now=now, rows=as_rows(ids))
        if len(found) == len(items):
            return list(found)
        gone = {n: items[n] for n, each in enumerate(outcomes) if each is None}
        refusals = _refusals(conn, gone)
        return [each or refusals[n] for n, each in enumerate(outcomes)]

    def renew_many(
        self, conn: Connection, now: int, items: Sequence[Sequence[Identity]]
    ) -> list[list[Renewal | RegistryError]]:
        """As `renew`, for lists of owners: what is said of each, in its order."""
        outcomes = self.renew(conn, now, [who for item in items for who in item])
        ends = list(itertools.accumulate(map(len, items)))
        return [outcomes[end - len(item) : end] for item, end in zip(items, ends, strict=True)]

    def _find(self, conn: Connection, now: int, items: Sequence[Identity]) -> list[Renewal | None]:
        """What becomes of each of the owners; None: it does not live."""
        known = [self._ids.get(hash(who)) for who in items]
        ids = [owner_id for owner_id in known if owner_id is not None]
        rows = conn.run(_FIND_BY_ID, now=now, rows=as_rows(ids)) if ids else []
        by_id = {row[0]: row for row in rows}
        outcomes: list[Renewal | None] = []
        for who, owner_id in zip(items, known, strict=True):
            row = by_id.get(owner_id)
            # A transaction that was rolled back leaves its ids to others.
            outcomes.append(_renewal(row) if row is not None and row[4:] == who else None)
        if None in outcomes:
            pairs = list(zip(items, outcomes, strict=True))
            named = self._find_by_name(conn, now, [who for who, each in pairs if each is None])
            outcomes = [each or named.get(who) for who, each in pairs]
        return outcomes

    def _find_by_name(
        self, conn: Connection, now: int, items: Sequence[Identity]
    ) -> dict[Identity, Renewal]:
        """Those of the owners that live."""
        rows = conn.run(_FIND_BY_NAME, now=now, rows=as_rows(items))
        found = {Identity._make(row[4:]): _renewal(row) for row in rows}
        if len(self._ids) + len(found) > KNOWN_MAX:
            self._ids.clear()
        self._ids.update((hash(who), each.owner_id) for who, each in found.items())
        return found


def _renewal(row: Row) -> Renewal:
    owner_id, ttl_ms, expires_at, counts = row[:4]
    unserveable, refs = divmod(counts, UNSERVEABLE)
    return Renewal(owner_id, ttl_ms, expires_at, refs, unserveable)


def drain(conn: Connection, now: int, items: Sequence[Drain]) -> list[Drained | RegistryError]:
    """Announce a detach per owner; one that was ended is refused. The last deadline counts."""
    who = [identity(item.owner) for item in items]
    live: dict[int, int] = dict(sorted(conn.run(_FIND_LIVE, rows=_numbered(who))))
    gone = {index: each for index, each in enumerate(who) if index not in live}
    outcomes: dict[int, Drained | RegistryError] = dict(_refusals(conn, gone))
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


def _refusals(conn: Connection, gone: Mapping[int, Identity]) -> dict[int, RegistryError]:
    """Why each of the owners is refused, which has ended or never was, by its position."""
    instances = {position: each[:4] for position, each in gone.items()}
    # All owners of an instance are replaced with it, also those that left before or never came.
    replaced = find_superseded(conn, list(instances.values()))() if instances else set()
    return {
        position: Superseded() if instance in replaced else LeaseGone()
        for position, instance in instances.items()
    }
