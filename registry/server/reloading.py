"""SIGHUP: the files that settings name are read again.

A file of a network or FUSE file system may never be read. So a thread reads, which nobody waits for
longer than a limit, and only what comes of it is done in the event loop. Meanwhile, and if it takes
too long, everything stays as it was.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

HUNG_MAX = 4
"""Threads that may hang with the files of one part. They go on when the file system answers; where
it was mounted anew instead, they never do."""
SHORTAGE_PAUSE_S = 0.05

log = logging.getLogger("registry")


class Reloads(Protocol):
    """What can be read again."""

    @property
    def files(self) -> str:
        """What is read, for messages."""

    def read_again(self) -> Callable[[], None]:
        """Read, in some thread. What is answered is called in the event loop."""

    def keep(self, reason: str) -> None:
        """Say, in the event loop, why it was not read again."""


_came = False


def note_sighup() -> None:
    """Remember a SIGHUP that comes before the event loop listens to it. For the main thread."""
    signal.signal(signal.SIGHUP, _note)


def _note(_number: int, _frame: FrameType | None) -> None:
    global _came
    _came = True


class Reader:
    """Reads one part again, as often as it is asked to, for the event loop that it is made in.

    `limit_s` is how long the file system may take to answer.
    """

    def __init__(self, part: Reloads, limit_s: float) -> None:
        self._part = part
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._begun = 0
        self._taken = 0
        """Which reading the part is as of: what was begun before that comes too late."""
        self._current: int | None = None
        self._hung: set[int] = set()
        self._is_asked = False
        """Whether to read once more when a reading that goes on is over."""
        self._timer: asyncio.TimerHandle | None = None

    def read(self) -> None:
        """Read the files as they are from now on."""
        if self._current is not None:
            self._is_asked = True
            return
        if len(self._hung) >= HUNG_MAX:
            self._is_asked = True
            self._part.keep(self._hangs("They are read when it does."))
            return
        self._begun += 1
        self._is_asked = False
        thread = threading.Thread(
            target=self._read, args=(self._begun,), name="registry-reload", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._part.keep("the machine has no more threads to give. Send SIGHUP again.")
            return
        self._current = self._begun
        self._timer = self._loop.call_later(self._limit_s, self._give_up)

    def _read(self, number: int) -> None:
        """In a thread."""
        done: Callable[[], None] | None = None
        try:
            done = self._part.read_again()
        except Exception:
            log.exception("%s could not be read again", self._part.files)
        while True:
            try:
                self._loop.call_soon_threadsafe(self._settle, number, done)
            except MemoryError:
                time.sleep(SHORTAGE_PAUSE_S)
            except RuntimeError:
                return  # The loop is closed, and the process about to end.
            else:
                return

    def _settle(self, number: int, done: Callable[[], None] | None) -> None:
        self._hung.discard(number)
        if number == self._current:
            self._current = None
            if self._timer is not None:
                self._timer.cancel()
        if done is not None and number > self._taken:
            self._taken = number
            done()
        if self._is_asked:
            self.read()

    def _give_up(self) -> None:
        if self._current is not None:
            self._hung.add(self._current)
            self._current = None
            self._part.keep(self._hangs("Check the mount, and send SIGHUP again."))

    def _hangs(self, hint: str) -> str:
        return (
            f"the file system of {self._part.files} does not answer within {self._limit_s:g} s "
            f"(file_timeout_s). {hint}"
        )


@contextmanager
def reloading(*parts: Reloads, limit_s: float) -> Iterator[None]:
    """Has the parts, if there are any, read again on SIGHUP while the block runs in the event
    loop. Signals are the main thread's."""
    global _came
    if not parts or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    readers = [Reader(part, limit_s) for part in parts]

    def reload() -> None:
        for reader in readers:
            reader.read()

    # Not by the loop's own means, which would take the wakeup descriptor of `stopping`.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(reload))
    if _came:
        _came = False
        reload()
    try:
        yield
    finally:
        # Whoever is about to end is not to be ended by it.
        note_sighup()
