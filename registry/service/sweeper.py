"""The service's sweeper: ends lapsed owners, prunes what is old, hashes files again (S9, S10, S14).

It runs from the start of the service, also when nothing else happens. Several processes on one
database take turns: who comes within half an interval of another's sweep does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine

from registry import __version__
from registry.config import Settings
from registry.core.policy import Policy
from registry.errors import Busy, RegistryError
from registry.service.registry import Registry
from registry.store.ops.expire import REFS_PER_SWEEP, Sweep, Swept, sweep
from registry.store.ops.prune import Prune, find_abandoned, prune
from registry.store.ops.settings_table import Adoption, adopt, policy_of, read_variables
from registry.store.reads.scrub_queue import START, Cursor, find_due

SCRUB_FILES_PER_S = 25
SCRUB_BYTES_PER_S = 25 << 20
UPLOADS_LOOKED_AT_EVERY_S = 60.0
PAUSE_MIN_S = 0.1
BREATHER_S = 0.003
"""Between two batches, so that other processes get the write lock: they ask every 2 ms."""
NAMED_MAX = 20
"""As many ended owners of a batch are named in the log; the journal names all."""

log = logging.getLogger("registry.service.sweeper")


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
        brake_percent=round(settings.brake_fraction * 100, 6),
    )


def pause_s(settings: Settings) -> float:
    """The pause between two sweeps: at most half of what counts as an outage."""
    outage_ms = Policy(lease_grace_ms=round(settings.lease_grace_s * 1000)).outage_ms
    return max(PAUSE_MIN_S, min(settings.sweep_interval_s, outage_ms / 2000))


class Sweeper:
    """The background task. Whatever goes wrong in a sweep is logged, and the next one comes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._policy = policy_from(registry.settings)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._scrubbing: asyncio.Task[None] | None = None
        self._adopted = False
        self._cursor: Cursor = START
        self._uploads_at = float("-inf")
        self._told: str | None = None

    @property
    def pause_s(self) -> float:
        """The pause between two sweeps. Another service on the same database may have shortened
        the grace: then its pause is ours as well, or every pause of ours would be an outage."""
        return min(pause_s(self._registry.settings), self._policy.sweep_interval_ms / 1000)

    def start(self) -> None:
        """Sweep now, and from now on."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish the transaction that is going on, then stop."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        if self._scrubbing is not None:
            await self._scrubbing

    async def _work(self) -> None:
        while not self._stopping.is_set():
            await self._guarded("sweep", self._turn())
            try:
                await asyncio.wait_for(self._stopping.wait(), self.pause_s)
            except TimeoutError:
                continue

    async def _turn(self) -> None:
        swept = await self.sweep_once()
        # Files may be slow to read, and the next sweep does not wait for them.
        if not swept.skipped and (self._scrubbing is None or self._scrubbing.done()):
            self._scrubbing = asyncio.create_task(self._guarded("scrub", self.scrub_once()))

    @staticmethod
    async def _guarded(what: str, work: Coroutine[None, None, object]) -> None:
        try:
            await work
        except RegistryError as error:
            log.warning("the %s failed and will be tried again: %s", what, error)
        except Exception:
            log.exception("the %s failed and will be tried again", what)

    async def sweep_once(self) -> Swept:
        """One sweep with the pruning that belongs to it, unless another process has just made one.

        Answers what its first transaction did.
        """
        if not self._adopted:
            settings = self._registry.settings
            adoption = Adoption(policy_from(settings), __version__, settings.public_urls)
            await self._registry.writer.submit(adopt, adoption)
            self._adopted = True
        swept = done = await self._sweep(Sweep())
        self._policy = policy_of(await self._registry.read(read_variables))
        if done.skipped:
            return done
        while done.more and not self._stopping.is_set():
            await asyncio.sleep(BREATHER_S)
            done = await self._sweep(Sweep(repeated=True))
        await self._prune()
        return swept

    async def _sweep(self, item: Sweep) -> Swept:
        swept = await self._registry.writer.submit(sweep, item, rows=REFS_PER_SWEEP)
        for ending in swept.ended[:NAMED_MAX]:
            log.info("ended %s: %s", ending.owner, ending.reason)
        if len(swept.ended) > NAMED_MAX:
            log.info("ended %d more owners; see the journal", len(swept.ended) - NAMED_MAX)
        told = swept.paused if swept.waiting else None
        if told != self._told and told is not None:
            log.warning("%d lapsed owners wait: %s", swept.waiting, told)
        self._told = told
        return swept

    async def _prune(self) -> None:
        """Prune for at most one pause, so that the next sweep is not late, and goes on there."""
        until = time.monotonic() + self.pause_s
        checksums: tuple[str, ...] = ()
        if time.monotonic() - self._uploads_at >= UPLOADS_LOOKED_AT_EVERY_S:
            checksums = await self._registry.read_at(find_abandoned)
            self._uploads_at = time.monotonic()
        step = Prune(checksums)
        while True:
            pruned = await self._registry.writer.submit(prune, step, rows=1000)
            if not pruned.more or self._stopping.is_set() or time.monotonic() > until:
                return
            if checksums:
                checksums = await self._registry.read_at(find_abandoned)
            step = pruned.next_step(checksums)
            await asyncio.sleep(BREATHER_S)

    async def scrub_once(self) -> None:
        """Hash the files that were not for half of the scrub period, the oldest first.

        At most so many that the rate stays bounded when it is done once in every pause.
        """
        period_ms = self._policy.scrub_period_ms
        if not period_ms:
            return
        before = self._registry.database.clock() - period_ms // 2
        limit = max(1, round(SCRUB_FILES_PER_S * self.pause_s))
        due = await self._registry.read(find_due, before, self._cursor, limit)
        left = SCRUB_BYTES_PER_S * self.pause_s
        passed_over: list[Busy] = []
        for each in due:
            if left <= 0 or self._stopping.is_set():
                break
            left -= each.location.size
            self._cursor = each.cursor
            try:
                await self._registry.scrub(each.location)
            except Busy as error:
                passed_over.append(error)
        else:
            if len(due) < limit:
                self._cursor = START
        if passed_over:
            log.warning(
                "%d files were not looked at and will be later; the first: %s",
                len(passed_over),
                passed_over[0],
            )
