"""What a connection is made with: limits, flow control, and what an application offers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl

from registry import errors
from registry.server.http import Headers
from registry.server.http1.known_heads import KnownHeads
from registry.server.http1.watch import Limits, Watch

PROTOCOL = "registry.server.http1.protocol:HttpConnection"


class Config(uvicorn.Config):
    """uvicorn's configuration, with limits. It travels to worker processes."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        super().__init__(app, http=PROTOCOL, **options)
        self.limits = limits
        self._watch: Watch | None = None
        self.known_heads = KnownHeads()

    @property
    def watch(self) -> Watch:
        """Who looks after the connections of this process."""
        if self._watch is None:
            self._watch = Watch(self.limits)
        return self._watch


class Flow(FlowControl):
    """Reading stays paused while bytes are held back."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


Content = bytes | bytearray
Answer = tuple[bytes, Content]
"""The headers and the bytes of a 200."""


class Soon(Protocol):
    """An answer that waits for something. The application can be called for it as well, and finds
    this in its scope."""

    @property
    def coming(self) -> asyncio.Future[Any]:
        """What it waits for."""
        ...

    def answer(self) -> Answer | None:
        """The answer, once that has come. None: the application is to be called."""
        ...


AtOnce = Callable[[bytes, Headers, Mapping[str, Any]], Answer | Soon | None]
"""What an application may have beside itself: for the target, the headers and the state of a GET,
an answer that needs no call. None: the application is to be called."""


Response = tuple[int, bytes, bytes]
"""The status, the headers and the bytes of an answer."""


class AskedChange(Protocol):
    """A change that the head of a request asks for. It is made when the body has come."""

    def answer(self, body: bytearray) -> Coroutine[Any, Any, Response]:
        """Make it, and say what is answered. It does not raise."""
        ...

    def tell(self) -> None:
        """Count it and log it, when the answer is on its way."""
        ...


Take = Callable[[bytes, bytes, Headers, Mapping[str, Any]], AskedChange | None]
"""The same for the method, the target, the headers and the state of what is no GET."""

OwnsAuthority = Callable[[bytes, bytes, tuple[str, int | None] | None], bool]
"""What an application may have to be asked whether a target that is a whole URL is its own: the
URL, the host and port in it, and the address and port at which the request came in."""

Refused = Callable[[errors.RegistryError, int, str], None]
"""What an application may have to be told of an answer that it did not give: the problem, its
status and the request's id."""
