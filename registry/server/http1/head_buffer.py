"""Writing the head and the body of an answer at once, which uvicorn does one after the other."""

from __future__ import annotations

import asyncio

CONTINUE = b"HTTP/1.1 100 "
"""How an answer begins that comes before the head."""


class HeadBuffer:
    """A transport that holds the head of an answer back until its body comes: both leave together,
    in one packet and one call of the system."""

    # It does not know the answer that it is for: two that know each other, and all that was asked,
    # would stay in memory until the garbage collector comes by.
    __slots__ = ("_head", "_transport", "written_bytes")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.written_bytes = 0

    def write(self, data: bytes) -> None:
        self.written_bytes += len(data)
        if self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        elif self._head is None and not data.startswith(CONTINUE):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Let a head go that no body follows."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
