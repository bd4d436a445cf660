"""How a connection ends: once all is answered, or with a problem that its peer can still read."""

from __future__ import annotations

from typing import Any

from registry import errors
from registry.server.http import request_id_for
from registry.server.http1.config import Flow, Refused
from registry.server.http1.part import Part
from registry.server.http1.refusals import raw_answer
from registry.server.http1.waiting import WaitingConnection


class EndingConnection(WaitingConnection):
    """A connection, from when its last answer is known."""

    flow: Flow
    _held: bytes
    _is_half_closed: bool
    _refusal: errors.RegistryError | None
    _refused: Refused | None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: what was asked is answered to a peer that has shut
        its own side. With TLS, which has no such state, it does not."""
        self._is_half_closed = True
        if self.scheme != "http" or self._lingers or self.transport.is_closing():
            return False
        self._finish()
        return not self.transport.is_closing()

    def _finish(self) -> None:
        """End a connection on which nothing more comes, once all is answered."""
        if not self._is_half_closed or self._refusal is not None or self.transport.is_closing():
            return
        if self._held or self.pipeline:
            return
        answered = self.cycle is None or self.cycle.response_complete
        if self._part is Part.HEAD or (self._part is Part.BODY and not answered):
            self._refuse(errors.Malformed("The connection ended before the request was complete."))
        elif answered:
            self._end()

    def _refuse(self, error: errors.RegistryError) -> None:
        """Take no more from this connection; answer what was asked before, then this, and close."""
        if self._refusal is not None:
            return
        self._refusal = error
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
            self._end(None if started else error)

    def _end(self, refusal: errors.RegistryError | None = None) -> None:
        """Say what is wrong, if anything, and close when the peer has had time to read it."""
        if self.transport.is_closing():
            return
        if self._head_buffer is not None:
            self._head_buffer.flush()
        self._unset_keepalive_if_required()
        if refusal is not None:
            self._say(refusal)
        if refusal is None or self._is_half_closed or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._lingers = True
        self.flow.held = False
        self.flow.resume_reading()

    def _request_id(self) -> str:
        """The id of the request that is being parsed."""
        if self._part is Part.BODY:
            scope: Any = self.cycle.scope
            return scope.get("request_id") or request_id_for(scope["headers"])
        return request_id_for(self.headers if self._part is Part.HEAD else [])

    def _say(self, error: errors.RegistryError) -> None:
        """Answer with a problem, where no application does."""
        request_id = self._request_id()
        is_head = bool(self.url) and self.parser.get_method() == b"HEAD"
        status, answer = raw_answer(
            error, request_id, self.server_state.default_headers, with_body=not is_head
        )
        self.transport.write(answer)
        if self._refused is not None:
            self._refused(error, status, request_id)
