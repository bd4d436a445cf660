"""The journal's events, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from registry.core.records import Owner


class EventKind(StrEnum):
    """What an event tells: of an owner, an owner ref, content, an entry, the service itself."""

    ATTACHED = "attached"
    DRAINED = "drained"
    DETACHED = "detached"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    REGISTERED = "registered"
    REPLACED = "replaced"
    REFUSED = "refused"
    RELEASED = "released"
    DRIFTED = "drifted"
    MISSING = "missing"
    RESTORED = "restored"
    UPLOADED = "uploaded"
    CREATED = "created"
    REMOVED = "removed"
    EXPIRY_PAUSED = "expiry_paused"
    EXPIRY_RESUMED = "expiry_resumed"
    UPGRADED = "upgraded"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal."""

    id: int
    at: int
    kind: str
    owner: Owner | None
    slug: str | None
    suffix: str | None
    filename: str | None
    checksum: str | None
    previous_checksum: str | None
    reason: str | None
    actor: str | None
    request_id: str | None
    size: int | None = None
    previous_size: int | None = None


class EventOrder(StrEnum):
    """Which events come first in a page of the journal."""

    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are asked for; None leaves it open."""

    owner: Owner | None = None
    slug: str | None = None
    kind: EventKind | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class EventPage:
    """A part of the journal. `next` is where the part behind it begins, None at the end.

    `last` is the id of the newest event of the whole journal, 0 if it is empty.
    """

    events: tuple[Event, ...]
    next: int | None
    last: int
