"""Connections that keep a deadline, whatever is at the other end.

The HTTP library bounds each silence: an answer that drips, or steps that follow each other, may
take for ever. Here every step of the blocking client gets what is left until the deadline of its
call: looking up the name, each address of it, the handshake, each part sent and received. The
asyncio client is cancelled at its deadline; what no cancelling would stop, looking up names, is in
a thread that nobody waits for.
"""

from __future__ import annotations

import asyncio
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

from registry.client import aside
from registry.client.environment import find_proxy, trust

CONNECTIONS_MAX = 100
IDLE_MAX = 20
IDLE_S = 5.0

_SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Bounds everything that the block sends and receives without asyncio."""
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def _left(timeout: float | None) -> float:
    """How long a step may take. Raises TimeoutError when nothing is left."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline is over")
    return left if timeout is None else min(left, timeout)


@contextmanager
def _as(timed_out: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """What a step raises becomes what the HTTP library raises. A host name that cannot be one is
    a ValueError, also in the handshake."""
    try:
        yield
    except TimeoutError as error:
        raise timed_out(error) from error
    except (OSError, ValueError, OverflowError) as error:
        raise failed(error) from error


def _addresses(host: str, port: int) -> Callable[[], list[str]]:
    """Looks up a name; every address once, in the order of preference."""

    def look_up() -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))

    return look_up


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


class _Stream(httpcore2.NetworkStream):
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._sock.settimeout(_left(timeout))
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _as(httpcore2.WriteTimeout, httpcore2.WriteError):
            rest = memoryview(buffer)
            while rest:
                self._sock.settimeout(_left(timeout))
                rest = rest[self._sock.send(rest) :]

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            try:
                if isinstance(self._sock, ssl.SSLSocket):
                    return _TlsInTls(self._sock, ssl_context, server_hostname, timeout)
                self._sock.settimeout(_left(timeout))
                return _Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname))
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


class _TlsInTls(_Stream):
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
        with _as(httpcore2.ReadTimeout, httpcore2.ReadError):
            content: bytes = self._do(lambda: self._tls.read(max_bytes), timeout)
            return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _as(httpcore2.WriteTimeout, httpcore2.WriteError):
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


class _Backend(httpcore2.NetworkBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            ends = time.monotonic() + _left(timeout)
            addresses = [host]
            if not _is_address(host):
                addresses = _begun(_addresses(host, port)).result(ends - time.monotonic())
            return _Stream(_connected(addresses, port, ends))


def _begun(work: Callable[[], list[str]]) -> Any:
    try:
        return aside.begin(work, "registry-names")
    except RuntimeError as error:
        raise OSError(f"no thread can be started to look up a name: {error}") from error


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


class _AsyncStream(httpcore2.AsyncNetworkStream):
    """The library's stream, which leaves its socket open when its handshake is cancelled."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.read, self.write = stream.read, stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except ValueError as error:
            await self._stream.aclose()
            raise httpcore2.ConnectError(error) from error
        except BaseException:
            await self._stream.aclose()
            raise


class _AsyncBackend(httpcore2.AnyIOBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        ends = time.monotonic() + (math.inf if timeout is None else timeout)
        if not 0 < port < 1 << 16:
            raise httpcore2.ConnectError(f"{port} is no port")
        addresses = [host]
        if not _is_address(host):
            with _as(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                async with asyncio.timeout(timeout):
                    addresses = await asyncio.wrap_future(_begun(_addresses(host, port)))
        failure: Exception = httpcore2.ConnectError("the name has no address")
        for number, address in enumerate(addresses):
            share_s = max(0.0, ends - time.monotonic()) / (len(addresses) - number)
            try:
                return _AsyncStream(
                    await super().connect_tcp(address, port, share_s, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Direct(httpx2.HTTPTransport):
    """The library's transport over a pool of ours."""

    def __init__(self, pool: httpcore2.ConnectionPool) -> None:
        self._pool = pool


class _AsyncDirect(httpx2.AsyncHTTPTransport):
    def __init__(self, pool: httpcore2.AsyncConnectionPool) -> None:
        self._pool = pool


class Transport(httpx2.BaseTransport):
    """Sends each request the way that the environment says, and keeps the deadline of `at_most`.

    Raises:
        SettingsError: proxy or certificates cannot be used; only for a request that needs them.
    """

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file
        self._ways: dict[str, _Direct] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        origin = _origin(request.url)
        way = self._ways.get(origin)
        if way is None:
            with self._lock:
                way = self._ways.get(origin) or _Direct(self._pool(origin))
                self._ways[origin] = way
        return way.handle_request(request)

    def close(self) -> None:
        for way in self._ways.values():
            way.close()

    def _pool(self, origin: str) -> httpcore2.ConnectionPool:
        kind, options = _pool_options(origin, self._ca_file)
        pool: httpcore2.ConnectionPool = _POOLS[kind][0](network_backend=_Backend(), **options)
        return pool


class AsyncTransport(httpx2.AsyncBaseTransport):
    """As `Transport`, for asyncio, where cancelling keeps the deadline."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file
        self._ways: dict[str, _AsyncDirect] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        origin = _origin(request.url)
        way = self._ways.get(origin)
        if way is None:
            kind, options = _pool_options(origin, self._ca_file)
            way = _AsyncDirect(_POOLS[kind][1](network_backend=_AsyncBackend(), **options))
            self._ways[origin] = way
        return await way.handle_async_request(request)

    async def aclose(self) -> None:
        for way in self._ways.values():
            await way.aclose()


_POOLS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "direct": (httpcore2.ConnectionPool, httpcore2.AsyncConnectionPool),
    "http": (httpcore2.HTTPProxy, httpcore2.AsyncHTTPProxy),
    "socks": (httpcore2.SOCKSProxy, httpcore2.AsyncSOCKSProxy),
}


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _pool_options(origin: str, ca_file: str | None) -> tuple[str, dict[str, Any]]:
    """Which kind of pool an origin needs, and what it is made with."""
    proxy = find_proxy(origin)
    # A context without authorities believes nobody: it costs nothing, and is used for nothing.
    context = trust(ca_file) if origin.startswith("https:") else _nobody()
    options: dict[str, Any] = {
        "ssl_context": context,
        "max_connections": CONNECTIONS_MAX,
        "max_keepalive_connections": IDLE_MAX,
        "keepalive_expiry": IDLE_S,
    }
    if proxy is None:
        return "direct", options
    options |= {"proxy_url": proxy.url}
    if proxy.auth is not None:
        options["proxy_auth"] = tuple(part.encode() for part in proxy.auth)
    if proxy.url.startswith("socks"):
        return "socks", options
    if proxy.url.startswith("https:"):
        options["proxy_ssl_context"] = trust(ca_file)
    return "http", options


def _nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
