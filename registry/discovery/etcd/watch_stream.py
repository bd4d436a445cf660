"""The lines of a watch, each within its time, until it is broken off from elsewhere."""

from __future__ import annotations

import socket
from contextlib import suppress

import httpx2
import msgspec

from registry.discovery.etcd.failures import EndpointFailed, EtcdRefusal, TooMuchAnswered
from registry.discovery.etcd.messages import WatchLine, WatchResult
from registry.network.deadline import at_most, seconds_left

LINE_MAX_BYTES = 32 << 20
"""What comes in one line is held whole. etcd splits what is larger than its largest request."""

_decoder = msgspec.json.Decoder(WatchLine, strict=False)


class WatchStream:
    """A watch that etcd answers."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.iter_raw()
        self._stream = response.extensions.get("network_stream")
        self._buffer = bytearray()

    def find_next(self, within_s: float) -> WatchResult | None:
        """The next message, or None: there was none within this time. The watch is over then.

        Raises:
            EndpointFailed: it was broken off, or what came is no message.
            EtcdRefusal: etcd ended it.
            TooMuchAnswered: a message is too large.
        """
        try:
            with at_most(within_s):
                line = self._read_line()
        except (httpx2.TimeoutException, TimeoutError):
            return None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise EndpointFailed(f"its watch ended: {error}") from None
        try:
            message = _decoder.decode(line)
        except (ValueError, RecursionError):
            raise EndpointFailed("its watch tells what no etcd does") from None
        if message.error is not None:
            raise EtcdRefusal(message.error)
        if message.result is None:
            raise EndpointFailed("its watch tells what no etcd does")
        return message.result

    def _read_line(self) -> bytes:
        looked_at = 0
        while (end := self._buffer.find(b"\n", looked_at)) < 0:
            looked_at = len(self._buffer)
            if looked_at > LINE_MAX_BYTES:
                raise TooMuchAnswered(f"its watch tells more than {LINE_MAX_BYTES} bytes at once")
            seconds_left(None)
            chunk = next(self._chunks, b"")
            if not chunk:
                raise EndpointFailed("its watch ended")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def interrupt(self) -> None:
        """Break it off, from whichever thread: who waits for the next message waits no more."""
        sock = self._stream.get_extra_info("socket") if self._stream is not None else None
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                # Not the method of a TLS socket: that would take away what another thread is in.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
