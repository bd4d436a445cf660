"""Printing for people and for programs.

On a terminal, tables are drawn; elsewhere they are plain lines that can be searched and cut, with
nothing shortened.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from registry.cli.streams import unscreened
from registry.cli.text import json_plain, short_checksum
from registry.core.records import printable
from registry.errors import Usage

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_AFTER_S = 1.0
WIDTH_MIN = 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    right: bool = False


def print_json(answer: object) -> None:
    """Print an answer of the service as indented JSON."""
    print(json_plain(answer, 2))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; on a terminal drawn to its width, elsewhere one line for each row."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_drawn(columns, cells)
    else:
        _print_plain(columns, cells)


def _print_drawn(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        # Text, because a cell may hold what looks like markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(file=unscreened(sys.stdout), width=terminal_width()).print(table)


def _print_plain(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


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


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, the values below each other."""
    pairs = [(name, printable(value)) for name, value in facts]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {value}")


def terminal_width() -> int:
    """The columns of the terminal, or COLUMNS; at least so many that a table can be drawn."""
    return max(WIDTH_MIN, shutil.get_terminal_size().columns)


def shown_checksum(checksum: str) -> str:
    """A checksum for a table: short on a terminal, whole elsewhere."""
    return short_checksum(checksum) if sys.stdout.isatty() else checksum


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Warnings that the log gets meanwhile are said on standard error."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("registry")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class ProgressBar:
    """A bar on standard error while work goes on, if that is a terminal.

    It appears after a second, so that quick work leaves no trace. Call it as `OnProgress`.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._activity = ""
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _new_bar()
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


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(file=unscreened(sys.stderr), width=terminal_width()),
        transient=True,
        # What is written meanwhile would go around the screen.
        redirect_stdout=False,
        redirect_stderr=False,
    )
