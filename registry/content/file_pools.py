"""Threads for looks at holders' files: a small pool for each place, and a limit of time.

A call on a file of a network or FUSE file system may never return, and a thread in it can neither
be interrupted nor be joined. So a place that hangs costs the threads of its own pool and nothing
else: nobody waits for it longer than the limit, other places have threads of their own, and since
all of them are daemons, the process ends without them.

What takes long is no fault as long as it goes on: work calls `step` after each of its steps. Work
that nobody waits for any more ends at its next step.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, TypeVar

from registry.content.roots import Walk
from registry.core.regular import shown_path
from registry.core.work_progress import watched
from registry.errors import Busy

T = TypeVar("T")

THREADS_PER_PLACE = 8
IDLE_S = 10.0
"""How long a thread waits for more to do before it ends."""
POOLS_KEPT = 64
RETRY_AFTER_S = 5
SHORTAGE_PAUSE_S = 0.05


class _Abandoned(Exception):
    """Nobody waits for the work any more."""


class _Job:
    """A call that is made in a thread for somebody who waits in an event loop."""

    __slots__ = ("_arguments", "_late", "_loop", "_work", "future", "moved_at", "path")

    def __init__(
        self,
        path: str,
        work: Callable[..., Any],
        arguments: tuple[Any, ...],
        late: Callable[[Any], object] | None,
    ) -> None:
        self.path = path
        self._work = work
        self._arguments = arguments
        self._late = late
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()
        self.moved_at = time.monotonic()

    def run(self) -> None:
        """In the thread."""
        if self.future.cancelled():
            return
        self._move()
        result, error = None, None
        try:
            with watched(self._step):
                result = self._work(*self._arguments)
        except BaseException as caught:
            error = caught
        while True:
            try:
                self._loop.call_soon_threadsafe(self._settle, result, error)
            except MemoryError:
                time.sleep(SHORTAGE_PAUSE_S)  # Nobody is to wait for what was done already.
            except RuntimeError:
                return  # The loop is closed, and the process about to end.
            else:
                return

    def _move(self) -> None:
        self.moved_at = time.monotonic()

    def _step(self) -> None:
        if self.future.done():
            raise _Abandoned
        self._move()

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            if error is None and self._late is not None:
                self._late(result)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Pool:
    """The threads of one place. They come as they are needed and go when they are not."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ready = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._threads = 0
        self._idle = 0
        self._moved_at = time.monotonic()

    @property
    def is_empty(self) -> bool:
        return not self._threads

    def take(self, job: _Job, *, insists: bool) -> bool:
        """Take a job on; False: nobody could do it within the limit, as it stands."""
        with self._ready:
            stuck = [each for each in self._running if self._is_late(each.moved_at, job.moved_at)]
            hopeless = len(stuck) >= THREADS_PER_PLACE or any(
                each.path == job.path for each in stuck
            )
            if hopeless and not insists:
                return False
            self._queue.append(job)
            if self._idle < len(self._queue) and self._threads < THREADS_PER_PLACE:
                self._start(insists)
            else:
                self._ready.notify()
        return True

    def _start(self, insists: bool) -> None:
        thread = threading.Thread(target=self._work, name="registry-files", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # The machine has no more threads to give.
            if not self._threads and not insists:
                self._queue.pop()
                raise Busy("The machine has no more threads to give. Try again.") from None
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            with self._ready:
                self._idle += 1
                while not self._queue:
                    if not self._ready.wait(IDLE_S) and not self._queue:
                        self._idle -= 1
                        self._threads -= 1
                        return
                self._idle -= 1
                job = self._queue.popleft()
                self._moved_at = job.moved_at = time.monotonic()
                self._running.add(job)
            job.run()
            with self._ready:
                self._running.discard(job)
                self._moved_at = time.monotonic()
            del job

    def give_up(self, now: float) -> list[_Job]:
        """The jobs that nobody should wait for any longer."""
        with self._ready:
            late = [job for job in self._running if self._is_late(job.moved_at, now)]
            moved_at = max([self._moved_at, *(job.moved_at for job in self._running)])
            if self._is_late(moved_at, now):
                queue, self._queue = self._queue, deque()
                for job in queue:
                    (late if self._is_late(job.moved_at, now) else self._queue).append(job)
        return late

    def _is_late(self, since: float, now: float) -> bool:
        return now - since > self._limit_s


class FilePools:
    """Runs calls on files in the threads of their places, for one event loop.

    `place_of` names the place of a path; `limit_s` is how long a call, or a step of it, may take.
    """

    def __init__(self, place_of: Callable[[str], Hashable], limit_s: float) -> None:
        self._place_of = place_of
        self._limit_s = limit_s
        self._pools: dict[Hashable, _Pool] = {}
        self._waiting: set[_Job] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(
        self,
        path: str,
        work: Callable[..., T],
        *arguments: Any,
        late: Callable[[T], object] | None = None,
    ) -> T:
        """What a call answers or raises. `late` is given the answer if it comes too late.

        Raises:
            Busy: it took too long, or others that did have all threads of the place. This says
                nothing about the file.
        """
        job = _Job(path, work, arguments, late)
        if not self._pool_of(path).take(job, insists=False):
            raise hangs(path, self._limit_s)
        self._waiting.add(job)
        if self._timer is None:
            self._plan(asyncio.get_running_loop())
        try:
            result: T = await job.future
            return result
        finally:
            self._waiting.discard(job)

    def leave(self, path: str, work: Callable[..., object], *arguments: Any) -> None:
        """Have a call made that nobody waits for, as soon as there is a thread for it."""
        job = _Job(path, work, arguments, None)
        job.future.add_done_callback(_look_at_error)
        self._pool_of(path).take(job, insists=True)

    def _pool_of(self, path: str) -> _Pool:
        place = self._place_of(path)
        pool = self._pools.get(place)
        if pool is None:
            if len(self._pools) >= POOLS_KEPT:
                self._pools = {p: pool for p, pool in self._pools.items() if not pool.is_empty}
            pool = self._pools[place] = _Pool(self._limit_s)
        return pool

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._limit_s / 8, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let go of those who have waited for too long."""
        self._timer = None
        now = time.monotonic()
        for pool in self._pools.values():
            for job in pool.give_up(now):
                if not job.future.done():
                    job.future.set_exception(hangs(job.path, self._limit_s))
        if self._waiting:
            self._plan(loop)


def _look_at_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class Patience:
    """Makes calls on files for a caller without an event loop, each with a limit of time. Where one
    was not answered, no other is made.

    `place_of` and `limit_s` are as those of `FilePools`.
    """

    def __init__(self, place_of: Callable[[str], Hashable], limit_s: float) -> None:
        self._place_of = place_of
        self._limit_s = limit_s
        self._hung: set[Hashable] = set()
        self._moved_at = 0.0

    def run(self, path: str, work: Callable[..., T], *arguments: Any) -> T:
        """What a call answers or raises.

        Raises:
            Busy: it, or another of the same place, took longer than the limit.
        """
        place = self._place_of(path)
        if place in self._hung:
            raise hangs(path, self._limit_s)
        outcome: Future[T] = Future()

        def call() -> None:
            try:
                with watched(self._move):
                    outcome.set_result(work(*arguments))
            except BaseException as error:
                outcome.set_exception(error)

        self._move()
        threading.Thread(target=call, name="registry-files", daemon=True).start()
        while True:
            left_s = self._moved_at + self._limit_s - time.monotonic()
            try:
                return outcome.result(max(0.0, left_s))
            except FutureTimeout:
                if not outcome.done() and left_s <= 0:
                    self._hung.add(place)
                    raise hangs(path, self._limit_s) from None

    def follow(self, path: str) -> str:
        """Where an absolute path leads, as `os.path.realpath` does. A link into a place that hangs
        makes nothing of the place where the link is hang.

        Raises:
            Busy: a place on the way does not answer.
        """
        walk = Walk(path)
        while (at := walk.following) is not None:
            here = self._place_of(at)
            self.run(at, walk.go, partial(self._is_in, here))
        return walk.at

    def _is_in(self, place: Hashable, path: str) -> bool:
        return self._place_of(path) == place

    def _move(self) -> None:
        self._moved_at = time.monotonic()


def hangs(path: str, limit_s: float) -> Busy:
    """What is told of a file system that does not answer."""
    return Busy(
        f"The file system of {shown_path(path)} does not answer within {limit_s:g} s "
        "(file_timeout_s), which says nothing about the file. Check the mount, and try again.",
        retry_after_s=RETRY_AFTER_S,
    )
