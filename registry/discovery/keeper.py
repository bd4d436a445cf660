"""A thread that works in a store, so that one that hangs holds up nobody else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from registry.errors import DiscoveryUnavailable

T = TypeVar("T")

ANSWER_MAX_S = 10.0
"""How long a caller waits for what it asked for, and `close` for the thread."""

IDLE_S = 1.0


class Keeper:
    """Does one thing after the other in a thread of its own, and something regularly in between.

    The thread is there while there is something to do.

    Args:
        name: what it works in, as messages call it.
        regularly: done every `every_s`; it says whether that is to go on.
        hint: what to do when it does not answer.
    """

    def __init__(
        self,
        name: str,
        regularly: Callable[[], bool],
        every_s: float,
        hint: str = "Check its file system.",
    ) -> None:
        self._name = name
        self._hint = hint
        self._regularly = regularly
        self._every_s = every_s
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._process = os.getpid()

    def do(self, job: Callable[[], T]) -> T:
        """What a job returns or raises.

        Raises:
            DiscoveryUnavailable: it is not done after 10 s; what had begun may be done yet. Or
                this process is a child of the one that this belongs to.
        """
        if os.getpid() != self._process:
            raise DiscoveryUnavailable(
                f"{self._name} was opened by process {self._process}; open it in this one."
            )
        future: Future[T] = Future()
        with self._changing:
            self._jobs.put((future, job))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="registry-discovery", daemon=True
                )
                self._thread.start()
        try:
            return future.result(ANSWER_MAX_S)
        except TimeoutError:
            if future.done():
                raise
        begun = "may be done yet" if not future.cancel() else "was not done"
        raise DiscoveryUnavailable(
            f"{self._name} does not answer within {ANSWER_MAX_S:g} s; what was asked {begun}. "
            f"{self._hint}"
        )

    def close(self) -> None:
        """Do nothing regularly any more. Waits for what is being done, 10 s at most."""
        self._closing.set()
        with self._changing:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._jobs.put((Future(), lambda: None))
            thread.join(ANSWER_MAX_S)

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while True:
            self._do_next(due - time.monotonic())
            if time.monotonic() >= due or self._closing.is_set():
                goes_on = not self._closing.is_set() and self._regularly()
                if not goes_on and self._ended():
                    return
                due = time.monotonic() + self._every_s

    def _do_next(self, wait_s: float) -> None:
        try:
            future, job = self._jobs.get(timeout=max(0.0, wait_s))
        except Empty:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def _ended(self) -> bool:
        """Whether there is nothing to do any more. Who comes next starts another thread."""
        with self._changing:
            if self._jobs.empty():
                self._thread = None
            return self._thread is None
