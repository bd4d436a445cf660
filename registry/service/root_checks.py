"""Whether the artifact roots are there, and what is held below none of them (S12, S13)."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from registry.content.places import Places
from registry.core.hashing import is_about_the_file
from registry.errors import Busy, RegistryError
from registry.store.group_commit import Writer
from registry.store.ops.lost_roots import (
    Loss,
    Ref,
    Roots,
    count_lost,
    find_missing_below,
    find_outside,
    keep_roots,
    lose,
)
from registry.store.reads.lookup import Location

PAGE_ROWS = 1000
START: Ref = (0, 0)
LOOK_EVERY_S = 5.0
AGAIN_S = 60.0
"""How often what is missing below the roots is looked at, though they are as they were."""


log = logging.getLogger("registry")


class RootChecks:
    """Looks after the artifact roots of one service.

    A root that goes, or that was configured before and is not any more, takes with it what is held
    below it: nobody can be served from there. So its files are noted as missing at once, which
    models, explanations, renewals and the audit then tell. When it is back, they are looked at.
    """

    def __init__(
        self,
        places: Places,
        writer: Writer,
        read: Callable[..., Awaitable[Any]],
        scrub: Callable[[Location], Awaitable[None]],
    ) -> None:
        self._places = places
        self._writer = writer
        self._read = read
        self._scrub = scrub
        self._there: tuple[str, ...] | None = None
        """The roots that were there at the last look, each with a slash at its end."""
        self._lost = 0
        self._looked_again_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now, and every few seconds from now on. A look may take long, when a root with many
        files has come back, and holds up nothing else."""
        self._task = asyncio.create_task(self._work())

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        has_failed = False
        while True:
            try:
                await self.look()
                has_failed = False
            except RegistryError as error:
                if not has_failed:
                    log.warning("the look at the artifact roots failed; retrying: %s", error)
                has_failed = True
            except Exception:
                log.exception("the look at the artifact roots failed; retrying")
            await asyncio.sleep(LOOK_EVERY_S)

    def warnings(self) -> dict[str, str]:
        """What is wrong, by name, and what to do."""
        found = {}
        gone = self._gone()
        if gone:
            found["artifact_root"] = (
                f"{', '.join(gone)} is not there any more: nothing below it can be served. Mount "
                "it, or start the service without it"
            )
        if self._lost:
            found["files_outside_roots"] = (
                f"{self._lost} files that owners hold lie below no artifact root that is "
                "configured and there (audit class root_missing). Start the service with their "
                "root (--artifact-root), or unregister their owners"
            )
        return found

    def _gone(self) -> list[str]:
        there = self._there
        return [] if there is None else [r for r in self._places.roots.prefixes if r not in there]

    def advice(self, holders: Sequence[Location]) -> str:
        """What to do about holders none of which has the right bytes."""
        allow = self._places.roots.allow
        gone = [root for root in self._gone() if any(_is_below(each, root) for each in holders)]
        if gone:
            return f"The artifact root {gone[0]} is not there any more: mount it again."
        if all(each.path is not None and not allow(each.path) for each in holders):
            return (
                "Their files lie below no artifact root of this service. Start it with their root "
                "(--artifact-root), or unregister them and register them again."
            )
        return "They must put the file back, or register it again."

    async def look(self) -> None:
        """Look whether the roots are there, and see to what follows from a change.

        Raises:
            Busy, StorageUnavailable: the database; the next look goes on.
        """
        there = tuple([root for root in self._places.roots.prefixes if await self._is_there(root)])
        if there != self._there:
            await self._writer.submit(keep_roots, Roots(there))
            await self._lose_others(there)
            await self._look_again(there)
            self._there = there
            self._lost = await self._read(count_lost, there)
            for warning in self.warnings().values():
                log.warning("%s", warning)
        elif time.monotonic() - self._looked_again_at >= AGAIN_S:
            # Another service on this database, with other roots, may have noted ours as missing.
            await self._writer.submit(keep_roots, Roots(there))
            await self._look_again(there)
            self._lost = await self._read(count_lost, there)

    async def _is_there(self, root: str) -> bool:
        try:
            return await self._places.run(root, _is_directory, root)
        except Busy:
            return True  # It hangs, which is told where somebody wants something from it.
        except OSError as error:
            # A shortage says nothing of the root.
            return not is_about_the_file(error)

    async def _lose_others(self, there: tuple[str, ...]) -> None:
        after, page = START, [(START, "")] * PAGE_ROWS
        while len(page) == PAGE_ROWS:
            page = await self._read(find_outside, there, after, PAGE_ROWS)
            if page:
                refs = tuple(ref for ref, _ in page)
                await self._writer.submit(lose, Loss(refs), rows=len(refs))
                after = refs[-1]

    async def _look_again(self, there: tuple[str, ...]) -> None:
        """Look at what was missing below roots that are there, as they may just have come back."""
        self._looked_again_at = time.monotonic()
        after = START
        while page := await self._read(find_missing_below, there, after, PAGE_ROWS):
            for location in page:
                try:
                    await self._scrub(location)
                except Busy:
                    continue  # The scrubber, or whoever reads it, looks again.
            after = (page[-1].owner_id, page[-1].entry_id)


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.stat(path).st_mode)


def _is_below(location: Location, root: str) -> bool:
    return location.path is not None and location.path.startswith(root)
