"""What a look at a holder's file found, put down in its owner ref (S12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, case, func, null, select, update

from registry.core.records import RefStatus
from registry.store.engine import Connection
from registry.store.journal import EventRow, write_events
from registry.store.sql import Statement
from registry.store.tables import entries, owner_refs


@dataclass(frozen=True, slots=True)
class Observation:
    """A holder's bytes as they were found beside the checksum that they should have: those of the
    file at `path`, or of the copy if that is None.

    `file_identity` is None unless it is OK and trusted.
    """

    owner_id: int
    entry_id: int
    path: str | None
    checksum: str
    status: RefStatus
    file_identity: str | None = None


class _Status(NamedTuple):
    status: str


_STATUS = Statement(
    select(owner_refs.c.status)
    .join(entries, entries.c.id == owner_refs.c.entry_id)
    .where(
        owner_refs.c.owner_id == bindparam("ref_owner_id"),
        owner_refs.c.entry_id == bindparam("ref_entry_id"),
        owner_refs.c.path.is_not_distinct_from(bindparam("ref_path")),
        entries.c.checksum == bindparam("ref_checksum"),
    ),
    _Status,
)
_OBSERVE = Statement(
    update(owner_refs)
    .values(
        status=bindparam("new_status"),
        # A file that drifted is not believed for what it looks like, until it is hashed right.
        file_identity=case(
            (bindparam("new_status") == "drifted", null()),
            else_=func.coalesce(bindparam("new_identity"), owner_refs.c.file_identity),
        ),
        verified_at=bindparam("now"),
    )
    .where(
        owner_refs.c.owner_id == bindparam("ref_owner_id"),
        owner_refs.c.entry_id == bindparam("ref_entry_id"),
    )
)


def observe(conn: Connection, now: int, items: Sequence[Observation]) -> list[None]:
    """Note each look. A ref that is gone, or has another path or content by now, is left alone.

    A change of status is journalled as `drifted`, `missing` or `restored`. Nothing is ever
    unregistered for what happened to a file.
    """
    event_id = conn.last_ids().get("events", 0)
    events: list[EventRow] = []
    for item in items:
        ref = {"ref_owner_id": item.owner_id, "ref_entry_id": item.entry_id}
        rows = conn.run(_STATUS, **ref, ref_path=item.path, ref_checksum=item.checksum)
        if not rows:
            continue
        conn.run(_OBSERVE, **ref, now=now, new_status=item.status, new_identity=item.file_identity)
        if rows[0].status != item.status:
            kind = "restored" if item.status is RefStatus.OK else item.status.value
            event_id += 1
            events.append(EventRow(event_id, kind, item.owner_id, item.entry_id))
    write_events(conn, now, events)
    return [None] * len(items)
