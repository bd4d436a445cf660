"""Connections within limits, below the application: what a peer can make the service hold or wait.

uvicorn and httptools bound neither the head of a request, nor the requests that are pipelined,
nor how long any of it takes. Here a head is bounded in bytes and in headers, at most 4 KiB of a
connection are parsed ahead of the request that is being answered, and once a second every
connection is looked at: whoever keeps the service waiting for too long is cut off. What the
limits cost a request that keeps to them is next to nothing, and no timer is set for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from registry import errors
from registry.server.http import problem
from registry.server.http1.head_buffer import Corked

HEADERS_MAX = 128
SLICE_BYTES = 4 << 10
BODY_MIN_BYTES_PER_S = 16 << 10
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 60.0
"""How often the log says that connections are refused, at most."""
LEAVING_MAX = 8
LINGER_S = 2.0
"""How long what a refused peer still sends is taken in, so that it can read why it was refused."""


log = logging.getLogger("registry.http")

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process bears. `timeout_s` is for each of: a head, a body (which may take a second
    longer for every 16 KiB that came), and a reader that takes nothing."""

    max_connections: int
    max_header_bytes: int
    timeout_s: float


class Config(uvicorn.Config):
    """uvicorn's configuration, with limits. It travels to worker processes."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        super().__init__(app, http=Connection, **options)
        self.limits = limits
        self._watch: Watch | None = None

    @property
    def watch(self) -> Watch:
        """Who looks after the connections of this process."""
        if self._watch is None:
            self._watch = Watch(self.limits)
        return self._watch


class Watch:
    """Counts the connections of an event loop, and looks at each once a second."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connections: set[Connection] = set()
        self._greeted: set[Connection] = set()
        """Those whose handshake is not done."""
        self._leaving: deque[asyncio.Transport] = deque(maxlen=LEAVING_MAX)
        self._refused = 0
        self._told_at = float("-inf")
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

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, if there is room for it. Who was greeted has its room already."""
        if connection in self._greeted:
            self._greeted.discard(connection)
        elif not self._has_room(connection.loop):
            return False
        self._connections.add(connection)
        if self._timer is None:
            self._plan(connection.loop)
        return True

    def greet(self, connection: Connection) -> bool:
        """Give a connection room while its handshake goes on, until `leave` or `admit`."""
        if not self._has_room(connection.loop):
            return False
        self._greeted.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
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

    def forget(self, connection: Connection) -> None:
        """A connection is over."""
        self._connections.discard(connection)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        pause_s = min(LOOK_EVERY_S, self.limits.timeout_s / 2)
        self._timer = loop.call_later(pause_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(self._connections):
            connection.look(now)
        if self._connections:
            self._plan(loop)


class Flow(FlowControl):
    """Reading stays paused while bytes are held back."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


Content = bytes | bytearray
AtOnce = Callable[[bytes, Headers, Mapping[str, Any]], tuple[bytes, Content] | None]
"""What an application may have beside itself: for the target, the headers and the state of a GET,
the headers and the bytes of a 200 that takes no waiting. None: the application is to be called."""


