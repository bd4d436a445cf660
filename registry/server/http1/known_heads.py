"""Heads that came before, byte for byte, so that they need not be parsed again.

A client asks for a file with the same bytes each time, and clients of one kind with the same as one
another.
"""

from __future__ import annotations

from array import array

from registry.core.memo import Memo
from registry.server.http import Headers

HEAD_BYTES = 1 << 10
"""A longer head is not remembered."""
KNOWN_BYTES = 8 << 20
"""Memory for all that are remembered."""

END = b"\r\n\r\n"
_SLOTS = 1 << 14

Head = tuple[bytes, Headers]
"""What a parser says of one: the target, and the headers."""


class KnownHeads(Memo[bytes, Head]):
    """Heads of plain reads by all of their bytes. Put them in with `learn` only."""

    def __init__(self) -> None:
        super().__init__(KNOWN_BYTES)
        self._met = array("q", bytes(8 * _SLOTS))
        """Of the heads that were met last, their hashes."""

    def learn(self, data: bytes, target: bytes, headers: Headers) -> None:
        """Remember what was received if it is one whole head, and was met before: most of those
        that have a number of their own never come again."""
        met = hash(data)
        slot = met % _SLOTS
        if self._met[slot] != met:
            self._met[slot] = met
            return
        # A whole URL as the target may be ours on one connection, and not on another.
        if data.find(END) != len(data) - len(END) or not data.startswith(b"GET /"):
            return
        parts = [part for header in headers for part in (header, *header)]
        self.keep(data, (target, headers), target, headers, *parts)
