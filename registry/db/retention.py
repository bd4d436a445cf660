"""What grows old besides leases: tombstones, the journal, uploads that nobody registered (S14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, delete, exists, func, or_, select

from registry.db.blobs import collect_blobs
from registry.db.engine import Connection, Statement, one_of
from registry.db.tables import blobs, entries, events, owner_refs, owners
from registry.db.variables import policy_of, read_variables, write_variables

EVENTS_PER_PRUNE = 5_000
TOMBSTONES_PER_PRUNE = 1_000
BLOBS_PER_PRUNE = 200
JOURNAL_ROUND_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Prune:
    """Uploads that looked abandoned; they are looked at again under the write lock."""

    checksums: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many tombstones and events went. `more`: there is more of it to do."""

    tombstones: int = 0
    events: int = 0
    more: bool = False


_successor = owners.alias("successor")
_has_successor = exists().where(
    _successor.c.namespace == owners.c.namespace,
    _successor.c.component == owners.c.component,
    _successor.c.endpoint == owners.c.endpoint,
    _successor.c.worker_name == owners.c.worker_name,
    one_of(_successor.c.state, "active", "draining"),
)
_old_tombstones = (
    select(owners.c.id)
    .where(
        owners.c.ended_at <= bindparam("before"),
        ~exists().where(owner_refs.c.owner_id == owners.c.id),
        or_(owners.c.state != "superseded", ~_has_successor),
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
_LAST_EVENT = Statement(select(func.coalesce(func.max(events.c.id), 0)))
_explains_a_ref = and_(
    one_of(events.c.kind, "registered", "replaced"),
    exists()
    .where(
        owners.c.namespace == events.c.namespace,
        owners.c.component == events.c.component,
        owners.c.endpoint == events.c.endpoint,
        owners.c.instance_id == events.c.instance_id,
        owners.c.lora_slug == events.c.lora_slug,
        entries.c.slug == events.c.slug,
        entries.c.suffix == events.c.suffix,
        entries.c.filename == events.c.filename,
        owner_refs.c.owner_id == owners.c.id,
        owner_refs.c.entry_id == entries.c.id,
        owner_refs.c.event_id == events.c.id,
    )
    .correlate(events),
)
_DELETE_EVENTS = Statement(
    delete(events)
    .where(events.c.id > bindparam("after"), events.c.id <= bindparam("up_to"), ~_explains_a_ref)
    .returning(events.c.id)
)

_ABANDONED = Statement(
    select(blobs.c.checksum)
    .where(
        blobs.c.uploaded_at <= bindparam("before"),
        ~exists().where(owner_refs.c.blob_checksum == blobs.c.checksum),
    )
    .limit(bindparam("row_limit"))
)


def find_abandoned(conn: Connection, now: int) -> tuple[str, ...]:
    """Uploads past their grace that nobody registered, at most 200. Looks at every blob."""
    policy = policy_of(read_variables(conn))
    rows = conn.run(_ABANDONED, before=now - policy.upload_grace_ms, row_limit=BLOBS_PER_PRUNE)
    return tuple(row[0] for row in rows)


def prune(conn: Connection, now: int, items: Sequence[Prune]) -> list[Pruned]:
    """Delete abandoned uploads, old tombstones and old events, a bounded number of each.

    The tombstone of a superseded owner stays while its successor lives (S11). The event that
    explains a live ref stays for as long as the ref (S14).
    """
    return [_prune(conn, now, item) for item in items]


def _prune(conn: Connection, now: int, item: Prune) -> Pruned:
    variables = read_variables(conn)
    policy = policy_of(variables)
    collect_blobs(conn, now, item.checksums)
    tombstones = conn.run(
        _DELETE_TOMBSTONES,
        before=now - policy.tombstone_retention_ms,
        row_limit=TOMBSTONES_PER_PRUNE,
    )
    last = conn.run(_LAST_EVENT)[0][0]
    deleted, more = _prune_events(
        conn,
        variables,
        now,
        before=now - policy.journal_retention_ms,
        surplus_id=last - policy.journal_max_rows,
    )
    more = more or len(tombstones) == TOMBSTONES_PER_PRUNE
    return Pruned(len(tombstones), deleted, more or len(item.checksums) == BLOBS_PER_PRUNE)


def _prune_events(
    conn: Connection, variables: dict[str, str], now: int, *, before: int, surplus_id: int
) -> tuple[int, bool]:
    """The next stretch of the journal. What had to stay is looked at again an hour later."""
    after = int(variables.get("journal_pruned_to", 0))
    started_at = int(variables.get("journal_round_at", 0))
    if not 0 <= now - started_at < JOURNAL_ROUND_MS:
        after, started_at = 0, now
    rows = conn.run(_NEXT_EVENTS, after=after, row_limit=EVENTS_PER_PRUNE)
    old = [event_id for event_id, at in rows if at <= before or event_id <= surplus_id]
    deleted = 0
    if old:
        deleted = len(conn.run(_DELETE_EVENTS, after=after, up_to=old[-1]))
        after = old[-1]
    write_variables(conn, {"journal_pruned_to": after, "journal_round_at": started_at})
    return deleted, len(old) == EVENTS_PER_PRUNE
