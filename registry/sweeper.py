"""The service's sweeper: ends lapsed owners, prunes what is old, hashes files again (S9, S10, S14).

It runs from the start of the service, also when nothing else happens. Several processes on one
database take turns: who comes within half an interval of another's sweep does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time

from registry import __version__
from registry.config import Settings
from registry.db.retention import Prune, find_abandoned, prune
from registry.db.scrubbing import START, Cursor, find_due
from registry.db.sweeping import Sweep, Swept, sweep
from registry.db.variables import Adoption, Policy, adopt
from registry.errors import RegistryError
from registry.service import Registry

SCRUB_FILES = 256
SCRUB_BYTES = 256 << 20
PRUNES_MAX = 100
UPLOADS_LOOKED_AT_EVERY_S = 60.0

log = logging.getLogger("registry.sweeper")


def policy_from(settings: Settings) -> Policy:
    """The settings that every sweeper and the audit go by, as the database keeps them."""
    return Policy(
        lease_grace_ms=round(settings.lease_grace_s * 1000),
        upload_grace_ms=round(settings.upload_grace_s * 1000),
        scrub_period_ms=round(settings.scrub_period_h * 3_600_000),
        tombstone_retention_ms=round(settings.tombstone_retention_h * 3_600_000),
        journal_retention_ms=round(settings.journal_retention_d * 86_400_000),
        journal_max_rows=settings.journal_max_rows,
        sweep_interval_ms=round(pause_s(settings) * 1000),
        brake_min_owners=settings.brake_min_owners,
        brake_max_ms=round(settings.brake_max_s * 1000),
        brake_percent=round(settings.brake_fraction * 100),
    )


def pause_s(settings: Settings) -> float:
    """The pause between two sweeps: short enough that a gap of a third of the grace means that
    nobody swept."""
    return max(0.1, min(settings.sweep_interval_s, settings.lease_grace_s / 6))


class Sweeper:
    """The background task. Whatever goes wrong in a sweep is logged, and the next one comes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._pause_s = pause_s(registry.settings)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._adopted = False
        self._cursor: Cursor = START
        self._uploads_at = float("-inf")

    def start(self) -> None:
        """Sweep now, and from now on."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish the transaction that is going on, then stop."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.sweep_once()
            except RegistryError as error:
                log.warning("the sweep failed and will be tried again: %s", error)
            except Exception:
                log.exception("the sweep failed and will be tried again")
            try:
                await asyncio.wait_for(self._stopping.wait(), self._pause_s)
            except TimeoutError:
                continue

    async def sweep_once(self) -> Swept:
        """One sweep with all that belongs to it, unless another process has just made it."""
        if not self._adopted:
            adoption = Adoption(policy_from(self._registry.settings), __version__)
            await self._registry.writer.submit(adopt, adoption)
            self._adopted = True
        swept = done = await self._registry.writer.submit(sweep, Sweep())
        if done.skipped:
            return done
        while done.more and not self._stopping.is_set():
            _tell(done)
            done = await self._registry.writer.submit(sweep, Sweep(repeated=True))
        _tell(done)
        await self._prune()
        await self._scrub()
        return swept

    async def _prune(self) -> None:
        checksums: tuple[str, ...] = ()
        if time.monotonic() - self._uploads_at >= UPLOADS_LOOKED_AT_EVERY_S:
            checksums = await self._registry.read_at(find_abandoned)
            self._uploads_at = time.monotonic()
        for _ in range(PRUNES_MAX):
            pruned = await self._registry.writer.submit(prune, Prune(checksums), rows=1000)
            if not pruned.more or self._stopping.is_set():
                return
            if checksums:
                checksums = await self._registry.read_at(find_abandoned)

    async def _scrub(self) -> None:
        """Hash the files that were not for half of the scrub period, the oldest first."""
        period_ms = round(self._registry.settings.scrub_period_h * 3_600_000)
        if not period_ms:
            return
        before = self._registry.database.clock() - period_ms // 2
        due = await self._registry.read(find_due, before, self._cursor, SCRUB_FILES)
        size = 0
        for each in due:
            if size >= SCRUB_BYTES or self._stopping.is_set():
                return
            size += each.location.size
            self._cursor = each.cursor
            await self._registry.scrub(each.location)
        if len(due) < SCRUB_FILES:
            self._cursor = START


def _tell(swept: Swept) -> None:
    for ending in swept.ended:
        log.info("ended %s: %s", ending.owner, ending.reason)
    if swept.paused and swept.waiting:
        log.warning("%d lapsed owners wait: %s", swept.waiting, swept.paused)
