"""One fetch under way: what the cache lacks is brought into it, several files at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from registry.client.cache import BlobCache, DownloadClaim
from registry.client.cache_directory import failures_in
from registry.client.download import Receiver
from registry.client.fetch_limits import FetchLimits
from registry.client.fetch_plan import Download, Refuse, Use, decide
from registry.client.file_sources import FileSources
from registry.client.transport import OnBytes
from registry.client.wanted_files import Wanted
from registry.core import background
from registry.core.progress import OnProgress, Tallies
from registry.errors import TooLarge

T = TypeVar("T")

AT_ONCE = 4
"""How many files of a model are brought in at the same time."""

LOCK_LOOKED_AT_EVERY_S = 0.05
CLAIM_PATIENCE_S = 30.0
"""How long another process may download nothing of a file before it is not waited for any more."""


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that was fetched, and where it is now."""

    filename: str
    checksum: str
    size: int
    path: Path
    downloaded: bool


class Fetch:
    """One fetch under way: what the cache lacks is brought into it."""

    def __init__(self, cache: BlobCache, limits: FetchLimits, sources: FileSources) -> None:
        self._cache = cache
        self._limits = limits
        self._sources = sources
        self._places = asyncio.Semaphore(AT_ONCE)

    async def all(
        self, wanted: Sequence[Wanted], on_progress: OnProgress | None
    ) -> list[FetchedFile]:
        """Every file in the cache."""
        contents = {file.checksum: file for file in wanted}
        missing = [
            file for file in contents.values() if isinstance(await self._decide(file), Download)
        ]
        tallies = Tallies("Downloading", sum(file.size for file in missing), on_progress)
        came = await _all_of(
            [self._bring_in(file, tallies.part(file.checksum)) for file in missing]
        )
        downloaded = {
            file.checksum for file, was_missing in zip(missing, came, strict=True) if was_missing
        }
        return [
            FetchedFile(
                file.filename,
                file.checksum,
                file.size,
                self._cache.path_of(file.checksum),
                file.checksum in downloaded,
            )
            for file in wanted
        ]

    async def _decide(self, wanted: Wanted) -> Use | Download:
        limit = min(self._limits.file_max_bytes, wanted.size)
        cached = await background.done(lambda: self._cache.find(wanted.checksum, limit))
        what = decide(wanted, cached, self._limits)
        if isinstance(what, Refuse):
            raise TooLarge(f"{wanted.path or wanted.filename} is not fetched: {what.reason}.")
        return what

    async def _bring_in(self, wanted: Wanted, on_bytes: OnBytes) -> bool:
        """Make sure that the cache has some content; whether it had to be downloaded for that."""
        async with self._places:
            claim = await self._claim(wanted)
            try:
                if isinstance(await self._decide(wanted), Use):
                    # Somebody else was faster.
                    on_bytes(wanted.size)
                    return False
                name = wanted.path or wanted.filename
                receiver = Receiver(
                    name, wanted.checksum, wanted.size, claim.file, on_bytes=on_bytes
                )
                with failures_in(self._cache.directory):
                    receiver.resume()
                    await self._sources.receive(wanted, receiver)
                claim.keep()
                return True
            finally:
                claim.close()

    async def _claim(self, wanted: Wanted) -> DownloadClaim:
        """The right to download a file, as soon as nobody else is getting on with it."""
        seen, since = -1, time.monotonic()
        while (claim := self._cache.try_claim(wanted.checksum)) is None:
            size = self._cache.partial_size(wanted.checksum)
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > CLAIM_PATIENCE_S:
                return self._cache.claim_beside(wanted.checksum)
            await asyncio.sleep(LOCK_LOOKED_AT_EVERY_S * random.uniform(0.5, 1.5))
        return claim


async def _all_of(coroutines: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """Do all at once; when one fails, stop the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
