"""The connections of asyncio: cancelling keeps their deadline, except for looking up names."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Iterable

import httpcore2

from registry.network.connection_errors import raising
from registry.network.connections import SocketOption
from registry.network.name_lookup import begin_lookup, is_address


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


class AsyncBackend(httpcore2.AnyIOBackend):
    """As `Backend`, for asyncio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        ends = time.monotonic() + (math.inf if timeout is None else timeout)
        if not 0 < port < 1 << 16:
            raise httpcore2.ConnectError(f"{port} is no port")
        addresses = [host]
        if not is_address(host):
            with raising(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                async with asyncio.timeout(timeout):
                    addresses = await asyncio.wrap_future(begin_lookup(host, port))
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
