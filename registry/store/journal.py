"""The append-only journal: every change writes its events in its own transaction (S14).

Operations collect `EventRow`s and write them in one statement while the rows that they speak of
are there: events name owners and keys by value, taken from those rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import (
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

from registry.core.records import Owner
from registry.store.sqlite.engine import Connection, Statement, as_rows, json_rows, one_of
from registry.store.tables import ABOUT_OWNERS, entries, events, owners
from registry.store.views import UNRESOLVED

CONFLICT_MS = 3_600_000
"""How long a refusal is a conflict that somebody should look at; the view `leaks` has the same."""

ALIKE_MIN = 32
"""From so many events on, of which the same is said, that is not repeated for each of them."""


class EventRow(NamedTuple):
    """One event of an operation, by the ids of the owner and the entry that it is about.

    The journal takes their names, and the entry's checksum, from their rows.
    """

    id: int
    kind: str
    owner_id: int | None
    entry_id: int | None
    previous_checksum: str | None = None
    reason: str | None = None
    actor: str | None = None
    request_id: str | None = None


_NAMES = (
    *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
    *("slug", "suffix", "filename"),
)
_SAID = ("previous_checksum", "reason", "actor", "request_id")


def _insert(rows: Subquery, said: Iterable[ColumnElement[str]]) -> Statement:
    """Insert events of rows, and what is said of each."""
    return Statement(
        insert(events).from_select(
            ["id", "kind", "owner_id", "entry_id", "at", *_NAMES, "checksum", *_SAID],
            select(
                *(rows.c[name] for name in ("id", "kind", "owner_id", "entry_id")),
                bindparam("now"),
                *(owners.c[name] for name in _NAMES[:5]),
                *(entries.c[name] for name in _NAMES[5:]),
                entries.c.checksum,
                *said,
            ).select_from(
                rows.outerjoin(owners, owners.c.id == rows.c.owner_id).outerjoin(
                    entries, entries.c.id == rows.c.entry_id
                )
            ),
        )
    )


_rows = json_rows("rows", id=int, kind=str, owner_id=int, entry_id=int, **dict.fromkeys(_SAID, str))
_INSERT = _insert(_rows, [_rows.c[name] for name in _SAID])
_INSERT_ALIKE = _insert(
    json_rows("rows", id=int, kind=str, owner_id=int, entry_id=int),
    [bindparam(name, type_=Text) for name in _SAID],
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
    entry_id=int,
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

_of_owner = and_(
    *(events.c[name] == bindparam(name) for name in _NAMES[:5]), text(f"({ABOUT_OWNERS})")
)
_LAST_REFUSAL = Statement(
    select(events.c.id, events.c.checksum, events.c.previous_checksum)
    .where(
        _of_owner,
        events.c.kind == literal_column("'refused'"),
        *(events.c[name] == bindparam(name) for name in _NAMES[5:]),
    )
    .order_by(events.c.id.desc())
    .limit(1)
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
    select(entries.c.id).where(*(entries.c[name] == bindparam(name) for name in _NAMES[5:])),
    select(_removed.c.entry_id).where(
        *(_removed.c[name] == bindparam(name) for name in _NAMES[5:]),
        _removed.c.kind == literal_column("'removed'"),
        _removed.c.id > bindparam("refusal_id"),
    ),
)
_CHANGED_SINCE = Statement(
    select(events.c.id)
    .select_from(events.join(owners, owners.c.id == events.c.owner_id))
    .where(
        *(owners.c[name] == bindparam(name) for name in _NAMES[:5]),
        events.c.id > bindparam("refusal_id"),
        events.c.entry_id.in_(_ids_of_key),
    )
    .limit(1)
)


def write_events(conn: Connection, now: int, rows: Sequence[EventRow]) -> None:
    """Append events. The rows that they name by id must still be there."""
    groups: dict[tuple[str | None, ...], list[tuple[object, ...]]] = {}
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
    slug: str
    suffix: str
    filename: str
    entry_id: int
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
        if not _is_repeat(conn, refusal, about):
            event_id = last_event_id + len(rows) + 1
            rows.append((event_id, *who, *key, *refusal[4:]))
    if rows:
        conn.run(_INSERT_REFUSALS, now=now, kind="refused", rows=as_rows(rows))


def _is_repeat(conn: Connection, refusal: Refusal, about: Mapping[str, str]) -> bool:
    """Whether the last word on an owner's key is a refusal of the same."""
    last = conn.run(_LAST_REFUSAL, **about)
    if not last or last[0][1:] != (refusal.offered, refusal.registered):
        return False
    since = {"refusal_id": last[0][0]}
    left = conn.run(_LEFT_SINCE, **since, **{name: about[name] for name in _NAMES[:5]})
    return not left and not conn.run(_CHANGED_SINCE, **since, **about)


_FIND_UNRESOLVED = f"""
    SELECT {", ".join("v." + name for name in _NAMES)}
    FROM events v
    WHERE v.at > :since AND {UNRESOLVED}
"""


def find_unresolved(conn: Connection, now: int) -> set[tuple[str, ...]]:
    """The owners and keys (eight names each) that were refused within the last hour, and neither
    succeeded nor left since: the conflicts that the view `leaks` shows."""
    return set(conn.run_text(_FIND_UNRESOLVED, {"since": now - CONFLICT_MS}))


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
        row = (last_event_id + 1 + step, *who, *[None] * 6, reason, actor, request_id)
        conn.run(_INSERT_REFUSALS, now=now, kind=kind, rows=as_rows([row]))


_INSERT_SERVICE_EVENT = Statement(
    insert(events).values(at=bindparam("now"), kind=bindparam("kind"), reason=bindparam("reason"))
)


def write_service_event(conn: Connection, now: int, kind: str, reason: str) -> None:
    """Append an event of the service itself, about no owner and no entry."""
    conn.run(_INSERT_SERVICE_EVENT, now=now, kind=kind, reason=reason)
