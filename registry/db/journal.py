"""The append-only journal: every change writes its events in its own transaction (S14).

Operations collect `EventRow`s and write them in one statement while the rows that they speak of
are there: events name owners and keys by value, taken from those rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, func, insert, select

from registry.db.engine import Connection, Statement, json_rows
from registry.db.tables import entries, events, owners
from registry.records import Owner


class EventRow(NamedTuple):
    """One event of an operation, by the ids of the owner and the entry that it is about.

    `checksum` None stands for the entry's own.
    """

    id: int
    kind: str
    owner_id: int | None
    entry_id: int | None
    checksum: str | None = None
    previous_checksum: str | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None


_rows = json_rows(
    "rows",
    id=int,
    kind=str,
    owner_id=int,
    entry_id=int,
    checksum=str,
    previous_checksum=str,
    reason=str,
    actor=str,
    request_id=str,
)
_INSERT = Statement(
    insert(events).from_select(
        [
            *("id", "at", "kind"),
            *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
            *("slug", "suffix", "filename", "checksum", "previous_checksum"),
            *("reason", "actor", "request_id"),
        ],
        select(
            _rows.c.id,
            bindparam("now"),
            _rows.c.kind,
            owners.c.namespace,
            owners.c.component,
            owners.c.endpoint,
            owners.c.instance_id,
            owners.c.lora_slug,
            entries.c.slug,
            entries.c.suffix,
            entries.c.filename,
            func.coalesce(_rows.c.checksum, entries.c.checksum),
            _rows.c.previous_checksum,
            _rows.c.reason,
            _rows.c.actor,
            _rows.c.request_id,
        ).select_from(
            _rows.outerjoin(owners, owners.c.id == _rows.c.owner_id).outerjoin(
                entries, entries.c.id == _rows.c.entry_id
            )
        ),
    )
)

_refusals = json_rows(
    "rows",
    id=int,
    namespace=str,
    component=str,
    endpoint=str,
    instance_id=str,
    lora_slug=str,
    slug=str,
    suffix=str,
    filename=str,
    checksum=str,
    previous_checksum=str,
    reason=str,
    actor=str,
    request_id=str,
)
_INSERT_REFUSALS = Statement(
    insert(events).from_select(
        ["at", "kind", *_refusals.c.keys()],
        select(bindparam("now"), bindparam("kind"), *_refusals.c),
    )
)

_LAST_OF = Statement(
    select(events.c.kind, events.c.checksum, events.c.previous_checksum)
    .where(
        events.c.namespace == bindparam("namespace"),
        events.c.component == bindparam("component"),
        events.c.endpoint == bindparam("endpoint"),
        events.c.instance_id == bindparam("instance_id"),
        events.c.lora_slug == bindparam("lora_slug"),
        events.c.slug == bindparam("slug"),
        events.c.suffix == bindparam("suffix"),
        events.c.filename == bindparam("filename"),
    )
    .order_by(events.c.id.desc())
    .limit(1)
)


def write_events(conn: Connection, now: int, rows: Sequence[EventRow]) -> None:
    """Append events. The rows that they name by id must still be there."""
    if rows:
        conn.run(_INSERT, now=now, rows=json.dumps(rows))


class Refusal(NamedTuple):
    """A key that an owner was refused, with the offered and the registered checksum (S2)."""

    owner: Owner
    slug: str
    suffix: str
    filename: str
    offered: str
    registered: str
    reason: str
    actor: str | None
    request_id: str | None


def write_refusals(
    conn: Connection, now: int, last_event_id: int, refusals: Sequence[Refusal]
) -> None:
    """Append `refused` events, without those that only repeat the last word on their key (S2)."""
    rows: list[tuple[object, ...]] = []
    for refusal in refusals:
        owner = refusal.owner
        who = (
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug or "",
        )
        key = (refusal.slug, refusal.suffix, refusal.filename)
        names = ("namespace", "component", "endpoint", "instance_id", "lora_slug")
        last = conn.run(
            _LAST_OF,
            **dict(zip(names, who, strict=True)),
            **dict(zip(("slug", "suffix", "filename"), key, strict=True)),
        )
        if last != [("refused", refusal.offered, refusal.registered)]:
            event_id = last_event_id + len(rows) + 1
            rows.append((event_id, *who, *key, *refusal[4:]))
    if rows:
        conn.run(_INSERT_REFUSALS, now=now, kind="refused", rows=json.dumps(rows))


_INSERT_SERVICE_EVENT = Statement(
    insert(events).values(at=bindparam("now"), kind=bindparam("kind"), reason=bindparam("reason"))
)


def write_service_event(conn: Connection, now: int, kind: str, reason: str) -> None:
    """Append an event of the service itself, about no owner and no entry."""
    conn.run(_INSERT_SERVICE_EVENT, now=now, kind=kind, reason=reason)
