"""The append-only journal: every change writes its events in its own transaction (S14).

Operations collect `EventRow`s and write them in one statement while the rows that they speak of
are there: events name owners and keys by value, taken from those rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Subquery,
    Text,
    and_,
    bindparam,
    insert,
    literal_column,
    select,
    text,
    union_all,
)

from registry.core.identity import Identity
from registry.core.records import ArtifactKey, Owner
from registry.store.engine import Connection
from registry.store.owner_columns import OWNER_COLUMNS, OWNER_NAMES, names_owner, parameters_of
from registry.store.sql import Row, Statement, as_rows, json_rows, one_of
from registry.store.tables import ABOUT_OWNERS, entries, events, owners

CONFLICT_MS = 3_600_000
"""How long a refusal is a conflict that somebody should look at; the view `leaks` has the same."""

ALIKE_MIN = 32
"""From so many events on, of which the same is said, that is not repeated for each of them."""


class EventRow(NamedTuple):
    """One event of an operation, by the ids of the owner and the entry that it is about.

    The journal takes their names, and the entry's checksum and size, from their rows.
    """

    id: int
    kind: str
    owner_id: int | None
    entry_id: int | None
    previous_checksum: str | None = None
    previous_size: int | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None


_KEY_NAMES = ("slug", "suffix", "filename")
_NAMES = (*OWNER_NAMES, *_KEY_NAMES)
_SAID: dict[str, type] = {
    "previous_checksum": str,
    "previous_size": int,
    **dict.fromkeys(("reason", "actor", "request_id"), str),
}
_Said = tuple[str | None, int | None, str | None, str | None, str | None]


def _insert(rows: Subquery, said: Iterable[ColumnElement[Any]]) -> Statement[Row]:
    """Insert events of rows, and what is said of each."""
    return Statement(
        insert(events).from_select(
            ["id", "kind", "owner_id", "entry_id", "at", *_NAMES, "checksum", "size", *_SAID],
            select(
                *(rows.c[name] for name in ("id", "kind", "owner_id", "entry_id")),
                bindparam("now"),
                *OWNER_COLUMNS,
                *(entries.c[name] for name in _KEY_NAMES),
                entries.c.checksum,
                entries.c.size,
                *said,
            ).select_from(
                rows.outerjoin(owners, owners.c.id == rows.c.owner_id).outerjoin(
                    entries, entries.c.id == rows.c.entry_id
                )
            ),
        )
    )


_rows = json_rows("rows", id=int, kind=str, owner_id=int, entry_id=int, **_SAID)
_INSERT = _insert(_rows, [_rows.c[name] for name in _SAID])
_INSERT_ALIKE = _insert(
    json_rows("rows", id=int, kind=str, owner_id=int, entry_id=int),
    [bindparam(name, type_=BigInteger if kind is int else Text) for name, kind in _SAID.items()],
)


class _NamedEvent(NamedTuple):
    """An event that brings the names along, since there may be no rows to take them from."""

    id: int
    namespace: str | None = None
    component: str | None = None
    endpoint: str | None = None
    instance_id: str | None = None
    lora_slug: str | None = None
    slug: str | None = None
    suffix: str | None = None
    filename: str | None = None
    entry_id: int | None = None
    checksum: str | None = None
    size: int | None = None
    previous_checksum: str | None = None
    previous_size: int | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None


_NUMBERS = ("id", "entry_id", "size", "previous_size")
_named_events = json_rows(
    "rows",
    **{name: int if name in _NUMBERS else str for name in _NamedEvent._fields},
)
_INSERT_NAMED = Statement(
    insert(events).from_select(
        ["at", "kind", *_named_events.c.keys()],
        select(bindparam("now"), bindparam("kind"), *_named_events.c),
    )
)


class _LastRefusal(NamedTuple):
    id: int
    checksum: str
    previous_checksum: str


_of_owner = and_(names_owner(events), text(f"({ABOUT_OWNERS})"))
_LAST_REFUSAL = Statement(
    select(events.c.id, events.c.checksum, events.c.previous_checksum)
    .where(
        _of_owner,
        events.c.kind == literal_column("'refused'"),
        *(events.c[name] == bindparam(name) for name in _KEY_NAMES),
    )
    .order_by(events.c.id.desc())
    .limit(1),
    _LastRefusal,
)
_LEFT_SINCE = Statement(
    select(events.c.id)
    .where(
        _of_owner,
        one_of(events.c.kind, "detached", "expired", "superseded"),
        events.c.id > bindparam("refusal_id"),
    )
    .limit(1)
)
_removed = events.alias("removed")
_ids_of_key = union_all(
    select(entries.c.id).where(*(entries.c[name] == bindparam(name) for name in _KEY_NAMES)),
    select(entries.c.id).where(
        entries.c.base_slug == bindparam("slug"),
        *(entries.c[name] == bindparam(name) for name in ("suffix", "filename")),
    ),
    select(_removed.c.entry_id).where(
        *(_removed.c[name] == bindparam(name) for name in _KEY_NAMES),
        _removed.c.kind == literal_column("'removed'"),
        _removed.c.id > bindparam("refusal_id"),
    ),
)
_CHANGED_SINCE = Statement(
    select(events.c.id)
    .select_from(events.join(owners, owners.c.id == events.c.owner_id))
    .where(
        names_owner(owners),
        events.c.id > bindparam("refusal_id"),
        events.c.entry_id.in_(_ids_of_key),
    )
    .limit(1)
)


def write_events(conn: Connection, now: int, rows: Sequence[EventRow]) -> None:
    """Append events. The rows that they name by id must still be there."""
    groups: dict[_Said, list[tuple[object, ...]]] = {}
    for row in rows:
        groups.setdefault(row[4:], []).append(row[:4])
    if len(rows) < ALIKE_MIN * len(groups):
        conn.run(_INSERT, now=now, rows=as_rows(rows))
        return
    for said, alike in groups.items():
        conn.run(_INSERT_ALIKE, now=now, rows=as_rows(alike), **dict(zip(_SAID, said, strict=True)))


class Refusal(NamedTuple):
    """A key that an owner was refused, with the offered and the registered checksum (S2)."""

    owner: Owner
    key: ArtifactKey
    entry_id: int
    offered: str
    offered_size: int | None
    registered: str
    registered_size: int
    reason: str
    actor: str | None
    request_id: str | None


def write_refusals(
    conn: Connection, now: int, last_event_id: int, refusals: Sequence[Refusal]
) -> None:
    """Append `refused` events, without those that only repeat the last word on their key (S2).

    Who left in between, and comes again with the same, repeats nothing.
    """
    rows: list[_NamedEvent] = []
    for refusal in refusals:
        if not _is_repeat(conn, refusal):
            rows.append(
                _NamedEvent(
                    id=last_event_id + len(rows) + 1,
                    **parameters_of(refusal.owner),
                    **_key_of(refusal),
                    entry_id=refusal.entry_id,
                    checksum=refusal.offered,
                    size=refusal.offered_size,
                    previous_checksum=refusal.registered,
                    previous_size=refusal.registered_size,
                    reason=refusal.reason,
                    actor=refusal.actor,
                    request_id=refusal.request_id,
                )
            )
    if rows:
        conn.run(_INSERT_NAMED, now=now, kind="refused", rows=as_rows(rows))


def _key_of(refusal: Refusal) -> dict[str, str]:
    key = refusal.key
    return {"slug": key.slug, "suffix": key.suffix, "filename": key.filename}


def _is_repeat(conn: Connection, refusal: Refusal) -> bool:
    """Whether the last word on an owner's key is a refusal of the same."""
    who, key = parameters_of(refusal.owner), _key_of(refusal)
    for last in conn.run(_LAST_REFUSAL, **who, **key):
        if (last.checksum, last.previous_checksum) != (refusal.offered, refusal.registered):
            return False
        left = conn.run(_LEFT_SINCE, refusal_id=last.id, **who)
        return not left and not conn.run(_CHANGED_SINCE, refusal_id=last.id, **who, **key)
    return False


