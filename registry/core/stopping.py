"""How the program is told to end, whatever it is doing, and how it does so within a bound.

Process 1 of a container gets only the signals that it handles, so handlers are there before
anything else is loaded. From then on SIGTERM ends the main thread's work as `Stopped`, and SIGINT
as KeyboardInterrupt. Neither reaches a main thread that is inside SQLite or the kernel, and an
exception that is raised within a destructor is lost. So a thread hears of the signals as well: it
breaks off statements that are `interruptible`, and ends the process when that took too long.

The kernel gives a signal to the main thread, if it can. One that waits for a file system that does
not answer never takes it: it stays pending for the process. There the thread finds it, which looks
a few times in a second, and hands it on, for when the wait is over after all.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple, NoReturn, Protocol

ENDS_WITHIN_S = 3.0
"""How long a command may take to end after a signal. What it had not finished is as if it had
been killed: not there, or wholly there."""

SAYING_S = 0.5

LOOK_S = 0.25
"""How often the thread looks for a signal that the main thread does not take."""

ENDING = (signal.SIGTERM, signal.SIGINT)

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


class Bound(NamedTuple):
    """How long the end may take after one of some signals, and how it ends when it took longer."""

    seconds: float
    code: int
    sentence: str
    numbers: tuple[signal.Signals, ...] = ENDING


_came: int | None = None
_running: list[Interruptible] = []
_is_caught = False
_told: int | None = None
"""What Python writes the numbers of signals to; the thread reads them."""
_bound: Bound | None = None
_ends_at = float("inf")
_passing = threading.Lock()
_passed_to = -1


def catch() -> None:
    """Handle SIGTERM and SIGINT from now on. For the main thread, once."""
    global _is_caught
    signal.signal(signal.SIGTERM, _stop)
    _is_caught = True
    signal.set_wakeup_fd(_listen(), warn_on_full_buffer=False)


def release(bound: Bound) -> None:
    """Leave the signals to whoever sets handlers of its own. From now on the process ends within
    this bound after one of them.

    Raises:
        Stopped, KeyboardInterrupt: a signal has come already.
    """
    global _is_caught, _bound
    check()
    _bound = bound
    _is_caught = False


def watch(bound: Bound) -> None:
    """Have a process that has handlers of its own end within the bound. For the main thread."""
    global _bound
    _bound = bound
    signal.set_wakeup_fd(_listen(), warn_on_full_buffer=False)


def end_in_time() -> None:
    """End the process within the bound, counted from the first signal."""
    if _bound is not None:
        end_within(_bound.seconds, _bound.code, _bound.sentence)


@contextmanager
def overhearing() -> Iterator[None]:
    """Hear also what an event loop that runs in the block would alone be told of. For the main
    thread, within the loop."""
    global _passed_to
    if _told is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(_told, warn_on_full_buffer=False)
    with _passing:
        _passed_to = -1 if before == _told else before
    try:
        yield
    finally:
        with _passing:
            _passed_to = -1
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


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
    """End the process after so long, come what may, having said why on standard error. Where it is
    to end before that, this changes nothing."""
    global _ends_at
    ends_at = time.monotonic() + seconds
    if _ends_at <= ends_at:
        return
    _ends_at = ends_at

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


def _listen() -> int:
    """Start the thread. What this gives is what it is to be told of signals by."""
    global _told
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(told, False)
    _told = told
    threading.Thread(target=_hear, args=(heard,), name="registry-signals", daemon=True).start()
    return told


def _hear(heard: int) -> None:
    # What it takes from those that are pending must be blocked, in this thread only.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, signal.SIGHUP))
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    while True:
        try:
            if poll.poll(LOOK_S * 1000):
                numbers = os.read(heard, 64)
                _pass_on(numbers)
            else:
                numbers = _take_pending()
            for number in numbers:
                _note(number)
        except (MemoryError, BlockingIOError):
            continue


def _take_pending() -> bytes:
    """The signal that the main thread has not taken, which is left to it nevertheless."""
    wanted = ENDING if _bound is None else _bound.numbers
    found = signal.sigtimedwait(wanted, 0)
    if found is None:
        return b""
    ident = threading.main_thread().ident
    if ident is not None:
        signal.pthread_kill(ident, found.si_signo)
    return bytes([found.si_signo])


def _pass_on(numbers: bytes) -> None:
    """Tell the event loop."""
    with _passing:
        if _passed_to != -1:
            with suppress(OSError):
                os.write(_passed_to, numbers)


def _note(number: int) -> None:
    global _came
    if not _is_caught:
        if _bound is not None and number in _bound.numbers:
            end_in_time()
        return
    if number not in ENDING:
        return
    _came = number
    for work in list(_running):
        work.interrupt()
    name = signal.Signals(number).name
    end_within(
        ENDS_WITHIN_S,
        exit_code_of(number),
        f"{name} came, and what was going on did not end within {ENDS_WITHIN_S:g} s; it was "
        "broken off.",
    )
