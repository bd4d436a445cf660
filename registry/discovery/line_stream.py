"""An answer that goes on and on, line by line, until it is broken off from elsewhere."""

from __future__ import annotations

import socket
from contextlib import suppress

import httpx2

from registry.network.deadline import at_most, seconds_left


class StreamEnded(Exception):
    """Nothing comes any more."""


class LineTooLong(Exception):
    """A line has more bytes than are held."""


class LineStream:
    """The lines of an answer, each within its time."""

    def __init__(self, response: httpx2.Response, line_max_bytes: int) -> None:
        self._chunks = response.iter_raw()
        self._stream = response.extensions.get("network_stream")
        self._line_max_bytes = line_max_bytes
        self._buffer = bytearray()

    def find_line(self, within_s: float) -> bytes | None:
        """The next line, or None: there was none within this time. The stream is over then.

        Raises:
            StreamEnded: it was broken off.
            LineTooLong: nothing more can be read.
        """
        try:
            with at_most(within_s):
                return self._read_line()
        except (httpx2.TimeoutException, TimeoutError):
            return None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise StreamEnded(str(error)) from None

    def _read_line(self) -> bytes:
        looked_at = 0
        while (end := self._buffer.find(b"\n", looked_at)) < 0:
            looked_at = len(self._buffer)
            if looked_at > self._line_max_bytes:
                raise LineTooLong(f"its watch tells more than {self._line_max_bytes} bytes at once")
            seconds_left(None)
            chunk = next(self._chunks, b"")
            if not chunk:
                raise StreamEnded("")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def interrupt(self) -> None:
        """Break it off, from whichever thread: who waits for the next line waits no more."""
        sock = self._stream.get_extra_info("socket") if self._stream is not None else None
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                # Not the method of a TLS socket: that would take away what another thread is in.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
