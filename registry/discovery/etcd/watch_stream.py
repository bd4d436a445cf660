"""The messages of a watch, each within its time, until it is broken off from elsewhere."""

from __future__ import annotations

import httpx2
import msgspec

from registry.discovery.etcd.failures import EndpointFailed, EtcdRefusal, TooMuchAnswered
from registry.discovery.etcd.messages import WatchLine, WatchResult
from registry.discovery.line_stream import LineStream, LineTooLong, StreamEnded

LINE_MAX_BYTES = 32 << 20
"""What comes in one line is held whole. etcd splits what is larger than its largest request."""

_decoder = msgspec.json.Decoder(WatchLine, strict=False)


class WatchStream(LineStream):
    """A watch that etcd answers."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(response, LINE_MAX_BYTES)

    def find_next(self, within_s: float) -> WatchResult | None:
        """The next message, or None: there was none within this time. The watch is over then.

        Raises:
            EndpointFailed: it was broken off, or what came is no message.
            EtcdRefusal: etcd ended it.
            TooMuchAnswered: a message is too large.
        """
        try:
            line = self.find_line(within_s)
        except StreamEnded as error:
            raise EndpointFailed(f"its watch ended: {error}".removesuffix(": ")) from None
        except LineTooLong as error:
            raise TooMuchAnswered(str(error)) from None
        if line is None:
            return None
        try:
            message = _decoder.decode(line)
        except (ValueError, RecursionError):
            raise EndpointFailed("its watch tells what no etcd does") from None
        if message.error is not None:
            raise EtcdRefusal(message.error)
        if message.result is None:
            raise EndpointFailed("its watch tells what no etcd does")
        return message.result
