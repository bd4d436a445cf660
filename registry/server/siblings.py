"""What the worker processes of a service tell each other, by way of their parent.

Each worker speaks with its parent over a pipe, once a second: it says that it lives and what it has
counted, and hears what the others have when somebody asks it for the metrics. One of them leads: it
does what need not be done by each, and what is new of that the others hear. Nothing is shared but
the pipes: no directory, no memory that may be full. A worker whose parent is gone ends.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec

BEAT_S = 1.0
"""How often a worker speaks with its parent."""
OTHERS_WITHIN_S = 2.0

log = logging.getLogger("registry")

Sample = tuple[str, dict[str, str], float]
"""A value of a metric: its name, its labels, and how much."""


class Counts(msgspec.Struct, array_like=True):
    """What a process has counted so far, and what is so now."""

    totals: list[Sample] = []
    gauges: list[Sample] = []


class Beat(msgspec.Struct, array_like=True):
    """What a worker says. `news` is what is new of a leader's work, `heard` the number of what it
    has heard of that."""

    is_ready: bool
    counts: Counts
    asks: bool
    news: str | None = None
    heard: int = 0

    def encoded(self) -> bytes:
        return _encode(self)

    @staticmethod
    def decoded(message: bytes) -> Beat:
        return _beats.decode(message)


class Others(msgspec.Struct, array_like=True):
    """What a worker hears: how often a worker was replaced, and, if it asked, what the other
    processes have counted, those that are gone included; whether it leads, and what is new of the
    leader's work, with its number."""

    restarts: int = 0
    counts: list[Counts] = []
    leads: bool = False
    news: str | None = None
    number: int = 0

    def encoded(self) -> bytes:
        return _encode(self)

    @staticmethod
    def decoded(message: bytes) -> Others:
        return _others.decode(message)


_beats = msgspec.json.Decoder(Beat)
_others = msgspec.json.Decoder(Others)
_encode = msgspec.json.Encoder().encode


class Parent:
    """The parent of this worker process. Safe in any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._answered = threading.Condition()
        self._answers = 0
        self._others = Others()
        self.is_ready = False
        self.leads = False
        """Whether this worker is the one that does what need not be done by each."""
        self.counts: Callable[[], Counts] = Counts
        self.on_news: Callable[[str], None] = lambda _: None
        """Called in a thread with what is new of the leader's work."""
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._heard = 0

    def start(self) -> None:
        """Speak with it from now on."""
        threading.Thread(target=self._speak, name="registry-parent", daemon=True).start()

    def be_ready(self) -> None:
        """Say at once that this worker serves."""
        self.is_ready = True
        self._asked.put(None)

    def tell(self, news: str) -> None:
        """Let the others know what is new of this leader's work. Only the last one counts."""
        self._news.put(news)

    def others(self) -> Others:
        """What the other processes have counted until about a second ago; what is known, if the
        parent does not answer in time."""
        with self._answered:
            before = self._answers
            self._asked.put(None)
            self._answered.wait_for(lambda: self._answers > before, OTHERS_WITHIN_S)
            return self._others

    def _speak(self) -> None:
        try:
            while True:
                asks = self._is_asked()
                beat = Beat(self.is_ready, self.counts(), asks, self._last_news(), self._heard)
                self._pipe.send_bytes(beat.encoded())
                others = Others.decoded(self._pipe.recv_bytes())
                self.leads = others.leads
                if others.news is not None and not others.leads:
                    self.on_news(others.news)
                self._heard = others.number
                if asks:
                    with self._answered:
                        self._others = others
                        self._answers += 1
                        self._answered.notify_all()
        except (EOFError, OSError):
            log.error("the parent process is gone; this worker stops")
            os.kill(os.getpid(), signal.SIGTERM)

    def _last_news(self) -> str | None:
        news = None
        while not self._news.empty():
            news = self._news.get_nowait()
        return news

    def _is_asked(self) -> bool:
        try:
            self._asked.get(timeout=BEAT_S)
        except queue.Empty:
            return False
        return True


def added(some: list[Sample], others: list[Sample]) -> list[Sample]:
    """Values added up by name and labels, in the order in which they first come."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    for name, labels, value in (*some, *others):
        key = (name, tuple(sorted(labels.items())))
        before = found.get(key)
        found[key] = (name, labels, value + (0.0 if before is None else before[2]))
    return list(found.values())
