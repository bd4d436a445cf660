"""Values in words: sizes, times, counts, states, and what an event means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from registry.core.events import Event
from registry.core.findings import Finding
from registry.core.listings import OwnerRecord
from registry.core.records import Owner
from registry.core.times import format_time, parse_time
from registry.store.reads.bounded import UpTo
from registry.store.reads.stats import SUSPECT

_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: int) -> str:
    """Bytes in units of a thousand, as the commands show them."""
    amount, unit = float(count), 0
    while amount >= 999.95 and unit < len(_UNITS) - 1:
        amount /= 1000
        unit += 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def number(count: int) -> str:
    """A number with its thousands apart."""
    return f"{count:,}"


def up_to(count: UpTo) -> str:
    """A count, and whether there may be more."""
    return number(count.count) if count.is_all else f"{number(count.count)} or more"


def moment(at: int) -> str:
    """A time to the second, in UTC."""
    return f"{format_time(at)[:19].replace('T', ' ')} UTC"


def time_of(text: str) -> int:
    """A time as findings spell it, in milliseconds."""
    return parse_time(text)


def detail_of(finding: Finding) -> str:
    """What is wrong. Whom to tell is left out: beside it is what to do."""
    return finding.detail.removesuffix(": tell the owner").removesuffix(": tell the holders")


def clock_time(at: int) -> str:
    """The time of day, in UTC."""
    return format_time(at)[11:16]


def span(milliseconds: int) -> str:
    """How long something takes, in its two largest units: `2 h 5 min`."""
    rest = max(0, milliseconds) // 1000
    parts = []
    for seconds, unit in _SPANS:
        if rest >= seconds:
            parts.append(f"{rest // seconds} {unit}")
            rest %= seconds
    return " ".join(parts[:2]) or "less than 1 s"


def ago(at: int, now: int) -> str:
    """How long something is ago, or in which time it will be."""
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def short(checksum: str) -> str:
    """The beginning of a checksum."""
    return checksum[:19]


def state_of(owner: OwnerRecord, now: int) -> str:
    """An owner's state; `suspect` where it is active and its lease has lapsed."""
    lapsed = owner.lease is not None and owner.lease.expires_at <= now
    return SUSPECT if lapsed and owner.state == "active" else str(owner.state)


def lease_of(owner: OwnerRecord, now: int) -> str:
    """What is to be said of an owner's lease."""
    if owner.ended_at is not None:
        return "ended"
    if owner.lease is None:
        return "none: until it is unregistered"
    lapse = "lapsed" if owner.lease.expires_at <= now else "lapses"
    return f"{lapse} {ago(owner.lease.expires_at, now)}"


_REMOVED = {
    "unregistered": "its last holder detached",
    "expired": "the lease of its last holder lapsed, and the grace was over",
    "administrator": "an administrator dropped the model",
    "drain deadline": "its last holder drained, and did not detach in time",
}
_SAID = {
    "attached": "registered as an owner",
    "drained": "announced that it will detach",
    "detached": "detached",
    "expired": "ended: its lease lapsed, and the grace was over",
    "superseded": "ended: a newer instance took its place",
    "uploaded": "content came in",
    "created": "a key that nobody held was registered",
    "registered": "holds the file from now on",
    "replaced": "registered other content; it was the only holder",
    "refused": "was refused: others hold the key with other content",
    "released": "let go of the file",
    "removed": "the file is gone",
    "drifted": "the file in place holds other bytes than were registered",
    "missing": "the file in place is gone or cannot be read",
    "restored": "the bytes are right again",
    "expiry_paused": "the brake engaged: too many owners lapsed together",
    "expiry_resumed": "the brake was released",
    "upgraded": "the schema or the program changed",
}


def meaning(event: Event) -> str:
    """An event in words."""
    said = _SAID.get(event.kind, event.kind)
    reason = event.reason
    if event.kind == "removed" and reason is not None:
        return f"{said}: {_REMOVED.get(reason, reason)}"
    return (
        said if reason is None or reason in (event.kind, "unregistered") else f"{said} ({reason})"
    )


def owners_of(events: Iterable[Event]) -> list[Owner]:
    """The owners that events name."""
    return [event.owner for event in events if event.owner is not None]


HELPERS: tuple[Callable[..., Any], ...] = (
    *(
        size,
        number,
        up_to,
        moment,
        time_of,
        detail_of,
        clock_time,
        span,
        ago,
        short,
        state_of,
        lease_of,
        meaning,
    ),
)
"""What templates may call."""
