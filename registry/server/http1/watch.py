"""Who looks after the connections of a process: how many there are, and what each waits for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from registry.server.http import Headers

LOOK_EVERY_S = 1.0


class Watched(Protocol):
    """A connection."""

    loop: asyncio.AbstractEventLoop

    def look(self, now: float) -> None:
        """Cut the connection off if the service waits for its peer for too long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process bears. `timeout_s` is for each of: a head, a body (which may take a second
    longer for every 16 KiB that came), and a reader that takes nothing."""

    max_connections: int
    max_header_bytes: int
    timeout_s: float


class Watch:
    """Counts the connections of an event loop, and looks at each once a second."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connections: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._default_headers: Headers = []
        self._head = b""

    def head(self, default_headers: Headers) -> bytes:
        """The first lines of a 200, put together once for headers that change every second."""
        if default_headers is not self._default_headers:
            lines = [name + b": " + value + b"\r\n" for name, value in default_headers]
            self._default_headers = default_headers
            self._head = b"".join((b"HTTP/1.1 200 OK\r\n", *lines))
        return self._head

    def admit(self, connection: Watched) -> bool:
        """Take a connection in, if there is room for it."""
        if len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        if self._timer is None:
            self._plan(connection.loop)
        return True

    def forget(self, connection: Watched) -> None:
        """A connection is over."""
        self._connections.discard(connection)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        pause_s = min(LOOK_EVERY_S, self.limits.timeout_s / 2)
        self._timer = loop.call_later(pause_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._connections:
            self._plan(loop)
        now = loop.time()
        for connection in list(self._connections):
            connection.look(now)
