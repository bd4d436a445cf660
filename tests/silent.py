"""A TCP proxy that goes silent: connections stay, and nothing comes through any more."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

PART = 1 << 16


class SilentProxy:
    """Passes bytes between callers and a port of this host, as long as it is told to.

    With `silent_after`, nothing passes any more on a connection on which both were sent, the second
    last.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.keeps_newcomers = False
        self.silent_after: tuple[bytes, bytes] | None = None
        self.met = threading.Event()
        """Both were sent."""
        self._armed = set[socket.socket]()
        self._dead: set[socket.socket] = set()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._from_caller: set[socket.socket] = set()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def silence(self, *, newcomers: bool) -> None:
        """From now on nothing passes: on the connections that are there, and on new ones too."""
        self._dead |= set(self._peers)
        self.keeps_newcomers = newcomers

    def pass_newcomers(self) -> None:
        """New connections work again; the old ones stay as they are."""
        self.keeps_newcomers = False

    def _work(self) -> None:
        while True:
            for key, _ in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if one is self._woken:
                    return
                if one is self._listener:
                    self._take()
                elif one in self._peers:
                    self._pass(one)

    def _take(self) -> None:
        caller, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        if self.keeps_newcomers:
            self._dead |= {caller, server}
        self._from_caller.add(caller)
        self._peers |= {caller: server, server: caller}
        for each in (caller, server):
            self._selector.register(each, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        other = self._peers[one]
        try:
            part = one.recv(PART)
        except OSError:
            part = b""
        if not part:
            for each in (one, other):
                self._selector.unregister(each)
                self._peers.pop(each)
                each.close()
            return
        if one in self._dead:
            return
        with suppress(OSError):
            other.sendall(part)
        wanted = self.silent_after
        if wanted is None or one not in self._from_caller:
            return
        if wanted[0] in part:
            self._armed.add(one)
        if one in self._armed and wanted[1] in part:
            self._dead |= {one, other}
            self.silent_after = None
            self.met.set()

    def __enter__(self) -> SilentProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (*self._peers, self._listener, self._wake, self._woken):
            each.close()
        self._selector.close()