class Unresolved(NamedTuple):
    """An owner and a key that it was refused."""

    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    slug: str
    suffix: str
    filename: str


UNRESOLVED = """v.kind = 'refused'
        AND NOT EXISTS (
            SELECT 1 FROM events s
            WHERE s.namespace = v.namespace AND s.component = v.component
                AND s.endpoint = v.endpoint AND s.instance_id = v.instance_id
                AND s.lora_slug = v.lora_slug AND (s.slug IS NULL OR s.kind = 'refused')
                AND s.id > v.id
                AND (s.kind IN ('detached', 'expired', 'superseded')
                    OR s.kind = 'refused' AND s.slug = v.slug
                        AND s.suffix = v.suffix AND s.filename = v.filename))
        AND NOT EXISTS (
            SELECT 1 FROM owners o JOIN events s ON s.owner_id = o.id
            WHERE o.namespace = v.namespace AND o.component = v.component
                AND o.endpoint = v.endpoint AND o.instance_id = v.instance_id
                AND o.lora_slug = v.lora_slug
                AND s.id > v.id AND s.kind IN ('registered', 'replaced')
                AND s.entry_id IN (
                    SELECT e.id FROM entries e
                    WHERE e.slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
                    UNION ALL
                    SELECT e.id FROM entries e
                    WHERE e.base_slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
                    UNION ALL
                    SELECT g.entry_id FROM events g
                    WHERE g.slug = v.slug AND g.suffix = v.suffix AND g.filename = v.filename
                        AND g.kind = 'removed' AND g.id > v.id))"""
