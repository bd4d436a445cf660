"""Who looks after the connections of a process: how many there are, and what each waits for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from registry.server.http import Headers

LOOK_EVERY_S = 1.0
TELL_EVERY_S = 60.0
"""How often the log says that connections are refused, at most."""
LEAVING_MAX = 8
LINGER_S = 2.0
"""How long what a refused peer still sends is taken in, so that it can read why it was refused."""

log = logging.getLogger("registry.http")


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
        self._greeted: set[Watched] = set()
        """Those whose handshake is not done."""
        self._leaving: deque[asyncio.Transport] = deque(maxlen=LEAVING_MAX)
        self._refused = 0
        self._told_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._default_headers: Headers = []
        self._heads: dict[int, bytes] = {}
        """The first lines of answers, by their status."""

    def head(self, default_headers: Headers, status: int = 200) -> bytes:
        """The first lines of an answer, put together once for headers that change every second."""
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._heads = {}
        head = self._heads.get(status)
        if head is None:
            lines = [name + b": " + value + b"\r\n" for name, value in default_headers]
            first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
            head = self._heads[status] = b"".join((first, *lines))
        return head

    def admit(self, connection: Watched) -> bool:
        """Take a connection in, if there is room for it. Who was greeted has its room already."""
        if connection in self._greeted:
            self._greeted.discard(connection)
        elif not self._has_room(connection.loop):
            return False
        self._connections.add(connection)
        if self._timer is None:
            self._plan(connection.loop)
        return True

    def greet(self, connection: Watched) -> bool:
        """Give a connection room while its handshake goes on, until `leave` or `admit`."""
        if not self._has_room(connection.loop):
            return False
        self._greeted.add(connection)
        return True

    def leave(self, connection: Watched) -> None:
        """A handshake is over, or was given up."""
        self._greeted.discard(connection)

    def see_off(self, transport: asyncio.Transport) -> None:
        """Close a connection when its peer has had time to read why: closed with something unread
        it would be reset, and what was said be lost. Only the last few are waited for."""
        if not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        if len(self._leaving) == self._leaving.maxlen:
            self._leaving[0].close()
        self._leaving.append(transport)
        asyncio.get_running_loop().call_later(LINGER_S, transport.close)

    def _has_room(self, loop: asyncio.AbstractEventLoop) -> bool:
        if len(self._connections) + len(self._greeted) < self.limits.max_connections:
            return True
        self._refused += 1
        if loop.time() - self._told_at >= TELL_EVERY_S:
            log.warning(
                "%d connections are open, as many as this process bears, and %d were refused. "
                "Raise max_connections, and the limit of open files (ulimit -n) to twice as many",
                self.limits.max_connections,
                self._refused,
            )
            self._told_at, self._refused = loop.time(), 0
        return False

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
