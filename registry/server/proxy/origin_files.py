"""Files that are not held here, from where their cards say, for as long as there is room."""

from __future__ import annotations

from collections.abc import Callable

from registry.content.cache import Body, ContentCache
from registry.content.single_flight import SingleFlight
from registry.errors import Busy, OriginUnavailable
from registry.network.origin import OriginClient
from registry.server.proxy.advertised import AdvertisedFile

BUDGET_BYTES = 128 << 20
"""Memory for what was fetched and is being sent, or may be asked for again."""

UNKNOWN_BYTES = 16 << 20
"""Room for a file whose card gives no size."""


class OriginFiles:
    """Fetches each content once for all who ask. `max_bytes`: of one file."""

    def __init__(self, max_bytes: int, make_client: Callable[[], OriginClient] = OriginClient):
        self._max_bytes = max_bytes
        self._client = make_client()
        self._cache = ContentCache(max(BUDGET_BYTES, max_bytes))
        self._flights = SingleFlight()
        self.fetched_bytes = 0

    async def fetch(self, file: AdvertisedFile) -> Body:
        """The content that a card names.

        Raises:
            OriginUnavailable: it cannot be had.
            Busy: there is no room for it now.
        """
        body = self._cache.find(file.checksum)
        if body is None:
            body = await self._flights.alone(
                f"{file.checksum} {file.url}", lambda: self._fetch(file)
            )
        return body

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _fetch(self, file: AdvertisedFile) -> Body:
        size = min(UNKNOWN_BYTES if file.max_bytes is None else file.max_bytes, self._max_bytes)
        if file.max_bytes is not None and file.max_bytes > self._max_bytes:
            raise OriginUnavailable(
                f"{file.url} has {file.max_bytes} bytes by its card, more than max_blob_bytes, "
                f"{self._max_bytes}."
            )
        if not self._cache.reserve(size):
            raise Busy("There is no room for files from elsewhere now. Try again.")
        reserved = size
        try:
            content = await self._client.read(file.url, file.checksum, size)
            self._cache.release(size - len(content))
            reserved = 0
            self.fetched_bytes += len(content)
            return self._cache.fill(file.checksum, content)
        finally:
            self._cache.release(reserved)
