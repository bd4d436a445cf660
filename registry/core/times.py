"""Times: milliseconds since the epoch in UTC, and RFC 3339 text with milliseconds (S15)."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime


def format_time(at: int) -> str:
    """Milliseconds since the epoch as RFC 3339: `2026-01-31T12:00:00.000Z`."""
    seconds, milliseconds = divmod(at, 1000)
    return f"{_format_second(seconds)}.{milliseconds:03}Z"


@functools.lru_cache(maxsize=256)
def _format_second(seconds: int) -> str:
    moment = time.gmtime(seconds)
    return (
        f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}"
        f"T{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    )


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time."""
    moment = datetime.fromisoformat(text)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND


_MILLISECOND = datetime.resolution * 1000


def seconds_of(milliseconds: int) -> int | float:
    """Milliseconds as seconds, whole where they are whole."""
    whole, rest = divmod(milliseconds, 1000)
    return milliseconds / 1000 if rest else whole


_FAR_S = 10**12


def milliseconds_of(given_s: int | float) -> int:
    """Seconds that were given as milliseconds. What no limit admits is cut, so that it can be
    calculated with, whatever its number of digits."""
    return round(max(-_FAR_S, min(given_s, _FAR_S)) * 1000)


def time_or_none(at: int | None) -> str | None:
    return None if at is None else format_time(at)


def parse_time_or_none(text: str | None) -> int | None:
    return None if text is None else parse_time(text)
