"""Looks at local files, each at most once in a round of the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

Look = Callable[[str], os.stat_result]


class RoundLooks:
    """What files look like in this round of an event loop.

    What a round answers was received by then, so that it was asked for before any look of the
    round: a look answers all of them, and reads that come together cost one look. With the round
    it is forgotten.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: dict[str, os.stat_result] = {}

    def find_status(self, path: str, look: Look) -> os.stat_result:
        """What `look` says of a path, or has said of it in this round.

        Raises:
            OSError, ValueError: as `look`.
        """
        status = self._seen.get(path)
        if status is None:
            status = look(path)
            if not self._seen:
                if self._loop is None:
                    self._loop = asyncio.get_running_loop()
                self._loop.call_soon(self._seen.clear)
            self._seen[path] = status
        return status
