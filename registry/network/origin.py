"""Downloads from hosts that cards name: direct, bounded, and believed for their checksum alone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextvars import ContextVar

import httpcore2
from blake3 import blake3

from registry.core.text import shown_url
from registry.errors import OriginUnavailable
from registry.network.async_connections import AsyncBackend
from registry.network.connections import SocketOption
from registry.network.environment import trust

CONNECTIONS_MAX = 64
DOWNLOAD_MAX_S = 20.0
STEP_MAX_S = 5.0
HEAD_MAX_BYTES = 32 << 10
READ_BYTES = 4 << 10
"""What is parsed in one go, so that nobody else waits for it."""

CRUMBS_MAX = 256
CRUMB_BYTES = 256
"""Past so many parts, the parts of a body have so many bytes on average: each costs as much time as
a large one."""

_HEADERS = [(b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"), (b"Connection", b"close")]


class _Allowance:
    """How many bytes may come yet, and how many at a time."""

    def __init__(self) -> None:
        self.left_bytes = HEAD_MAX_BYTES
        self.at_once = READ_BYTES


_allowance: ContextVar[_Allowance] = ContextVar("allowance")


class _MeteredStream(httpcore2.AsyncNetworkStream):
    """A stream of which no more is read than is allowed."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, allowance: _Allowance) -> None:
        self._stream = stream
        self._allowance = allowance
        self.write, self.aclose = stream.write, stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        allowance = self._allowance
        data = await self._stream.read(min(max_bytes, allowance.at_once), timeout)
        allowance.left_bytes -= len(data)
        if allowance.left_bytes < 0:
            raise httpcore2.RemoteProtocolError("it has more bytes than the file")
        await asyncio.sleep(0)  # Data that is there already would not let others have their turn.
        return data

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _MeteredStream(stream, self._allowance)


class _MeteredBackend(AsyncBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _MeteredStream(stream, _allowance.get())


class OriginClient:
    """Downloads for one event loop. Proxies of the environment are not used, since a frontend that
    sends its fetches through a proxy may have sent this one through us."""

    def __init__(self) -> None:
        self._pools: dict[bool, httpcore2.AsyncConnectionPool] = {}

    async def read(
        self, url: str, checksum: str, max_bytes: int, take: Callable[[int], None]
    ) -> bytes:
        """The bytes at a URL, which have this checksum. `take` is told how many came, as they come.

        Raises:
            OriginUnavailable: they cannot be had within 20 s, or something else is there.
        """
        try:
            async with asyncio.timeout(DOWNLOAD_MAX_S):
                return await self._read(url, checksum, max_bytes, take)
        except TimeoutError:
            why = f"it took longer than {DOWNLOAD_MAX_S:g} s"
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            why = f"it cannot be reached: {error}"
        except (httpcore2.TimeoutException, httpcore2.NetworkError) as error:
            why = f"it did not answer: {str(error) or type(error).__name__}"
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            why = f"its worker's answer is of no use: {error}"
        raise OriginUnavailable(f"{shown_url(url)} is not held here, and {why}.")

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()

    async def _read(
        self, url: str, checksum: str, max_bytes: int, take: Callable[[int], None]
    ) -> bytes:
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), STEP_MAX_S)
        pool = self._pool(is_tls=url[:6].lower() == "https:")
        content, hasher, parts = bytearray(), blake3(), 0
        allowance = _Allowance()
        _allowance.set(allowance)
        extensions = {"timeout": timeout}
        async with pool.stream("GET", url, headers=_HEADERS, extensions=extensions) as got:
            if got.status != 200:
                raise httpcore2.RemoteProtocolError(f"status {got.status}")
            allowance.left_bytes += max_bytes + max_bytes // 8
            async for part in got.aiter_stream():
                parts += 1
                content += part
                hasher.update(part)
                take(len(part))
                if len(content) > max_bytes:
                    raise httpcore2.RemoteProtocolError(f"more than {max_bytes} bytes")
                if parts > CRUMBS_MAX and len(content) < parts * CRUMB_BYTES:
                    raise httpcore2.RemoteProtocolError("a body in crumbs")
                if len(content) > 1 << 20:
                    allowance.at_once = 64 << 10
        if f"blake3:{hasher.hexdigest()}" != checksum:
            raise httpcore2.RemoteProtocolError("other bytes than its card says")
        return bytes(content)

    def _pool(self, *, is_tls: bool) -> httpcore2.AsyncConnectionPool:
        pool = self._pools.get(is_tls)
        if pool is None:
            pool = self._pools[is_tls] = httpcore2.AsyncConnectionPool(
                ssl_context=trust(None) if is_tls else None,
                network_backend=_MeteredBackend(),
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=0,
            )
        return pool
