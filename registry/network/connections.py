"""The blocking connections: every step of one gets what is left until the deadline of its call."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore2

from registry.network.connection_errors import raising
from registry.network.deadline import seconds_left
from registry.network.name_lookup import begin_lookup, is_address

SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)
"""What the library says an option of a socket is."""


class _SocketStream(httpcore2.NetworkStream):
    """A socket as the library uses it, in plain text or with TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with raising(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._sock.settimeout(seconds_left(timeout))
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with raising(httpcore2.WriteTimeout, httpcore2.WriteError):
            rest = memoryview(buffer)
            while rest:
                self._sock.settimeout(seconds_left(timeout))
                rest = rest[self._sock.send(rest) :]

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        with raising(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            try:
                if isinstance(self._sock, ssl.SSLSocket):
                    return _TlsInTls(self._sock, ssl_context, server_hostname, timeout)
                self._sock.settimeout(seconds_left(timeout))
                return _SocketStream(
                    ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
                )
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        if info == "socket":
            return self._sock
        if info == "client_addr":
            return self._sock.getsockname()
        if info == "server_addr":
            return self._sock.getpeername()
        if info == "is_readable":
            return _is_readable(self._sock)
        return None


class _TlsInTls(_SocketStream):
    """TLS to a service through a proxy that is spoken to over TLS."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        context: ssl.SSLContext,
        hostname: str | None,
        timeout: float | None,
    ) -> None:
        super().__init__(sock)
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=hostname)
        self._do(self._tls.do_handshake, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with raising(httpcore2.ReadTimeout, httpcore2.ReadError):
            content: bytes = self._do(lambda: self._tls.read(max_bytes), timeout)
            return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with raising(httpcore2.WriteTimeout, httpcore2.WriteError):
            self._do(lambda: self._tls.write(buffer), timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._tls if info == "ssl_object" else super().get_extra_info(info)

    def _do(self, step: Callable[[], Any], timeout: float | None) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._send(timeout)
                part = super().read(1 << 14, timeout)
                self._came.write(part) if part else self._came.write_eof()
                continue
            self._send(timeout)
            return result

    def _send(self, timeout: float | None) -> None:
        super().write(self._goes.read(), timeout)


def _is_readable(sock: socket.socket) -> bool:
    """Whether something came, or the end, that nobody has read."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Backend(httpcore2.NetworkBackend):
    """Opens connections to one address of a host after the other."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        with raising(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            ends = time.monotonic() + seconds_left(timeout)
            addresses = [host]
            if not is_address(host):
                addresses = begin_lookup(host, port).result(ends - time.monotonic())
            return _SocketStream(_connected(addresses, port, ends))


def _connected(addresses: Sequence[str], port: int, ends: float) -> socket.socket:
    """A connection to the first address that takes one; each has its share of the time."""
    failure: OSError = OSError("the name has no address")
    for number, address in enumerate(addresses):
        share_s = (ends - time.monotonic()) / (len(addresses) - number)
        if share_s <= 0:
            raise TimeoutError("the deadline is over")
        try:
            sock = socket.create_connection((address, port), share_s)
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    raise failure
