"""Answers that no task is needed for: those that are there, and those that only a look-up is
waited for. An application takes twice the time that all the rest of a small answer takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from registry.server.http import Headers
from registry.server.http1.config import (
    Answer,
    AskedChange,
    AtOnce,
    Config,
    Response,
    Soon,
    Take,
)
from registry.server.http1.ending import EndingConnection
from registry.server.http1.part import Part
from registry.server.http1.watch import Watch

log = logging.getLogger("registry.http")


class Awaited:
    """A request that no task was begun for. It stands where uvicorn has a request's cycle, so that
    what comes behind it waits."""

    __slots__ = (
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "response_complete",
        "url",
    )

    response_started = False

    def __init__(self, url: bytes, headers: Headers) -> None:
        self.url = url
        self.headers = headers
        self.disconnected = self.response_complete = False
        self.more_body = self.keep_alive = True

    @property
    def message_event(self) -> Awaited:
        """Whom uvicorn tells that something has come."""
        return self

    def set(self) -> None:
        """Nobody waits for it."""

    @property
    def scope(self) -> dict[str, Any]:
        """As far as somebody asks before there is a cycle."""
        return {"headers": self.headers}


class LookedUp(Awaited):
    """A request whose answer is looked up."""

    __slots__ = ("soon",)

    def __init__(self, url: bytes, headers: Headers, soon: Soon) -> None:
        super().__init__(url, headers)
        self.soon = soon


class Called(Awaited):
    """A request whose body is waited for, and then what it asks for."""

    __slots__ = ("_begin", "body")

    def __init__(self, url: bytes, headers: Headers, begin: Callable[[Called], None]) -> None:
        super().__init__(url, headers)
        self._begin: Callable[[Called], None] | None = begin
        self.body = bytearray()

    def set(self) -> None:
        """Begin when all has come."""
        if self._begin is not None and not self.more_body and not self.disconnected:
            begin, self._begin = self._begin, None
            begin(self)


class PlainHead:
    """What a parser says of a head that a `LookedUp` is made for."""

    def get_http_version(self) -> str:
        """The version of HTTP."""
        return "1.1"

    def get_method(self) -> bytes:
        """The method."""
        return b"GET"

    def should_keep_alive(self) -> bool:
        """Whether other requests may come behind it."""
        return True

    def should_upgrade(self) -> bool:
        """Whether another protocol is asked for."""
        return False


class EarlyConnection(EndingConnection):
    """A connection, as far as answers need no task."""

    config: Config
    _answering: Any
    _at_once: AtOnce | None
    _begun: int
    _take: Take
    _is_answered: bool
    _is_read: bool
    _is_own_host: bool
    _watch: Watch

    def _answer_early(self, at_once: AtOnce) -> bool:
        """Answer what needs no task: no scope is made, and no timer is set (see `look`)."""
        parser = self.parser
        if (
            not self._is_own_host
            or not self._is_free()
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
        ):
            return False
        method = parser.get_method()
        if method != b"GET":
            asked = self._take(method, self.url, self.headers, self.app_state)
            if asked is not None:
                begin = partial(self._begin_change, asked)
                called: Any = Called(self.url, self.headers, begin)
                self.cycle = self._answering = called
                self._part = Part.BODY
            return asked is not None
        answer = at_once(self.url, self.headers, self.app_state)
        if answer is None:
            return False
        self._give(answer, self.url, self.headers)
        self._is_answered = self._is_idle
        self._is_read = True
        return True

    def _answer_known(self, url: bytes, headers: Headers) -> bool:
        """Answer a whole request that was not parsed, since the same one was before. No other may
        have begun."""
        if self._at_once is None or not self._is_free():
            return False
        try:
            answer = self._at_once(url, headers, self.app_state)
        except Exception:
            return False  # It fails again when the head is parsed, and that is answered.
        if answer is None:
            return False
        self._give(answer, url, headers)
        self._begun += 1
        if not self._is_idle:
            self.on_message_complete()
        return True

    def _is_free(self) -> bool:
        """Whether an answer may be written now: nothing is in front of it."""
        cycle = self.cycle
        return (
            (cycle is None or cycle.response_complete)
            and not self.pipeline
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _give(self, answer: Answer | Soon, url: bytes, headers: Headers) -> None:
        """Answer a GET now, or as soon as it is looked up."""
        if not isinstance(answer, tuple):
            self._await(LookedUp(url, list(headers), answer))
            return
        lines, content = answer
        self.transport.write(self._watch.head(self.server_state.default_headers) + lines + content)
        self.server_state.total_requests += 1
        self._answered += 1
        self._is_idle = True

    def _begin_change(self, asked: AskedChange, called: Called) -> None:
        """Have a change made, now that all of the request is there."""
        task: Any = self.loop.create_task(asked.answer(called.body))
        self.tasks.add(task)  # Who stops the service waits for these, and cancels what is left.
        task.add_done_callback(partial(self._changed, asked, called))

    def _changed(self, asked: AskedChange, called: Called, task: asyncio.Task[Response]) -> None:
        """A change was made or refused. It is told of when its caller has the answer."""
        self.tasks.discard(task)
        called.response_complete = True
        try:
            self._answer_change(called, task)
        except Exception:
            log.exception("a change could not be answered")
            self.transport.close()  # Nobody waits for an answer that never comes.
        try:
            asked.tell()
        except Exception:
            log.exception("a change could not be counted")

    def _answer_change(self, called: Called, task: asyncio.Task[Response]) -> None:
        if called.disconnected or self.transport.is_closing() or task.cancelled():
            self.transport.close()
            return
        status, headers, content = task.result()
        head = self._watch.head(self.server_state.default_headers, status)
        end = b"\r\n" if called.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(head + headers + end + content)
        if not called.keep_alive:
            self.transport.close()
        self._go_idle()

    def _await(self, awaited: Any) -> None:
        """Answer later. Only then it shows whether a task is needed."""
        self.cycle = self._answering = awaited
        self._part = Part.BODY
        self._is_idle = self.expect_100_continue = False
        coming: Any = awaited.soon.coming
        self.tasks.add(coming)  # Who stops the service waits for these, and cancels what is left.
        coming.add_done_callback(partial(self._came, awaited))

    def _came(self, awaited: LookedUp, coming: Any) -> None:
        """What was looked up for an answer is there."""
        self.tasks.discard(coming)
        if awaited.disconnected or self.transport.is_closing():
            awaited.response_complete = True
            if not coming.cancelled():
                coming.exception()  # It is told to nobody, and that is right.
            return
        answer = None
        if awaited.keep_alive and not awaited.more_body and not self.flow.write_paused:
            with suppress(Exception):  # The application meets with it again, and answers that.
                answer = awaited.soon.answer()
        if answer is None:
            self._call_after_all(awaited)
            return
        awaited.response_complete = True
        self.transport.write(
            self._watch.head(self.server_state.default_headers) + answer[0] + answer[1]
        )
        self._go_idle()

    def _go_idle(self) -> None:
        """An answer was given. Unless something waits behind it, no timer is set (see `look`)."""
        if (
            self._part is Part.BETWEEN
            and not self.pipeline
            and not self._held
            and not self._is_half_closed
            and self._refusal is None
            and not self.transport.is_closing()
        ):
            self.server_state.total_requests += 1
            self._answered += 1
            self._is_idle = True
        else:
            self.on_response_complete()

    def _call_after_all(self, awaited: LookedUp) -> None:
        """Give a request to the application as if its head had just been parsed. What was parsed
        since waits behind it."""
        latest: Any = self.cycle
        kept = self.parser, self.scope, self.url, self.headers, self.expect_100_continue
        self.parser, self.cycle = PlainHead(), None  # type: ignore[assignment]
        super().on_message_begin()
        self.url, self.scope["headers"] = awaited.url, awaited.headers
        self.scope["soon"] = awaited.soon  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        self.cycle.more_body, self.cycle.keep_alive = awaited.more_body, awaited.keep_alive
        self.parser, self.scope, self.url, self.headers, self.expect_100_continue = kept
        if latest is not awaited:
            self.cycle = latest
