"""The metrics of a running service: the counts of its processes, and what its database holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from math import nan
from typing import TYPE_CHECKING

from registry.errors import DiscoveryUnavailable, RegistryError
from registry.server.certificates import Certificate
from registry.server.metrics import FLUSH_EVERY_S, Metrics
from registry.server.siblings import Parent
from registry.service.lanes import Shared, start_threads
from registry.service.registry import Registry
from registry.store.reads.audit import OF_DISCOVERY
from registry.store.reads.stats import Counted, Sizes, count_sizes

if TYPE_CHECKING:
    from registry.service.discovery_watch import DiscoveryWatch


class Report:
    """Shows the metrics of all processes, with the sizes of the database as they are about now."""

    def __init__(
        self,
        metrics: Metrics,
        registry: Registry,
        parent: Parent | None,
        certificate: Certificate | None,
        watch: DiscoveryWatch | None,
    ) -> None:
        self._metrics = metrics
        self._registry = registry
        self._parent = parent
        self._certificate = certificate
        self._watch = watch
        self._counted = Counted(self._count, time.monotonic)
        # Of its own: counting takes long where there is much, and scrapes must come through.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry-metrics")
        start_threads(self._thread, 1)
        self._shared = Shared(self._make)

    def _count(self) -> Sizes:
        with self._registry.database.read() as conn:
            return count_sizes(conn)

    async def text(self) -> bytes:
        """All metrics. Those of the database are missing while it cannot be read."""
        return await self._shared.get()

    async def _make(self) -> bytes:
        self._metrics.flush()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._text)

    def close(self) -> None:
        """Wait for a count that runs."""
        self._thread.shutdown(wait=True)

    def _text(self) -> bytes:
        values: Sizes = {}
        with suppress(RegistryError):  # /health says what is wrong with it.
            values.update(self._counted.get())
        if self._watch is not None:
            _add_discovery(values, self._watch, self._registry.database.clock())
        disk = self._registry.database.disk_use()
        values["database_bytes"], values["wal_bytes"] = disk.database_bytes, disk.log_bytes
        if disk.free_bytes is not None:
            values["free_bytes"] = disk.free_bytes
        if self._certificate is not None and self._certificate.ends_at is not None:
            values["tls_certificate_end_timestamp_seconds"] = self._certificate.ends_at
        return self._metrics.text(values, None if self._parent is None else self._parent.others())


def _add_discovery(values: Sizes, watch: DiscoveryWatch, now: int) -> None:
    """What the comparison with discovery says. Findings that are too old are missing."""
    report, problem = watch.news.report, watch.news.problem
    values["discovery_up"] = int(report is not None and problem is None)
    values["discovery_age_seconds"] = nan
    if report is None:
        return
    values["discovery_age_seconds"] = max(0, now - report.looked_at) / 1000
    values["discovery_cards"] = report.cards
    with suppress(DiscoveryUnavailable):
        counts = watch.report(now).audit.counts
        found = values.get("findings", {})
        others = found if isinstance(found, Mapping) else {}
        values["findings"] = {**others, **{name: counts.get(name, 0) for name in OF_DISCOVERY}}


@asynccontextmanager
async def reporting(
    metrics: Metrics,
    registry: Registry,
    parent: Parent | None,
    certificate: Certificate | None,
    watch: DiscoveryWatch | None = None,
) -> AsyncIterator[Report]:
    """Keeps the metrics up to date while the block runs, for all processes to see."""
    metrics.follow(metrics.queue, lambda: registry.writer.waiting)
    metrics.follow(metrics.cache, lambda: registry.cached_bytes)
    if parent is not None:
        parent.counts = metrics.counts
    flushing = asyncio.create_task(_flush(metrics))
    report = Report(metrics, registry, parent, certificate, watch)
    try:
        yield report
    finally:
        report.close()
        flushing.cancel()
        metrics.flush()


async def _flush(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        metrics.flush()
