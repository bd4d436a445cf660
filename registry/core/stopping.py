"""How the program is told to end, whatever it is doing, and how it does so within a bound.

Process 1 of a container gets only the signals that it handles, so handlers are there before
anything else is loaded. From then on SIGTERM ends the main thread's work as `Stopped`, and SIGINT
as KeyboardInterrupt. Neither reaches a main thread that is inside SQLite or the kernel, and an
exception that is raised within a destructor is lost. So a thread hears of the signals as well: it
breaks off statements that are `interruptible`, and ends the process when that took too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol

ENDS_WITHIN_S = 3.0
"""How long a command may take to end after a signal. What it had not finished is as if it had
been killed: not there, or wholly there."""

SAYING_S = 0.5

SAID_AFTER_S = 1.5
"""Who waits for longer than this says what for."""


class Stopped(BaseException):
    """SIGTERM came."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.number = number
        super().__init__(f"ended by {signal.Signals(number).name}")


class Interruptible(Protocol):
    """What can be told, by any thread, to break off: a connection of SQLite's."""

    def interrupt(self) -> None: ...


_came: int | None = None
_running: list[Interruptible] = []
_is_caught = False


def catch() -> None:
    """Handle SIGTERM and SIGINT from now on. For the main thread, once."""
    global _is_caught
    signal.signal(signal.SIGTERM, _stop)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    _is_caught = True
    threading.Thread(target=_hear, args=(heard,), name="registry-signals", daemon=True).start()


def release() -> None:
    """Leave it to whoever sets handlers of its own that the process ends in time.

    Raises:
        Stopped, KeyboardInterrupt: a signal has come already.
    """
    global _is_caught
    check()
    if _is_caught:
        _is_caught = False
        signal.set_wakeup_fd(-1)


def check() -> None:
    """To be called between steps.

    Raises:
        Stopped, KeyboardInterrupt: a signal has come.
    """
    if _came is None:
        return
    if _came == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(_came)


@contextmanager
def interruptible(work: Interruptible) -> Iterator[None]:
    """A signal that ends the program breaks off what `work` is doing in this block.

    Raises:
        Stopped, KeyboardInterrupt: a signal has come, in place of what it made the block raise.
    """
    check()
    _running.append(work)
    try:
        yield
    except Exception:
        check()
        raise
    finally:
        _running.remove(work)


@contextmanager
def telling(tell: Callable[[str], None], sentence: str) -> Iterator[None]:
    """Say what is waited for, once, if the block takes longer than a second and a half."""
    timer = threading.Timer(SAID_AFTER_S, tell, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_within(seconds: float, code: int, sentence: str) -> None:
    """End the process after so long, come what may, having said why on standard error."""

    def say() -> None:
        with suppress(OSError):  # Nobody hears it.
            os.write(2, f"error: {sentence}\n".encode())

    def end() -> None:
        # A pipe that nobody reads is not waited for.
        with suppress(RuntimeError, MemoryError):
            saying = threading.Thread(target=say, daemon=True)
            saying.start()
            saying.join(SAYING_S)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # No thread is to be had. The kernel ends it then, without a word.
        signal.setitimer(signal.ITIMER_REAL, seconds)


def exit_code_of(number: int) -> int:
    """143 for SIGTERM and 130 for SIGINT, which is what a shell makes of them. For a service it is
    no failure to be ended by SIGTERM: 0."""
    return 0 if number == signal.SIGTERM and sys.argv[1:2] == ["serve"] else 128 + number


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    global _came
    _came = number
    raise Stopped(number)


def _hear(heard: int) -> None:
    global _came
    while _is_caught:
        for number in os.read(heard, 64):
            if number not in (signal.SIGTERM, signal.SIGINT) or not _is_caught:
                continue
            _came = number
            for work in list(_running):
                work.interrupt()
            name = signal.Signals(number).name
            end_within(
                ENDS_WITHIN_S,
                exit_code_of(number),
                f"{name} came, and what was going on did not end within {ENDS_WITHIN_S:g} s; it "
                "was broken off.",
            )
