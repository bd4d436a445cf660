"""Several processes that serve one address: the parent that starts, watches and replaces them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import TYPE_CHECKING

from registry.config import Settings
from registry.core import logs, stopping
from registry.server.siblings import Beat, Counts, Others, Parent, added

LOOK_S = 0.5
"""How often the parent looks at its workers. What they do not do is counted in looks, not in
seconds: while the machine or the parent itself stood still, nobody was silent."""
SILENT_LOOKS = 20
SILENT_LOOKS_AT_START = 120
PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 30.0
"""The bounds of the pause before a worker is replaced; it doubles with each that lived shortly."""
STEADY_S = 60.0
"""Who has lived for so long does not count among those."""
STARTS_MAX = 5
"""If no worker serves, and in each place so many in a row ended before they did, none ever will."""
COULD_NOT_START = 3
"""The exit code of a worker that says itself why it cannot serve."""

HINTS = {
    signal.SIGKILL: " (by somebody, or by the kernel when memory ran out)",
    signal.SIGBUS: " (a file in use was cut short, or its file system is full)",
}

if TYPE_CHECKING:
    from registry.server.http1.watch import Limits

_spawn = multiprocessing.get_context("spawn")
multiprocessing.allow_connection_pickling()

log = logging.getLogger("registry")


def _work(pipe: Connection, listener: socket.socket, settings: Settings, limits: Limits) -> None:
    """The whole life of a worker process."""
    # Ctrl-C at a terminal reaches every process; the parent ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    logs.set_up(settings.log_level, settings.log_format)
    parent = Parent(pipe)
    parent.start()
    from registry.server.process import serve_as_worker

    serve_as_worker(settings, limits, listener, parent)


def _end(_number: int, _frame: FrameType | None) -> None:
    """Nothing was accepted yet, or all of it is answered."""
    logs.flush()
    os._exit(0)


# In the parent


class _Place:
    """One of the workers, and those before it in its place."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.process: SpawnProcess | None = None
        self.counts = Counts()
        self.is_ready = False
        self.hung_up = False
        """Whether it is to be told of a SIGHUP when it is ready."""
        self.silent_looks = 0
        self.is_silent = True
        self.short_lives = 0
        self.starts = 0
        """How many in a row ended before they served."""
        self.started_at = 0.0
        self.due_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def start(self) -> None:
        """Start a process.

        Raises:
            OSError: the system has none to give.
        """
        self.started_at = time.monotonic()
        self.is_ready, self.hung_up = False, False
        self.silent_looks, self.is_silent = 0, True
        ours, theirs = _spawn.Pipe()
        with theirs:
            workers = self._workers
            arguments = (theirs, workers.listener, workers.settings, workers.limits)
            self.process = _spawn.Process(target=_work, args=arguments)
            try:
                self.process.start()
            except BaseException:
                self.process = None
                ours.close()
                raise
        listening = threading.Thread(target=self._listen, args=(ours, self.process), daemon=True)
        listening.start()

    def _listen(self, pipe: Connection, process: SpawnProcess) -> None:
        """Hear one process out, until it ends."""
        with pipe, suppress(EOFError, OSError):
            while True:
                beat = Beat.decoded(pipe.recv_bytes())
                with self._workers.counting:
                    if self.process is not process:
                        return
                    self.counts = beat.counts
                    self.silent_looks, self.is_silent = 0, False
                    became_ready = beat.is_ready and not self.is_ready
                    self.is_ready = beat.is_ready
                if became_ready:
                    self._workers.note_ready()
                pipe.send_bytes(self._workers.told(self, beat).encoded())

    def hang_up(self) -> None:
        """Have it read again what SIGHUP is for, as soon as it can."""
        if self.is_ready and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)
            self.hung_up = False
        else:
            self.hung_up = True

    def kill_if_silent(self) -> str | None:
        """Kill a process that has said nothing for too long; what is to be said of it."""
        self.silent_looks += 1
        limit = SILENT_LOOKS_AT_START if self.is_silent else SILENT_LOOKS
        if self.process is None or self.silent_looks <= limit:
            return None
        self.process.kill()
        self.process.join()
        return f"did not answer for {limit * LOOK_S:g} s and was killed"

    def end(self) -> None:
        """Forget a process that has ended."""
        lived = time.monotonic() - self.started_at
        self.short_lives = 1 if lived > STEADY_S else self.short_lives + 1
        self.starts = 0 if self.is_ready else self.starts + 1
        self.due_at = time.monotonic() + self.pause_s
        self.is_ready = False
        if self.process is not None:
            self.process.close()
            self.process = None

    @property
    def pause_s(self) -> float:
        """How long its place stays empty now."""
        return min(PAUSE_MIN_S * 2.0 ** min(self.short_lives - 1, 10), PAUSE_MAX_S)


