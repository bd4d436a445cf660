"""Work that nobody can wait for without end: in a thread of its own, which no process waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class NoThread(RuntimeError):
    """No thread can be started."""


def begin(work: Callable[[], T], name: str = "registry-background") -> Future[T]:
    """Begin work; its result is waited for as long as the caller likes, and the work goes on.

    Raises:
        NoThread: none can be started now.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        raise NoThread(f"no thread can be started: {error}") from None
    return future


async def done(work: Callable[[], T]) -> T:
    """As `begin`, for an event loop. Cancelling stops the waiting, not the work."""
    return await asyncio.wrap_future(begin(work))