class Connection(HttpToolsProtocol):
    """One connection, from its first byte to its last."""

    config: Config
    flow: Flow

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = self.config.watch
        self._limits = self.config.limits
        self._at_once: AtOnce | None = getattr(self.app, "at_once", None)
        self._unframed_bytes = 0
        """Fed to the parser since it last told of a head, a part of a body or an end."""
        self._held = b""
        """Received, but not parsed before the requests in front of it are answered."""
        self._answering: RequestResponseCycle | None = None
        self._corked: Corked | None = None
        self._answered = 0
        self._is_idle = False
        """Whether the last request was answered at once, and no other has begun."""
        self._is_answered = False
        """Whether the request that is being parsed was answered at its head."""
        self._refusal: bytes | None = None
        self._lingers = False
        self._body_bytes = 0
        self._phase: tuple[object, ...] = ()
        self._phase_since = 0.0
        self._phase_body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self._watch.admit(self):
            self.transport = transport
            transport.write(_TOO_MANY_CONNECTIONS)
            self._refusal, self._lingers = b"", True
            self._watch.see_off(transport)
            return
        super().connection_made(transport)
        self.flow = Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.forget(self)
        self._held = b""
        if self._answering is not None:
            # uvicorn tells the request that came last, which may wait behind this one.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    # What comes in

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        if self.pipeline or self._held:
            self._hold(self._held + data)
            return
        answered = self._answered
        for start in range(0, len(data), SLICE_BYTES):
            self._feed(data[start : start + SLICE_BYTES])
            if self._refusal is not None or self.transport.is_closing():
                return
            if self.pipeline or self._answered != answered:
                rest = data[start + SLICE_BYTES :]
                self._hold(rest)
                if rest and not self.pipeline:
                    self.loop.call_soon(self._go_on)  # Others have their turn first.
                return

    def _go_on(self) -> None:
        """Parse what was held back, when its turn has come."""
        if not self._held or self.pipeline or self.transport.is_closing():
            return
        held, self._held, self.flow.held = self._held, b"", False
        self.data_received(held)
        self.flow.resume_reading()

    def _hold(self, data: bytes) -> None:
        """Keep what came until the requests in front of it are answered."""
        self._held = data
        self.flow.held = bool(data)
        if data:
            self.flow.pause_reading()

    def _feed(self, data: bytes) -> None:
        self._unframed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is spoken here: what follows is HTTP/1.1 as before.
            self._feed(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            known = isinstance(cause, errors.HeadersTooLarge)
            self._refuse(cause if known else errors.Malformed())  # type: ignore[arg-type]
        else:
            if self._unframed_bytes > self._limits.max_header_bytes or (
                self.headers is not None and len(self.headers) > HEADERS_MAX
            ):
                self._refuse(errors.HeadersTooLarge())

    def on_message_begin(self) -> None:
        # The scope is made when the application is called, which it mostly is not.
        self._is_idle = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._unframed_bytes = 0
        if len(self.headers) > HEADERS_MAX:
            raise errors.HeadersTooLarge
        if self._at_once is not None and self._answer_at_once(self._at_once):
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()

    def _answer_at_once(self, at_once: AtOnce) -> bool:
        """Answer what takes no waiting: no task, no scope, and no timer (see `look`)."""
        parser, cycle = self.parser, self.cycle
        if (
            (cycle is not None and not cycle.response_complete)
            or self.pipeline
            or self.flow.write_paused
            or self.transport.is_closing()
            or parser.get_method() != b"GET"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
        ):
            return False
        answer = at_once(self.url, self.headers, self.app_state)
        if answer is None:
            return False
        headers, content = answer
        self.transport.write(
            self._watch.head(self.server_state.default_headers) + headers + content
        )
        self.server_state.total_requests += 1
        self._answered += 1
        self._is_answered = self._is_idle = True
        return True

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._corked = cycle.transport = Corked(self.transport, cycle)
        task = self.loop.create_task(self._answer(cycle, app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unframed_bytes = 0
        if self._is_answered:
            self._is_answered = False
        else:
            super().on_message_complete()

    async def _answer(self, cycle: RequestResponseCycle, app: Any) -> None:
        # The connection may have broken with the answer before; this is told a moment later.
        cycle.disconnected = cycle.disconnected or self.transport.is_closing()
        self._answering = cycle
        await cycle.run_asgi(app)

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        self._answered += 1
        if self._corked is not None:
            self._corked.flush()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            if was_last:
                self._end(self._refusal)
        elif self._held:
            self.loop.call_soon(self._go_on)

    # Refusing

    def _refuse(self, error: errors.RegistryError) -> None:
        """Take no more from this connection; answer what was asked before, then this, and close."""
        if self._refusal is not None:
            return
        self._refusal = _raw_answer(error)
        self._held = b""
        self.flow.held = True
        self.flow.pause_reading()
        cycle = self.cycle
        if self.pipeline:
            if cycle.more_body:
                self.pipeline.popleft()  # It came in part, and was not begun.
        elif cycle is None or cycle.response_complete:
            self._end(self._refusal)
        elif cycle.more_body:
            started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            self._end(b"" if started else self._refusal)

    def _end(self, last_words: bytes) -> None:
        """Say the last words, and close when the peer has had time to read them."""
        if self.transport.is_closing():
            return
        if self._corked is not None:
            self._corked.flush()
        self._unset_keepalive_if_required()
        if not last_words or not self.transport.can_write_eof():
            self.transport.write(last_words)
            self.transport.close()
            return
        self.transport.write(last_words)
        self.transport.write_eof()
        self._lingers = True
        self.flow.held = False
        self.flow.resume_reading()

    # Waiting

    def look(self, now: float) -> None:
        """Cut the connection off if the service waits for its peer for too long."""
        phase, limit_s = self._waits_for()
        if phase != self._phase:
            self._phase, self._phase_since = phase, now
            self._phase_body_bytes = self._body_bytes
        elif limit_s is not None and now - self._phase_since > limit_s:
            self._cut_off()

    def _waits_for(self) -> tuple[tuple[object, ...], float | None]:
        """What the service waits for, and how long it may at most."""
        cycle, timeout_s = self.cycle, self._limits.timeout_s
        if self.transport.is_closing():
            # What was answered leaves first. Then, with TLS, the peer should say goodbye as well.
            unsent_bytes = self.transport.get_write_buffer_size()
            return ("goodbye", unsent_bytes), timeout_s if unsent_bytes else LINGER_S
        if self._lingers:
            return ("end",), LINGER_S
        if self.flow.write_paused:
            return ("reader", self.transport.get_write_buffer_size()), timeout_s
        if self.timeout_keep_alive_task is not None:
            return ("request",), None
        if self._is_idle:
            return ("request", self._answered), self.timeout_keep_alive
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            return ("head", id(cycle)), timeout_s
        if not cycle.more_body or self.flow.read_paused:
            return ("service",), None
        if cycle.response_complete:
            return ("unwanted body", id(cycle)), timeout_s
        came = self._body_bytes - self._phase_body_bytes
        return ("body", id(cycle)), timeout_s + came / BODY_MIN_BYTES_PER_S

    def _cut_off(self) -> None:
        match self._phase[0]:
            case "reader" | "goodbye":
                self.transport.abort()
            case "body":
                self._refuse(errors.RequestTimeout())
            case "head" if self._unframed_bytes:
                self._refuse(errors.RequestTimeout())
            case _:
                self.transport.close()


def _raw_answer(error: errors.RegistryError) -> bytes:
    """A problem as it is sent where no application is asked."""
    response = problem(error)
    lines = [b"HTTP/1.1 %d" % response.status_code]
    lines += [name + b": " + value for name, value in response.raw_headers]
    lines += [b"connection: close", b"", bytes(response.body)]
    return b"\r\n".join(lines)


_TOO_MANY_CONNECTIONS = _raw_answer(
    errors.Busy(
        "This service has as many connections open as it bears (max_connections). Try again "
        "shortly."
    )
)