class Workers:
    """The parent of the worker processes.

    One that ends by itself is replaced, after a pause that doubles up to 30 s as long as workers
    live for less than a minute. The log says of which cause it ended. When none ever could serve,
    and each place has seen five, or one has said why it cannot, the service ends.

    SIGHUP is passed on if the workers can `reload`, and ends the service otherwise. When it ends,
    nobody can connect any more, workers answer what they have accepted, and those that do not end
    within `stop_s` are killed.

    `when_ready` is called once, when the first of them serves.
    """

    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        listener: socket.socket,
        *,
        stop_s: float,
        reload: bool,
        when_ready: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.limits = limits
        self.listener = listener
        self.failed = False
        """Whether the service ended because no worker could start."""
        self.interrupted = False
        """Whether SIGINT ended the service."""
        self.restarts = 0
        self._stop_s = stop_s
        self._end = stopping.Bound(stop_s + 1, 2, "the workers could not be ended")
        self._reload = reload
        self._when_ready = when_ready
        self._places = [_Place(self) for _ in range(settings.workers)]
        self._have_served = False
        self._has_told = False
        self._waker: int | None = None
        """What is written to wakes `run`."""
        self._gone = Counts()
        self._leader: _Place | None = None
        self._news: str | None = None
        self._news_number = 0
        self.counting = threading.Lock()
        """Held where it matters which process counts."""
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._is_ending = False

    def run(self) -> None:
        """Serve until a signal ends it, or until it is plain that no worker can start."""
        looked_at = time.monotonic()
        with self._woken() as woken:
            while not self._is_ending:
                for place in self._places:
                    self._fill(place)
                ends = [each.process.sentinel for each in self._places if each.process is not None]
                wait([woken, *ends], LOOK_S)
                self._handle_signals(woken)
                if self._have_served and not self._has_told:
                    self._has_told = True
                    self._when_ready()
                is_time = time.monotonic() - looked_at >= LOOK_S
                looked_at = time.monotonic() if is_time else looked_at
                for place in self._places:
                    self._look(place, is_time)
            stopping.end_within(*self._end[:3])
            self._end_all()

    def told(self, place: _Place, beat: Beat) -> Others:
        """What a worker hears. For any thread."""
        with self.counting:
            if self._leader is None or not self._leader.is_ready:
                self._leader = place if place.is_ready else None
            if beat.news is not None:
                self._news, self._news_number = beat.news, self._news_number + 1
            others = Others(
                self.restarts,
                leads=place is self._leader,
                news=None if beat.heard == self._news_number else self._news,
                number=self._news_number,
            )
            if beat.asks:
                found = [each.counts for each in self._places if each is not place]
                others.counts = [self._gone, *found]
            return others

    def note_ready(self) -> None:
        """A worker serves. For any thread."""
        with self.counting:
            self._have_served = True
            if self._waker is not None:
                with suppress(BlockingIOError):
                    os.write(self._waker, b"\0")

    def _fill(self, place: _Place) -> None:
        if place.process is not None or self._is_ending or time.monotonic() < place.due_at:
            return
        self.restarts += place.short_lives > 0
        try:
            place.start()
        except OSError as error:
            self._note_end(place, f"could not be started: {error.strerror}", None)

    def _look(self, place: _Place, is_time: bool) -> None:
        process = place.process
        if process is None or self._is_ending:
            return
        if place.hung_up and place.is_ready:
            place.hang_up()
        cause = place.kill_if_silent() if is_time else None
        if cause is None and process.exitcode is not None:
            cause = _cause_of(process.exitcode)
        if cause is not None:
            self._note_end(place, cause, process.exitcode)

    def _note_end(self, place: _Place, cause: str, exit_code: int | None) -> None:
        pid = place.pid
        with self.counting:
            place.end()
            self._gone = Counts(added(self._gone.totals, place.counts.totals))
            place.counts = Counts()
        said_why = exit_code == COULD_NOT_START and not self._have_served
        if said_why or all(each.starts >= STARTS_MAX for each in self._places):
            self.failed = self._is_ending = True
            log.critical(
                "worker %s %s. No worker can start, so the service ends; the lines before say why, "
                "if they could",
                pid,
                cause,
            )
            return
        log.error(
            "worker %s %s; another one starts in %g s",
            pid,
            cause,
            place.pause_s,
            extra=logs.fields(pid=pid, exit_code=exit_code, restarts=self.restarts),
        )

    # Signals

    @contextmanager
    def _woken(self) -> Iterator[int]:
        """Takes signals in, and gives what can be waited for to hear of one."""
        stopping.release(self._end)
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        self._waker = told
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.put(number))
        try:
            yield heard
        finally:
            signal.set_wakeup_fd(-1)
            with self.counting:
                self._waker = None
            os.close(told)
            os.close(heard)

    def _handle_signals(self, woken: int) -> None:
        if wait([woken], 0):
            os.read(woken, 1024)
        while not self._signals.empty():
            number = self._signals.get()
            if number == signal.SIGHUP and self._reload:
                for place in self._places:
                    place.hang_up()
            else:
                self.interrupted = self.interrupted or number == signal.SIGINT
                self._is_ending = True

    # The end

    def _end_all(self) -> None:
        self.listener.close()
        running = [each.process for each in self._places if each.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._stop_s
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.error("worker %s did not stop in time and was killed", process.pid)
                process.kill()
                process.join()
            process.close()


def _cause_of(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended by itself with exit code {exit_code}"
    try:
        number = signal.Signals(-exit_code)
    except ValueError:
        return f"was killed by signal {-exit_code}"
    return f"was killed by {number.name}{HINTS.get(number, '')}"
