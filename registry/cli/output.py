"""Printing beside tables: JSON, notes, questions, progress."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from registry.cli.streams import unscreened
from registry.cli.tables import terminal_width
from registry.cli.text import json_plain, short_checksum
from registry.core.text import printable
from registry.errors import Usage

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_AFTER_S = 1.0


def print_json(answer: object) -> None:
    """Print an answer of the service as indented JSON."""
    print(json_plain(answer, 2))


def print_note(sentence: str) -> None:
    """Say something beside the output, on standard error."""
    print(printable(sentence), file=sys.stderr)


def confirm(question: str) -> None:
    """Go on only if whoever gave the command says yes.

    Raises:
        Usage: there is no terminal to ask at.
        typer.Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise Usage(f"{question} There is no terminal to ask at: say --yes.")
    typer.confirm(printable(question), abort=True, err=True)


def shown_checksum(checksum: str) -> str:
    """A checksum for a table: short on a terminal, whole elsewhere."""
    return short_checksum(checksum) if sys.stdout.isatty() else checksum


@contextmanager
def warnings_shown(*, as_json: bool = False) -> Iterator[None]:
    """Warnings that the log gets meanwhile are said on standard error.

    With `as_json` they are said once the block has ended well: where it fails, a program finds the
    problem there, one JSON object and nothing else.
    """
    said: list[str] = []
    handler = _Told(said.append if as_json else print_note)
    log = logging.getLogger("registry")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
    for sentence in said:
        print_note(sentence)


class _Told(logging.Handler):
    """Hands every warning on as a sentence."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(f"warning: {record.getMessage()}")


class ProgressBar:
    """A bar on standard error while work goes on, if that is a terminal.

    It appears after a second, so that quick work leaves no trace. Call it as `OnProgress`; what it
    is told are bytes, or else `counted`.
    """

    def __init__(self, counted: str | None = None) -> None:
        self._counted = counted
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._activity = ""
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _new_bar(self._counted)
            self._timer = threading.Timer(PROGRESS_AFTER_S, self._bar.start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None and self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._bar.stop()

    def __call__(self, activity: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if self._task is None or activity != self._activity:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._activity = activity
            self._task = self._bar.add_task(activity)
        self._bar.update(self._task, completed=done, total=total)


def _new_bar(counted: str | None) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    amount = [DownloadColumn(), TransferSpeedColumn()]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(amount if counted is None else [MofNCompleteColumn(), TextColumn(counted)]),
        console=Console(file=unscreened(sys.stderr), width=terminal_width()),
        transient=True,
        # What is written meanwhile would go around the screen.
        redirect_stdout=False,
        redirect_stderr=False,
    )
