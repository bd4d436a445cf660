"""How much is uploaded and not registered, and the bound of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from registry.errors import UploadsPending

COUNT_MAX_AGE_S = 10.0


class PendingUploads:
    """An upper bound of the bytes uploaded and not registered: counted, then added to.

    With several processes `limit` may be exceeded by what the others take in within 10 s.
    """

    def __init__(self, limit: int, count: Callable[[], Awaitable[int]]) -> None:
        self._limit = limit
        self._count = count
        self._bytes = 0
        self._counted_at = float("-inf")

    async def add(self, size: int) -> None:
        """Take one more upload in.

        Raises:
            UploadsPending: it would be too much.
        """
        if not self._fits(size):
            self._bytes = await self._count()
            self._counted_at = time.monotonic()
            if not self._fits(size):
                raise UploadsPending(
                    f"{self._bytes} bytes are uploaded and not registered; at most {self._limit} "
                    "may be (pending_upload_bytes). Register them, or wait until their grace "
                    "period ends."
                )
        self._bytes += size

    def _fits(self, size: int) -> bool:
        is_fresh = time.monotonic() - self._counted_at < COUNT_MAX_AGE_S
        return is_fresh and self._bytes + size <= self._limit
