"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class OnProgress(Protocol):
    """Called now and then during long work, with bytes done and bytes in all."""

    def __call__(self, activity: str, done: int, total: int) -> None: ...


class Tally:
    """Adds up the parts of one activity and reports their sum."""

    def __init__(self, activity: str, total: int, on_progress: OnProgress | None) -> None:
        self._activity = activity
        self._total = total
        self._on_progress = on_progress
        self._finished = 0

    def part(self, done: int) -> None:
        """The part at work now has `done` bytes behind it."""
        if self._on_progress is not None:
            self._on_progress(self._activity, self._finished + done, self._total)

    def finish(self, size: int) -> None:
        """The part at work is complete with `size` bytes."""
        self._finished += size
        self.part(0)


class Tallies:
    """As `Tally`, for parts that are at work at the same time."""

    def __init__(self, activity: str, total: int, on_progress: OnProgress | None) -> None:
        self._activity = activity
        self._total = total
        self._on_progress = on_progress
        self._done: dict[str, int] = {}

    def part(self, name: str) -> Callable[[int], None]:
        """What a part calls with the number of bytes that it has behind it."""

        def note(done: int) -> None:
            self._done[name] = done
            if self._on_progress is not None:
                self._on_progress(self._activity, sum(self._done.values()), self._total)

        return note