"""Of an event `v`: it is a refusal, and its owner has neither left since, nor got the key or the
same file of a revision, nor was it refused the key again."""

_FIND_UNRESOLVED = f"""
    SELECT {", ".join("v." + name for name in _NAMES)}
    FROM events v
    WHERE v.at > :since AND {UNRESOLVED}
"""


def find_unresolved(conn: Connection, now: int) -> set[Unresolved]:
    """The owners and keys that were refused within the last hour, and neither
    succeeded nor left since: the conflicts that the view `leaks` shows."""
    rows = conn.run_text(_FIND_UNRESOLVED, {"since": now - CONFLICT_MS})
    return set(map(Unresolved._make, rows))


def write_departure(
    conn: Connection,
    now: int,
    last_event_id: int,
    who: Identity,
    actor: str | None,
    request_id: str | None,
) -> None:
    """Append that somebody who was refused, and holds nothing, leaves.

    It never came in, so that it is put down as `attached` as well: who plays the journal back
    finds nobody leaving who was not there.
    """
    for step, (kind, reason) in enumerate((("attached", "refused"), ("detached", "unregistered"))):
        row = _NamedEvent(
            id=last_event_id + 1 + step,
            **who._asdict(),
            reason=reason,
            actor=actor,
            request_id=request_id,
        )
        conn.run(_INSERT_NAMED, now=now, kind=kind, rows=as_rows([row]))


class Uploaded(NamedTuple):
    """Content that came in, and who sent it."""

    checksum: str
    size: int
    is_new: bool
    actor: str | None
    request_id: str | None


def write_uploads(conn: Connection, now: int, uploads: Sequence[Uploaded]) -> None:
    """Append `uploaded` events; of content that was here already they say `again`."""
    if uploads:
        last_event_id = conn.last_ids().get("events", 0)
        rows = [
            _NamedEvent(
                id=last_event_id + number,
                checksum=upload.checksum,
                size=upload.size,
                reason=None if upload.is_new else "again",
                actor=upload.actor,
                request_id=upload.request_id,
            )
            for number, upload in enumerate(uploads, 1)
        ]
        conn.run(_INSERT_NAMED, now=now, kind="uploaded", rows=as_rows(rows))


_INSERT_SERVICE_EVENT = Statement(
    insert(events).values(
        id=bindparam("event_id"),
        at=bindparam("now"),
        kind=bindparam("kind"),
        reason=bindparam("reason"),
    )
)


def write_service_event(conn: Connection, now: int, kind: str, reason: str) -> None:
    """Append an event of the service itself, about no owner and no entry."""
    event_id = conn.last_ids().get("events", 0) + 1
    conn.run(_INSERT_SERVICE_EVENT, event_id=event_id, now=now, kind=kind, reason=reason)
