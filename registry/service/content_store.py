"""Uploaded content on its way into the database: beside the writers, where the engine can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from registry.errors import Busy
from registry.store.engine import Engine
from registry.store.group_commit import Writer
from registry.store.ops.blobs import Upload, journal_uploads, store_blobs, store_content

LARGE_BYTES = 4 << 20
ATTEMPTS = 3


class ContentStore:
    """Stores uploads for one event loop. One large one at a time, as each takes several times its
    size in memory; `run` runs what blocks in a thread."""

    def __init__(
        self, database: Engine, writer: Writer, run: Callable[..., Awaitable[Any]]
    ) -> None:
        self._database = database
        self._writer = writer
        self._run = run
        self._large = asyncio.Lock()

    async def store(self, item: Upload) -> bool:
        """Keep content, and journal it; whether it was not here before. Beside the writers the
        journal is told afterwards: who writes in it needs their lock.

        Raises:
            Busy, StorageUnavailable: the service.
        """
        if not self._database.writes_content_beside:
            return await self._writer.submit(store_blobs, item, size=item.size)
        async with AsyncExitStack() as stack:
            if item.size >= LARGE_BYTES:
                await stack.enter_async_context(self._large)
            is_new: bool = await self._run(self._store, item)
        await self._writer.submit(journal_uploads, item.journalled(is_new=is_new))
        return is_new

    def _store(self, item: Upload) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._database.write_content() as conn:
                    return store_content(conn, conn.now, [item])[0]
            except Busy:  # Somebody uploads the same: it is here then.
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError
