"""Connections within limits, below the application: what a peer can make the service hold or wait.

uvicorn and httptools bound neither the head of a request, nor the requests that are pipelined,
nor how long any of it takes. Here a head is bounded in bytes and in headers, at most 4 KiB of a
connection are parsed ahead of the request that is being answered, and once a second every
connection is looked at: whoever keeps the service waiting for too long is cut off. What the
limits cost a request that keeps to them is next to nothing, and no timer is set for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from registry import errors
from registry.server.hosts import TWO_HOSTS, target_of
from registry.server.http1.config import AtOnce, Config, Flow, OwnsAuthority, Refused, Take
from registry.server.http1.early import Awaited, EarlyConnection
from registry.server.http1.framing import framing_of, make_parser
from registry.server.http1.head_buffer import HeadBuffer
from registry.server.http1.known_heads import HEAD_BYTES
from registry.server.http1.part import Part
from registry.server.http1.refusals import TOO_MANY_CONNECTIONS, cause_of

HEADERS_MAX = 128
SLICE_BYTES = 4 << 10
_UNKNOWN: Any = object()


class HttpConnection(EarlyConnection):
    """One connection, from its first byte to its last."""

    # Past thirty attributes a dict is slow, and uvicorn has as many.
    __slots__ = (
        "_answered",
        "_answering",
        "_at_once",
        "_begun",
        "_body_bytes",
        "_foreign_url",
        "_framing",
        "_head_buffer",
        "_held",
        "_host",
        "_is_answered",
        "_is_half_closed",
        "_is_idle",
        "_is_own_host",
        "_is_read",
        "_is_told",
        "_known_heads",
        "_known_host",
        "_limits",
        "_lingers",
        "_owns",
        "_part",
        "_refusal",
        "_refused",
        "_take",
        "_takes",
        "_unframed_bytes",
        "_watch",
    )

    config: Config
    flow: Flow

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = self.config.watch
        self._known_heads = self.config.known_heads
        self._limits = self.config.limits
        self._at_once: AtOnce | None = getattr(self.app, "at_once", None)
        self._take: Take = getattr(self.app, "take", _takes_nothing)
        self._takes: Callable[[bytes], bool] | None = getattr(self.app, "takes_host", None)
        self._owns: OwnsAuthority | None = getattr(self.app, "owns_authority", None)
        self._refused: Refused | None = getattr(self.app, "refused", None)
        self.url = b""
        self._host: bytes | None = None
        """The Host of the request that is being parsed."""
        self._known_host: bytes = _UNKNOWN
        """The Host that was checked last, and was found to be one."""
        self._is_own_host = False
        """Whether requests for it are answered."""
        self._foreign_url: bytes | None = None
        """The target of the request that is being parsed, if it is a whole URL of another host."""
        self._unframed_bytes = 0
        """Fed to the parser since it last told of a head, a part of a body or an end."""
        self._held = b""
        """Received, but not parsed before the requests in front of it are answered."""
        self._answering: RequestResponseCycle | Awaited | None = None
        self._head_buffer: HeadBuffer | None = None
        self._answered = 0
        self._begun = 0
        """How many requests have begun."""
        self._is_idle = False
        """Whether the last request was answered at once, and no other has begun."""
        self._is_answered = False
        """Whether the request that is being parsed was answered at its head."""
        self._is_read = False
        """Whether the request that came last is a read that needed no application."""
        self._part = Part.BETWEEN
        """What is being parsed."""
        self._is_half_closed = False
        """Whether the peer has said that nothing more comes."""
        self._refusal: errors.RegistryError | None = None
        self._lingers = False
        self._framing: bytes | None = None
        """How the body ends that another parser is to read."""
        self._is_told = False
        """Whether the head that is being parsed was told of before."""
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self._watch.admit(self):
            self.transport = transport
            self._refusal, self._lingers = errors.Busy(TOO_MANY_CONNECTIONS), True
            self._say(self._refusal)
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
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        if self.pipeline or self._held:
            self._hold(self._held + data)
        elif len(data) <= HEAD_BYTES and self._part is Part.BETWEEN and not self._unframed_bytes:
            self._begin(data)
        elif len(data) <= SLICE_BYTES:
            self._feed(data)
        else:
            self._feed_in_slices(data)

    def _begin(self, data: bytes) -> None:
        """Take in what a request begins with, which may be all of it."""
        known = self._known_heads.get(data)
        if known is not None and self._answer_known(*known):
            return
        begun, self._is_read = self._begun, False
        self._feed(data)
        if self._is_read and self._begun == begun + 1 and known is None and self._refusal is None:
            self._known_heads.learn(data, self.url, self.headers)

    def _feed_in_slices(self, data: bytes) -> None:
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
        self._finish()

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
            if self._framing is not None:
                self._begin_body(self._framing)
            self._feed(data[upgrade.args[0] :])
        except (httptools.HttpParserError, MemoryError) as error:
            self._refuse(cause_of(error))
        else:
            if self._unframed_bytes > self._limits.max_header_bytes or (
                self.headers is not None and len(self.headers) > HEADERS_MAX
            ):
                self._refuse(errors.HeadersTooLarge())

    def _begin_body(self, framing: bytes) -> None:
        """Let another parser read on, behind a head that was told of already."""
        self._is_told, self._framing = True, None
        self.parser = make_parser(self)
        self.parser.feed_data(framing)
        self._is_told = False

    def on_url(self, url: bytes) -> None:
        if not self._is_told:
            self.url += url

    def on_message_begin(self) -> None:
        if self._is_told:
            return
        # The scope is made when the application is called, which it mostly is not.
        self._begun += 1
        self._part = Part.HEAD
        self._is_idle = False
        self._host = None
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_told:
            return
        name = name.lower()
        if name == b"host":
            self._host = value if self._host is None else TWO_HOSTS
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_told:
            return
        self._unframed_bytes = 0
        if len(self.headers) > HEADERS_MAX:
            raise errors.HeadersTooLarge
        if self._host != self._known_host or self.url[0] != _SLASH:
            self._check_target()
        if self._at_once is not None and self._answer_early(self._at_once):
            return
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise errors.Malformed
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        # What is parsed from here on are trailers, which are no headers (RFC 9110, 6.5.1): they
        # come past every proxy that looks at headers. Nobody is told of them.
        self.url, self.headers, self.expect_100_continue = url, [], expects
        self.scope["headers"] = headers
        if self._foreign_url is not None:
            self.scope["foreign_url"] = self._foreign_url  # type: ignore[typeddict-unknown-key]
        self._part = Part.BODY
        super().on_headers_complete()
        self._framing = framing_of(self.parser, headers)

    def _check_target(self) -> None:
        """See to it that a request says for whom it is, once and rightly (RFC 9112, 3.2)."""
        host, target, self._known_host = self._host, self.url, _UNKNOWN
        self._foreign_url = None
        self.url, named = target_of(target, host, self.parser.get_http_version())
        if named is not None:
            self.headers.append((b"host", named))
            if self._owns is not None and not self._owns(target, named, self.server):
                self._foreign_url = target
        elif host is not None:
            self._known_host = host
        hosts = [each for each in (host, named) if each is not None]
        self._is_own_host = self._foreign_url is None and (
            self._takes is None or all(map(self._takes, hosts))
        )

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._head_buffer = cycle.transport = HeadBuffer(self.transport)
        task = self.loop.create_task(self._answer(cycle, app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._framing is not None:
            return  # The parser has stopped at the end of the head.
        self._unframed_bytes = 0
        self._part = Part.BETWEEN
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
        if self._head_buffer is not None:
            self._head_buffer.flush()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            if was_last:
                self._end(self._refusal)
        elif self._held:
            self.loop.call_soon(self._go_on)
        else:
            self._finish()


def _takes_nothing(*_: object) -> None:
    """Of an application that has no short way."""


_SLASH = ord("/")
