"""Content in memory, bounded: small files that are asked for often, large ones while they are sent.

Everything here is keyed by checksum and was hashed when it came in, so it can never be stale.
Whether an entry may be served at all is decided elsewhere, by its holders; a cached content makes
no entry serveable.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict

LARGE_BYTES = 1 << 20
"""Content above this is loaded only where the budget has room for it, and streamed otherwise."""


BODIES_MAX = 32_768
"""Contents in memory: each takes about a kilobyte beside its bytes, which may be few."""


class Body:
    """The bytes of one content. While it is pinned it stays in memory and in the budget."""

    __slots__ = ("__weakref__", "checksum", "content", "headers", "pins", "size")

    def __init__(self, checksum: str, content: bytes | bytearray) -> None:
        self.checksum = checksum
        self.content = content
        self.size = len(content)
        self.pins = 0
        self.headers: dict[str, bytes] = {}
        """Headers of answers by media type, kept here so that they go with the content."""


class ContentCache:
    """Least recently used content within a budget of bytes, for one event loop."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._bodies: OrderedDict[str, Body] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes held or reserved. What was pushed out counts until nobody has it any more."""
        return self._used_bytes

    def find(self, checksum: str) -> Body | None:
        """The content, or None if it is not in memory."""
        body = self._bodies.get(checksum)
        if body is not None:
            self._bodies.move_to_end(checksum)
        return body

    def reserve(self, size: int) -> bool:
        """Take room in the budget, at the cost of content that nobody is being sent."""
        if size > self.budget_bytes:
            return False  # Nothing is pushed out for what can have no room anyway.
        if self._used_bytes + size > self.budget_bytes:
            self._evict(self._used_bytes + size - self.budget_bytes)
        if self._used_bytes + size > self.budget_bytes:
            return False
        self._used_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give room back that was reserved and not filled, or whose content is gone."""
        self._used_bytes -= size

    def fill(self, checksum: str, content: bytes | bytearray) -> Body:
        """Keep content in room that was reserved for it."""
        body = Body(checksum, content)
        if checksum in self._bodies:
            self._used_bytes -= len(content)
            return self._bodies[checksum]
        if len(self._bodies) >= BODIES_MAX:
            self._evict(1)
        self._bodies[checksum] = body
        weakref.finalize(body, self.release, len(content)).atexit = False
        return body

    def clear(self) -> None:
        """Let go of everything that nobody is being sent: memory is short, whatever the budget."""
        self._evict(self._used_bytes)

    def _evict(self, needed: int) -> None:
        for checksum, body in list(self._bodies.items()):
            if needed <= 0:
                break
            if not body.pins:
                del self._bodies[checksum]
                needed -= len(body.content)
