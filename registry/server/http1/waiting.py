"""Who keeps the service waiting for too long is cut off: a look once a second, without timers."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from registry import errors
from registry.server.http1.head_buffer import HeadBuffer
from registry.server.http1.part import Part
from registry.server.http1.watch import LINGER_S, Limits

BODY_MIN_BYTES_PER_S = 16 << 10


class WaitingConnection(HttpToolsProtocol):
    """What a connection waits for, and how long it may."""

    _limits: Limits
    _head_buffer: HeadBuffer | None
    _answered: int
    _begun: int
    _is_idle: bool
    _part: Part
    _lingers: bool
    _body_bytes: int
    _phase: tuple[object, ...] = ()
    _phase_since = 0.0
    _phase_body_bytes = 0

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
            return ("reader", self._answered, self._taken_bytes()), timeout_s
        if self.timeout_keep_alive_task is not None:
            return ("request",), None
        if self._is_idle:
            return ("request", self._answered), self.timeout_keep_alive
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            return ("head", self._begun), timeout_s
        if not cycle.more_body or self.flow.read_paused:
            return ("service",), None
        if cycle.response_complete:
            return ("unwanted body", self._begun), timeout_s
        came = self._body_bytes - self._phase_body_bytes
        return ("body", self._begun), timeout_s + came / BODY_MIN_BYTES_PER_S

    def _taken_bytes(self) -> int:
        """What the reader has taken of an answer: a number that grows while it takes anything."""
        written = 0 if self._head_buffer is None else self._head_buffer.written_bytes
        return written - self.transport.get_write_buffer_size()

    def _cut_off(self) -> None:
        match self._phase[0]:
            case "reader" | "goodbye":
                self.transport.abort()
            case "body":
                self._refuse(errors.RequestTimeout())
            case "head" if self._part is Part.HEAD:
                self._refuse(errors.RequestTimeout())
            case _:
                self.transport.close()

    def _refuse(self, error: errors.RegistryError) -> None:
        raise NotImplementedError
