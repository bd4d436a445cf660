"""Peers that speak as no HTTP server should: they get the raw connection of each caller."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

Behaviour = Callable[[socket.socket], None]

DRIP_S = 0.05


class Peer:
    """Listens on a port of this host, and lets `behave` have each connection in a thread."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.ended = threading.Event()
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # The caller hangs up when it has enough.
        with connection, suppress(OSError):
            self.behave(connection)

    def drip(self, connection: socket.socket, content: bytes) -> None:
        """Send the same few bytes again and again, for ever."""
        while not self.ended.wait(DRIP_S):
            connection.sendall(content)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def read_request(connection: socket.socket) -> bytes:
    """The head of a request and what of its body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the caller hung up")
        data += part
    return data


def answering(answer: Callable[[str], bytes]) -> Behaviour:
    """Answers every request with what `answer` says of its target, head and all."""

    def behave(connection: socket.socket) -> None:
        while True:
            target = read_request(connection).split(b" ", 2)[1].decode()
            connection.sendall(answer(target))

    return behave


def json_answer(body: bytes, status: int = 200, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def elapsed(work: Callable[[], object]) -> float:
    """How long something took."""
    started = time.monotonic()
    work()
    return time.monotonic() - started
