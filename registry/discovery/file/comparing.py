"""What changed in a directory from one look to the next, and whether it happened there.

A record that is gone from the directory in which it was, was removed or has lapsed. When that
directory is itself gone, or is another one, or when nobody looked for so long that publishers which
were held up with this process look dead, then that says nothing about who published it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from registry.discovery import Listed
from registry.discovery.file.listing import DirectoryLook, Place

GAP_S = 5.0
"""Publishers touch their records every 3.3 s, and these lapse after 10 s."""

K = TypeVar("K")
V = TypeVar("V")
C = TypeVar("C")


class Comparison(Generic[K, V, C]):
    """Compares each look at some directories with the one before.

    Args:
        change: makes what is told: of a key, the value that is there now or None, and whether that
            was found after a gap.
        find_value: what a file holds, or None: it is no record.
    """

    def __init__(
        self, change: Callable[[K, V | None, bool], C], find_value: Callable[[K, bytes], V | None]
    ) -> None:
        self._change = change
        self._find_value = find_value
        self._known: dict[str, dict[K, V]] = {}
        self._places: dict[str, Place | None] = {}
        self._looked_at: float | None = None

    def compare(self, looks: Mapping[str, DirectoryLook[K]]) -> Iterator[C | Listed]:
        """What is new or gone since the last look, directory by directory; `Listed` after the first
        look, and after each that follows a gap."""
        now = time.time()
        is_first = self._looked_at is None
        is_late = not is_first and abs(now - (self._looked_at or 0)) > GAP_S
        self._looked_at = now
        is_listed = is_first or is_late
        for name in self._known.keys() | looks.keys():
            look = looks.get(name) or DirectoryLook(None, None, {})
            has_moved = self._has_moved(name, look)
            is_listed |= has_moved
            yield from self._differences(name, look, is_late or has_moved)
        if is_listed:
            yield Listed()

    def _has_moved(self, name: str, look: DirectoryLook[K]) -> bool:
        """Whether what was seen is not what was there in the same directory."""
        if name not in self._places and look.after is None:
            return False
        is_new = name not in self._places
        before, self._places[name] = self._places.get(name), look.after
        if is_new or before is None:
            return not is_new and look.after is not None
        places = (look.before, look.after)
        if any(place is None or place.number != before.number for place in places):
            return True
        is_bare = not (self._known.get(name, {}).keys() & look.files.keys())
        return is_bare and any(place != before for place in places)

    def _differences(self, name: str, look: DirectoryLook[K], is_relisted: bool) -> Iterator[C]:
        before = self._known.get(name, {})
        read = {key: self._find_value(key, content) for key, content in look.files.items()}
        now = {key: value for key, value in read.items() if value is not None}
        self._known[name] = now
        for key in before.keys() - now.keys():
            yield self._change(key, None, is_relisted)
        changed = [key for key, value in now.items() if before.get(key) != value]
        # By name: a base model comes before its LoRAs.
        for key in sorted(changed, key=str):
            yield self._change(key, now[key], is_relisted)
