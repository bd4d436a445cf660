"""Threads for what may block, apart by what it is, so that nothing takes another's place.

quick     what serving and registering need of the database: short, and as many as requests
costly    what somebody wants to look at: lists, events, models, an audit; it may take seconds
probes    what tells whether the service is well; asked together it is answered together
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from registry.errors import Busy, StorageUnavailable

T = TypeVar("T")


class Lane:
    """A few threads for one event loop, and a bounded number of those who wait for one.

    Who waits keeps no thread, and leaves its place when it is cancelled. What runs cannot be
    stopped: its thread is free when it is done.
    """

    def __init__(self, name: str, *, threads: int, waiting_max: int, patience_s: float) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"registry-{name}")
        self._free = asyncio.Semaphore(threads)
        self._waiting_max = waiting_max
        self._patience_s = patience_s
        self.waiting = 0
        """How many wait for a thread."""

    def start(self) -> None:
        """Start the threads.

        Raises:
            StorageUnavailable: there are none to be had.
        """
        start_threads(self._pool, self._threads)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what may block in one of the threads.

        Raises:
            Busy: too many wait already, or no thread was free in time.
        """
        await self._take_place()
        loop = asyncio.get_running_loop()
        try:
            running = self._pool.submit(work, *arguments)
        except BaseException:
            self._free.release()
            raise
        try:
            return await asyncio.wrap_future(running)
        finally:
            if running.done():
                self._free.release()
            else:  # Whoever waited is gone; the thread is not free before its work is done.
                running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))

    @property
    def is_full(self) -> bool:
        """Whether who comes now has to wait."""
        return self._free.locked()

    async def _take_place(self) -> None:
        if not self.is_full:
            await self._free.acquire()
            return
        if self.waiting >= self._waiting_max:
            raise Busy(f"{self.waiting} others wait for the same already. Try again shortly.")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise Busy(
                f"Others ask for much: no turn came within {self._patience_s:g} s. Try again later."
            ) from None
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown(wait=True)


def start_threads(pool: ThreadPoolExecutor, number: int) -> None:
    """Start the threads of a pool now: when the system is short, there are none to be had.

    Raises:
        StorageUnavailable: that is so already.
    """
    gate = threading.Event()
    try:
        for _ in range(number):
            pool.submit(gate.wait)
    except RuntimeError as error:
        raise StorageUnavailable(
            f"The service cannot start its threads: {error}. Raise the limits of processes "
            "(ulimit -u) and of memory."
        ) from error
    finally:
        gate.set()


class Shared(Generic[T]):
    """Work that is done once for all who ask for it while it is done."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._flight: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """What the work comes to."""
        flight = self._flight
        if flight is None:
            flight = self._flight = asyncio.create_task(self._work())
            flight.add_done_callback(self._landed)
        return await asyncio.shield(flight)

    def _landed(self, flight: asyncio.Task[T]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # Seen, even where everybody who waited was cancelled.
