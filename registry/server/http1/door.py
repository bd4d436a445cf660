"""Where connections come in.

With TLS a connection is one from its first moment, not only when its handshake is done: whoever
connects and says nothing, or drips, counts, and is cut off in time. So the service accepts these
itself. Where nothing is left to accept with, it pauses instead of trying without end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from registry.server.http1.config import Config
    from registry.server.http1.protocol import HttpConnection

ACCEPTED_AT_ONCE = 64
PAUSE_S = 0.5
GOODBYE_S = 2.0
"""How long a peer may take to answer the end of TLS."""

log = logging.getLogger("registry.http")


class Server(uvicorn.Server):
    """uvicorn's server, with a door of ours for connections with TLS."""

    config: Config

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            if self.config.ssl is None:
                server = await loop.create_server(
                    self._make_connection, sock=listener, backlog=self.config.backlog
                )
                self.servers.append(server)
            else:
                door = Door(self.config, self.config.ssl, listener, self._make_connection)
                self.servers.append(door)  # type: ignore[arg-type]

    def _make_connection(self) -> HttpConnection:
        made: HttpConnection = self.config.http_protocol_class(  # type: ignore[call-arg, assignment]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


class Door:
    """Takes in connections with TLS, for the event loop that it is made in."""

    def __init__(
        self,
        config: Config,
        context: ssl.SSLContext,
        listener: socket.socket,
        make_connection: Callable[[], HttpConnection],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._context = context
        self._listener = listener
        self._make_connection = make_connection
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Take nobody in any more; who has not finished a handshake is let go."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until nobody is between outside and inside."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                peer, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            peer.setblocking(False)
            connection = self._make_connection()
            if not self._config.watch.greet(connection):
                peer.close()  # There is nothing that could be said before a handshake.
                continue
            task = self._loop.create_task(self._shake_hands(peer, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, peer: socket.socket, connection: HttpConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                peer,
                ssl=self._context,
                ssl_handshake_timeout=self._config.limits.timeout_s,
                ssl_shutdown_timeout=GOODBYE_S,
            )
        except (OSError, MemoryError) as error:  # ssl.SSLError is one.
            log.debug("a handshake failed: %s", error)
            peer.close()
        finally:
            self._config.watch.leave(connection)

    def _pause(self, error: OSError) -> None:
        """Leave peers where they wait for a moment: trying at once would fail at once."""
        log.error(
            "no connection can be taken in: %s. %s",
            error.strerror,
            "Raise the limit of open files (ulimit -n), or lower max_connections"
            if error.errno in (errno.EMFILE, errno.ENFILE)
            else "Trying again",
        )
        self._loop.remove_reader(self._listener)
        self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)
