"""One thread that writes: it commits whatever arrived during the last commit, all at once.

A lone caller waits for nothing but its own commit; many callers share one. There is no timer: the
thread is handed what came in as soon as an event loop has gone round once without more coming.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from registry.errors import Busy, RegistryError, StorageUnavailable
from registry.store.engine import Connection, Engine

Item = TypeVar("Item")
Out = TypeVar("Out")
Operation = Callable[[Connection, int, Sequence[Item]], "Sequence[Out | RegistryError]"]

BATCH_ITEMS = 512
BATCH_ROWS = 20_000
BATCH_BYTES = 64 << 20
WAITING_ROWS_MAX = 500_000
"""Bounds the memory of what waits: about 1 KiB for a row."""
GATHERED_MAX = 64
GATHERED_FOR_S = 0.005
"""What comes in without a break is handed over after so many items, or so much time."""

SHORTAGE_PAUSE_S = 0.05

_NO_MEMORY = (
    "The registry ran out of memory while it wrote. What was asked for may have been done or not; "
    "repeat it. If that stays so, give the service more memory."
)

log = logging.getLogger("registry.db")


_UNKNOWN: Any = object()
"""The outcome of what ended for want of memory, perhaps only after it was committed."""


@dataclass(slots=True)
class _Submission:
    """An item that somebody waits for, with the operation that writes it."""

    operation: Operation[Any, Any]
    item: Any
    rows: int
    size: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    outcome: Any = _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Failed:
    """An exception as an outcome, apart from refusals, which are values."""

    error: BaseException


@dataclass(slots=True)
class WriterStats:
    """What the writer did since it started."""

    batches: int = 0
    items: int = 0
    failed_batches: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of the items of one transaction: how many had which (operation, outcome).

    An outcome is `ok`, the code of a refusal, or `internal` for a mistake of ours.
    """

    outcomes: Mapping[tuple[str, str], int]
    items: int
    seconds: float


