"""What the overview shows of the whole, counted when somebody looks at it and then kept a while.

Counting takes long where there is much, so a page does not wait for it: it shows what was counted
last, and says when that was.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from registry.service.lanes import Shared
from registry.service.registry import Registry
from registry.store.reads.overview import RegistryFigures, figures_of
from registry.store.reads.stats import Counted

PATIENCE_S = 0.1
"""How long a page waits for figures. Where there is not much, they are there by then."""


class KeptFigures:
    """The figures as they were counted last. Counting takes at most a twentieth of the time, and
    has a thread of its own, begun when it is needed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._counted = Counted(self._count, time.monotonic)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry-figures")
        self._shared = Shared(self._get)

    async def get(self) -> RegistryFigures | None:
        """What is known now; None: it is being counted for the first time.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._shared.get()
        except TimeoutError:
            return self._counted.last

    def close(self) -> None:
        """Wait for a count that runs."""
        self._thread.shutdown(wait=True)

    def _count(self) -> RegistryFigures:
        with self._registry.database.read() as conn:
            return figures_of(conn)

    async def _get(self) -> RegistryFigures:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._counted.get)
