"""Downloads from hosts that cards name: direct, bounded, and believed for their checksum alone."""

from __future__ import annotations

import asyncio

import httpcore2
from blake3 import blake3

from registry.core.text import shown_url
from registry.errors import OriginUnavailable
from registry.network.async_connections import AsyncBackend
from registry.network.environment import trust

CONNECTIONS_MAX = 16
IDLE_MAX = 8
IDLE_S = 5.0
DOWNLOAD_MAX_S = 20.0
STEP_MAX_S = 5.0

_HEADERS = [(b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]


class OriginClient:
    """Downloads for one event loop. Proxies of the environment are not used, since a frontend that
    sends its fetches through a proxy may have sent this one through us."""

    def __init__(self) -> None:
        self._pools: dict[bool, httpcore2.AsyncConnectionPool] = {}

    async def read(self, url: str, checksum: str, max_bytes: int) -> bytes:
        """The bytes at a URL, which have this checksum.

        Raises:
            OriginUnavailable: they cannot be had within 20 s, or something else is there.
        """
        try:
            async with asyncio.timeout(DOWNLOAD_MAX_S):
                return await self._read(url, checksum, max_bytes)
        except TimeoutError:
            why = f"it took longer than {DOWNLOAD_MAX_S:g} s"
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            why = f"it cannot be reached: {error}"
        except (httpcore2.TimeoutException, httpcore2.NetworkError) as error:
            why = f"it did not answer: {str(error) or type(error).__name__}"
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            why = f"its answer is none: {error}"
        raise OriginUnavailable(f"{shown_url(url)} is not held here, and {why}.")

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()

    async def _read(self, url: str, checksum: str, max_bytes: int) -> bytes:
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), STEP_MAX_S)
        pool = self._pool(is_tls=url[:6].lower() == "https:")
        content, hasher = bytearray(), blake3()
        extensions = {"timeout": timeout}
        async with pool.stream("GET", url, headers=_HEADERS, extensions=extensions) as got:
            if got.status != 200:
                raise httpcore2.RemoteProtocolError(f"status {got.status}")
            async for part in got.aiter_stream():
                content += part
                hasher.update(part)
                if len(content) > max_bytes:
                    raise httpcore2.RemoteProtocolError(f"more than {max_bytes} bytes")
        if f"blake3:{hasher.hexdigest()}" != checksum:
            raise httpcore2.RemoteProtocolError("other bytes than its card says")
        return bytes(content)

    def _pool(self, *, is_tls: bool) -> httpcore2.AsyncConnectionPool:
        pool = self._pools.get(is_tls)
        if pool is None:
            pool = self._pools[is_tls] = httpcore2.AsyncConnectionPool(
                ssl_context=trust(None) if is_tls else None,
                network_backend=AsyncBackend(),
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=IDLE_MAX,
                keepalive_expiry=IDLE_S,
            )
        return pool
