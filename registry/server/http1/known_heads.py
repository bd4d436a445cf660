"""Heads that came before, byte for byte, so that they need not be parsed again.

A client asks for a file with the same bytes each time, and clients of one kind with the same as one
another. To parse them takes a third of the time that a small answer takes beside the kernel's.
"""

from __future__ import annotations

from array import array

from registry.server.http import Headers

HEAD_BYTES = 1 << 10
"""A longer head is not remembered."""
KNOWN_BYTES = 8 << 20
"""Memory for all that are remembered."""

END = b"\r\n\r\n"
_HEADER_BYTES = 160
"""About what a header takes beside its letters; the head itself takes as much as three of them."""
_SLOTS = 1 << 14

Head = tuple[bytes, Headers]
"""What a parser says of one: the target, and the headers."""


class KnownHeads(dict[bytes, Head]):
    """Heads of plain reads by all of their bytes. Put them in with `learn` only."""

    def __init__(self) -> None:
        super().__init__()
        self.used_bytes = 0
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
        size = 2 * len(data) + _HEADER_BYTES * (3 + len(headers))
        if self.used_bytes + size > KNOWN_BYTES:
            self.clear()
            self.used_bytes = 0
        self.used_bytes += size
        self[data] = target, headers
