"""What looks at files in place found, put down behind the answers that they were made for."""

from __future__ import annotations

import asyncio
import logging

from registry.errors import RegistryError
from registry.store.group_commit import Writer
from registry.store.ops.file_status import Observation, observe

PENDING_MAX = 1000

log = logging.getLogger("registry")


class Observations:
    """Observations on their way into the database, for one event loop.

    There is one at a time for each ref, in the order in which they were made. Of those that come
    while one is on its way, the last is written.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.writing: dict[tuple[int, int], asyncio.Task[None]] = {}
        """The tasks that write, by owner and entry."""
        self._latest: dict[tuple[int, int], Observation] = {}
        """What was observed of a ref while an observation of it was on its way."""

    def note(self, observation: Observation) -> None:
        """Put an observation down soon. When too many are on their way, it is let go: whoever
        reads the file next makes it again."""
        ref = (observation.owner_id, observation.entry_id)
        if ref in self.writing:
            self._latest[ref] = observation
        elif len(self.writing) < PENDING_MAX:
            self.writing[ref] = asyncio.create_task(self._write(ref, observation))

    async def _write(self, ref: tuple[int, int], observation: Observation) -> None:
        """Write down an observation, and then the last of those that came meanwhile, as long as
        it says something else."""
        written: Observation | None = None
        try:
            while observation != written:
                await self._submit(observation)
                written, observation = observation, self._latest.pop(ref, observation)
        finally:
            # Not in a callback of the task: what came before that was called would be lost.
            self._latest.pop(ref, None)
            del self.writing[ref]

    async def _submit(self, observation: Observation) -> None:
        try:
            await self._writer.submit(observe, observation)
        except RegistryError as error:
            what = observation.path or f"the copy of {observation.checksum}"
            log.warning("could not note that %s is %s: %s", what, observation.status, error)
