"""Connections that keep a deadline, whatever is at the other end.

The HTTP library bounds each silence: an answer that drips, or steps that follow each other, may
take for ever. Here every step of the blocking client gets what is left until the deadline of its
call: looking up the name, each address of it, the handshake, each part sent and received. The
asyncio client is cancelled at its deadline; what no cancelling would stop, looking up names, is in
a thread that nobody waits for.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import Any

import httpcore2
import httpx2

from registry.network.async_connections import AsyncBackend
from registry.network.connections import Backend
from registry.network.environment import find_proxy, trust

CONNECTIONS_MAX = 100
IDLE_MAX = 20
IDLE_S = 5.0


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

    def __init__(self, ca_file: str | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` takes the place of `ca_file`, for whoever has a certificate of their own."""
        self._ca_file = ca_file
        self._tls = tls
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
        kind, options = _pool_options(origin, self._ca_file, self._tls)
        pool: httpcore2.ConnectionPool = _POOLS[kind][0](network_backend=Backend(), **options)
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
            way = _AsyncDirect(_POOLS[kind][1](network_backend=AsyncBackend(), **options))
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


def _pool_options(
    origin: str, ca_file: str | None, tls: ssl.SSLContext | None = None
) -> tuple[str, dict[str, Any]]:
    """Which kind of pool an origin needs, and what it is made with."""
    proxy = find_proxy(origin)
    # A context without authorities believes nobody: it costs nothing, and is used for nothing.
    context = (tls or trust(ca_file)) if origin.startswith("https:") else _nobody()
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