class Writer:
    """Runs list operations of the store in group-committed transactions.

    At most `queue_max` items wait, and 500,000 rows; more is refused with Busy. `on_batch` is told
    of every transaction, in the writer's thread, when its items were answered.
    """

    def __init__(
        self,
        database: Engine,
        *,
        queue_max: int = 4096,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._database = database
        self._queue_max = queue_max
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._coming: dict[asyncio.AbstractEventLoop, list[_Submission]] = {}
        """What each event loop is about to hand over."""
        self._thread = threading.Thread(target=self._work, name="registry-writer", daemon=True)
        self._closed = False
        self._waiting_rows = 0
        self._closing = threading.Lock()
        """Held while an item or the end is queued, so that nothing is queued behind the end."""
        self.stats = WriterStats()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Items that the thread has not begun with."""
        return self._queue.qsize() + sum(map(len, self._coming.values()))

    async def submit(
        self,
        operation: Operation[Item, Out],
        item: Item,
        *,
        rows: int = 1,
        size: int = 0,
    ) -> Out:
        """Run an operation on an item; its outcome, once it is on the disk.

        `rows` and `size` (bytes) tell how much the item writes, to bound a batch. The write is
        done even if the caller is cancelled while it waits.

        Raises:
            Busy: the queue is full, the database stays locked, or the writer is stopping.
            StorageUnavailable: the database cannot be written.
            RegistryError: the operation's refusal.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Out] = loop.create_future()
        with self._closing:
            if self._closed:
                raise Busy("The registry is stopping; nothing was written. Try again shortly.")
            if self.waiting >= self._queue_max or (
                self._waiting_rows and self._waiting_rows + rows > WAITING_ROWS_MAX
            ):
                raise Busy("Too many writes are waiting; nothing was written. Try again shortly.")
            self._waiting_rows += rows
            coming = self._coming.setdefault(loop, [])
            coming.append(_Submission(operation, item, rows, size, loop, future))
            if len(coming) == 1:
                loop.call_soon(self._hand_over, loop, 1, loop.time() + GATHERED_FOR_S)
        return await future

    def _hand_over(self, loop: asyncio.AbstractEventLoop, seen: int, until: float) -> None:
        """Queue what came in, unless more has come since `seen` items were seen: of callers that
        come together, a few singles would each take a commit of their own."""
        with self._closing:
            coming = self._coming.get(loop, [])
            if seen < len(coming) < GATHERED_MAX and loop.time() < until:
                loop.call_soon(self._hand_over, loop, len(coming), until)
                return
            self._coming.pop(loop, None)
            for submission in coming:
                self._queue.put(submission)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what was accepted, then stop."""
        with self._closing:
            self._closed = True
            for coming in self._coming.values():
                for submission in coming:
                    self._queue.put(submission)
            self._coming.clear()
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # The thread

    def _work(self) -> None:
        stopping = False
        while not stopping:
            first = self._queue.get()
            if first is None:
                break
            batch = [first]
            transactions: list[tuple[Sequence[_Submission], float]] = []
            try:
                stopping = self._gather(batch)
                with self._closing:
                    self._waiting_rows -= sum(submission.rows for submission in batch)
                transactions = self._run(batch)
            except MemoryError:
                pass  # Who has no outcome yet is told so, and the next batch may fit.
            _answer(batch)
            for submissions, seconds in transactions:
                self._tell(submissions, seconds)

    def _gather(self, batch: list[_Submission]) -> bool:
        """Add what is waiting, up to the bounds of a batch. True when the writer is to stop."""
        rows, size = batch[0].rows, batch[0].size
        while len(batch) < BATCH_ITEMS and rows < BATCH_ROWS and size < BATCH_BYTES:
            try:
                submission = self._queue.get_nowait()
            except queue.Empty:
                return False
            if submission is None:
                return True
            batch.append(submission)
            rows += submission.rows
            size += submission.size
        return False

    def _run(self, batch: Sequence[_Submission]) -> list[tuple[Sequence[_Submission], float]]:
        """One transaction for the batch; if that fails, one for each, so that a bad item is
        alone in failing. Answers each transaction's items and how long it took."""
        started = time.perf_counter()
        try:
            outcomes: list[Any] = []
            with self._database.write() as conn:
                for operation, submissions in itertools.groupby(batch, key=attrgetter("operation")):
                    items = [submission.item for submission in submissions]
                    found = operation(conn, conn.now, items)
                    if len(found) != len(items):
                        raise ValueError(f"{operation} has {len(found)} outcomes for {len(items)}")
                    outcomes += found
        except (Busy, StorageUnavailable) as error:
            outcomes = [_Failed(error)] * len(batch)
        except BaseException as error:
            self.stats.failed_batches += 1
            if len(batch) > 1:
                return [each for submission in batch for each in self._run([submission])]
            outcomes = [_UNKNOWN if isinstance(error, MemoryError) else _Failed(error)]
        seconds = time.perf_counter() - started
        self.stats.batches += 1
        self.stats.items += len(batch)
        for submission, outcome in zip(batch, outcomes, strict=True):
            submission.outcome = outcome
        return [(batch, seconds)]

    def _tell(self, submissions: Sequence[_Submission], seconds: float) -> None:
        if self._on_batch is None:
            return
        try:
            self._on_batch(Batch(Counter(map(_label, submissions)), len(submissions), seconds))
        except Exception:
            log.exception("a batch of writes could not be counted")  # Writing goes on.


def _label(submission: _Submission) -> tuple[str, str]:
    """The operation of a submission, and what became of it."""
    operation = getattr(submission.operation, "__name__", "other").strip("_")
    outcome = (
        submission.outcome.error if isinstance(submission.outcome, _Failed) else submission.outcome
    )
    if outcome is _UNKNOWN:
        return operation, Busy.code
    if isinstance(outcome, RegistryError):
        return operation, outcome.code
    return operation, "internal" if isinstance(submission.outcome, _Failed) else "ok"


def _answer(batch: Sequence[_Submission]) -> None:
    """Hand every outcome to its caller, waking each event loop once. Nobody is to wait for ever:
    where there is no memory even for that, there is in a moment."""
    while True:
        try:
            loops: dict[asyncio.AbstractEventLoop, list[_Submission]] = {}
            for submission in batch:
                loops.setdefault(submission.loop, []).append(submission)
            for loop, submissions in loops.items():
                with suppress(RuntimeError):  # It is closed: nobody waits there any more.
                    loop.call_soon_threadsafe(_resolve, submissions)
        except MemoryError:
            time.sleep(SHORTAGE_PAUSE_S)
        else:
            return


def _resolve(submissions: Sequence[_Submission]) -> None:
    """In the event loop: wake everybody who was not woken before."""
    try:
        for submission in submissions:
            if not submission.future.done():
                _wake(submission)
    except MemoryError:
        asyncio.get_running_loop().call_later(SHORTAGE_PAUSE_S, _resolve, submissions)


def _wake(submission: _Submission) -> None:
    if submission.outcome is _UNKNOWN:
        submission.future.set_exception(Busy(_NO_MEMORY))
    elif isinstance(submission.outcome, _Failed):
        submission.future.set_exception(submission.outcome.error)
    elif isinstance(submission.outcome, RegistryError):
        submission.future.set_exception(submission.outcome)
    else:
        submission.future.set_result(submission.outcome)
