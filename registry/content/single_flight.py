"""Work that several ask for at the same time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SingleFlight:
    """The work that is under way in one event loop, by name."""

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Task[Any]] = {}

    async def alone(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work once for everybody who asks for it meanwhile."""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = asyncio.create_task(work())
            flight.add_done_callback(lambda done: self._landed(name, done))
        result: T = await asyncio.shield(flight)
        return result

    def _landed(self, name: str, flight: asyncio.Task[Any]) -> None:
        self._flights.pop(name, None)
        if not flight.cancelled():
            flight.exception()  # Seen, even where everybody who waited was cancelled.
