"""Files that are not held here, from where their cards say, for as long as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry.content.cache import Body, ContentCache
from registry.content.single_flight import SingleFlight
from registry.errors import Busy, OriginUnavailable
from registry.network.origin import OriginClient
from registry.server.hosts import Authority
from registry.server.proxy.advertised import AdvertisedFile

BUDGET_BYTES = 128 << 20
"""Memory for what was fetched and is being sent, or may be asked for again."""

UNKNOWN_BYTES = 16 << 20
"""What a file may have whose card gives no size."""

OF_ONE_WORKER = 4
"""How many files are fetched from one worker at the same time, so that one that is slow takes no
room from others."""

WAITS = 100
WAIT_S = 0.1


class OriginFiles:
    """Fetches each content once for all who ask. `max_bytes`: of one file."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._client = OriginClient()
        self._cache = ContentCache(max(BUDGET_BYTES, max_bytes))
        self._flights = SingleFlight()
        self._turns: dict[Authority, asyncio.Semaphore] = {}
        self._waiting: dict[Authority, int] = {}

    async def fetch(self, file: AdvertisedFile, authority: Authority) -> Body:
        """The content that a card names, from the worker there.

        Raises:
            OriginUnavailable: it cannot be had.
            Busy: there is no room for it now.
        """
        body = self._cache.find(file.checksum)
        if body is None:
            body = await self._flights.alone(
                f"{file.checksum} {file.url}", lambda: self._fetch(file, authority)
            )
        return body

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _fetch(self, file: AdvertisedFile, authority: Authority) -> Body:
        size = file.max_bytes
        if size is not None and size > self._max_bytes:
            raise OriginUnavailable(
                f"{file.url} has {size} bytes by its card, more than max_blob_bytes, "
                f"{self._max_bytes}."
            )
        limit = min(UNKNOWN_BYTES, self._max_bytes) if size is None else size
        reserved = 0

        def take(count: int) -> None:
            nonlocal reserved
            if size is None:
                if not self._cache.reserve(count):
                    raise _no_room()
                reserved += count

        async with self._turn(authority):
            if size is not None:
                await self._reserve(size)
                reserved = size
            try:
                content = await self._client.read(file.url, file.checksum, limit, take)
                self._cache.release(reserved - len(content))
                reserved = 0
                return self._cache.fill(file.checksum, content)
            finally:
                self._cache.release(reserved)

    @asynccontextmanager
    async def _turn(self, authority: Authority) -> AsyncIterator[None]:
        turns = self._turns.setdefault(authority, asyncio.Semaphore(OF_ONE_WORKER))
        self._waiting[authority] = self._waiting.get(authority, 0) + 1
        try:
            async with turns:
                yield
        finally:
            self._waiting[authority] -= 1
            if not self._waiting[authority]:
                del self._waiting[authority], self._turns[authority]

    async def _reserve(self, size: int) -> None:
        """Wait for room, but not for long."""
        for _ in range(WAITS):
            if self._cache.reserve(size):
                return
            await asyncio.sleep(WAIT_S)
        raise _no_room()


def _no_room() -> Busy:
    return Busy("There is no room for files of workers now. Try again.")
