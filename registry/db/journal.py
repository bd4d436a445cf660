"""The append-only journal: every change writes its events in its own transaction (S14).

Operations collect `EventRow`s and write them in one statement while the rows that they speak of
are there: events name owners and keys by value, taken from those rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import and_, bindparam, exists, func, insert, literal_column, or_, select

from registry.db.engine import Connection, Statement, as_rows, json_rows, one_of
from registry.db.tables import entries, events, owners
from registry.records import Owner

CONFLICT_MS = 3_600_000
"""How long a refusal is a conflict that somebody should look at; the view `leaks` has the same."""


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

_NAMES = (
    *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
    *("slug", "suffix", "filename"),
)
_last = events.alias("last_of_key")
_LAST_OF = Statement(
    select(events.c.kind, events.c.checksum, events.c.previous_checksum)
    .where(*(events.c[name] == bindparam(name) for name in _NAMES))
    .order_by(events.c.id.desc())
    .limit(1)
)
_LEFT_SINCE = Statement(
    select(events.c.id).where(
        *(events.c[name] == bindparam(name) for name in _NAMES[:5]),
        events.c.slug.is_(None),
        one_of(events.c.kind, "detached", "expired", "superseded"),
        events.c.id
        > select(func.max(_last.c.id))
        .where(*(_last.c[name] == bindparam(name) for name in _NAMES))
        .scalar_subquery(),
    )
)


def write_events(conn: Connection, now: int, rows: Sequence[EventRow]) -> None:
    """Append events. The rows that they name by id must still be there."""
    if rows:
        conn.run(_INSERT, now=now, rows=as_rows(rows))


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
    """Append `refused` events, without those that only repeat the last word on their key (S2).

    Who left in between, and comes again with the same, repeats nothing.
    """
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
        about = dict(zip(_NAMES, (*who, *key), strict=True))
        last = conn.run(_LAST_OF, **about)
        is_repeat = last == [("refused", refusal.offered, refusal.registered)]
        if not is_repeat or conn.run(_LEFT_SINCE, **about):
            event_id = last_event_id + len(rows) + 1
            rows.append((event_id, *who, *key, *refusal[4:]))
    if rows:
        conn.run(_INSERT_REFUSALS, now=now, kind="refused", rows=as_rows(rows))


_later = events.alias("later")
_UNRESOLVED = Statement(
    select(
        events.c.namespace,
        events.c.component,
        events.c.endpoint,
        events.c.instance_id,
        events.c.lora_slug,
        events.c.slug,
        events.c.suffix,
        events.c.filename,
    ).where(
        # Spelled out, so that SQLite can use the partial index of refusals.
        events.c.kind == literal_column("'refused'"),
        events.c.at > bindparam("since"),
        ~exists().where(
            _later.c.namespace == events.c.namespace,
            _later.c.component == events.c.component,
            _later.c.endpoint == events.c.endpoint,
            _later.c.instance_id == events.c.instance_id,
            _later.c.lora_slug == events.c.lora_slug,
            _later.c.id > events.c.id,
            or_(
                one_of(_later.c.kind, "detached", "expired", "superseded"),
                and_(
                    one_of(_later.c.kind, "registered", "replaced", "refused"),
                    _later.c.slug == events.c.slug,
                    _later.c.suffix == events.c.suffix,
                    _later.c.filename == events.c.filename,
                ),
            ),
        ),
    )
)


def find_unresolved(conn: Connection, now: int) -> set[tuple[str, ...]]:
    """The owners and keys (eight names each) that were refused within the last hour, and neither
    succeeded nor left since: the conflicts that the view `leaks` shows."""
    return set(conn.run(_UNRESOLVED, since=now - CONFLICT_MS))


def write_departure(
    conn: Connection,
    now: int,
    last_event_id: int,
    who: tuple[str, ...],
    actor: str | None,
    request_id: str | None,
) -> None:
    """Append that somebody who was refused, and holds nothing, leaves.

    It never came in, so that it is put down as `attached` as well: who plays the journal back
    finds nobody leaving who was not there.
    """
    for step, (kind, reason) in enumerate((("attached", "refused"), ("detached", "unregistered"))):
        row = (last_event_id + 1 + step, *who, *[None] * 5, reason, actor, request_id)
        conn.run(_INSERT_REFUSALS, now=now, kind=kind, rows=as_rows([row]))


_INSERT_SERVICE_EVENT = Statement(
    insert(events).values(at=bindparam("now"), kind=bindparam("kind"), reason=bindparam("reason"))
)


def write_service_event(conn: Connection, now: int, kind: str, reason: str) -> None:
    """Append an event of the service itself, about no owner and no entry."""
    conn.run(_INSERT_SERVICE_EVENT, now=now, kind=kind, reason=reason)
