"""SIGHUP: the files that settings name are read again."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Reloads(Protocol):
    """What can be read again."""

    def reload(self) -> None: ...


_came = False


def note_sighup() -> None:
    """Remember a SIGHUP that comes before the event loop listens to it. For the main thread."""
    signal.signal(signal.SIGHUP, _note)


def _note(_number: int, _frame: FrameType | None) -> None:
    global _came
    _came = True


@contextmanager
def reloading(*parts: Reloads) -> Iterator[None]:
    """Has the parts, if there are any, read again on SIGHUP while the block runs in the event
    loop. Signals are the main thread's."""
    global _came
    if not parts or threading.current_thread() is not threading.main_thread():
        yield
        return

    def reload() -> None:
        for part in parts:
            part.reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    if _came:
        _came = False
        reload()
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        # Whoever is about to end is not to be ended by it.
        note_sighup()
