"""The metrics of a running service: the counts of its processes, and what its database holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from registry.errors import RegistryError
from registry.server.metrics import FLUSH_EVERY_S, Metrics
from registry.service.registry import Registry
from registry.store.reads.stats import Counted, Sizes, count_sizes


class Report:
    """Shows the metrics of all processes, with the sizes of the database as they are about now."""

    def __init__(self, metrics: Metrics, registry: Registry) -> None:
        self._metrics = metrics
        self._registry = registry
        self._counted = Counted(self._count, time.monotonic)
        self._counting = asyncio.Lock()

    def _count(self) -> Sizes:
        with self._registry.database.read() as conn:
            return count_sizes(conn)

    async def text(self) -> bytes:
        """All metrics. Those of the database are missing while it cannot be read."""
        async with self._counting:
            self._metrics.flush()
            return await self._registry.in_thread(self._text)

    def _text(self) -> bytes:
        values: Sizes = {}
        with suppress(RegistryError):  # /health says what is wrong with it.
            values.update(self._counted.get())
        disk = self._registry.database.disk_use()
        values["database_bytes"], values["wal_bytes"] = disk.database_bytes, disk.log_bytes
        if disk.free_bytes is not None:
            values["free_bytes"] = disk.free_bytes
        return self._metrics.text(values)


@asynccontextmanager
async def reporting(metrics: Metrics, registry: Registry) -> AsyncIterator[Report]:
    """Keeps the metrics up to date while the block runs, for all processes to see."""
    metrics.follow(metrics.queue, lambda: registry.writer.waiting)
    metrics.follow(metrics.cache, lambda: registry.cached_bytes)
    flushing = asyncio.create_task(_flush(metrics))
    try:
        yield Report(metrics, registry)
    finally:
        flushing.cancel()
        metrics.flush()


async def _flush(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        metrics.flush()
