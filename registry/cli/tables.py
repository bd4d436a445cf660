"""Tables for people, and for programs that read lines.

Elsewhere than on a terminal a table is a line for each row, with nothing shortened, left out or
wrapped. On a terminal it is as wide as the terminal: columns that matter less are left out and
named below (`--wide` shows them), text is wrapped, names never are. A table that still does not
fit is printed one row after the other, each column in a line of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from registry.cli.streams import unscreened
from registry.core.text import printable

GAP = "  "
WRAPPED_MIN = 24
"""Columns of the terminal below which it is no use to wrap text into them."""

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `rank` tells which goes first where there is no room: the highest; 0 stays. `wraps`: it is text
    that can go on in the next line. `runs_on`: the last column, which may be longer than the
    terminal is wide, as a path or a URL may.
    """

    title: str
    right: bool = False
    rank: int = 0
    wraps: bool = False
    runs_on: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Row], *, wide: bool = False) -> None:
    """Print a table. `wide`: every column, whole, whatever the width of the terminal is."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if wide or not sys.stdout.isatty():
        _print_lines(columns, cells, _widths(columns, cells))
        return
    width = terminal_width()
    kept, left_out = _choose(columns, cells, width)
    if left_out:
        cells = [[row[place] for place in kept] for row in cells]
    shown = [columns[place] for place in kept]
    widths = _widths(shown, cells)
    excess = _total(widths) - width
    wrapping = next((place for place, each in enumerate(shown) if each.wraps), None)
    if excess <= 0 or shown[-1].runs_on:
        _print_lines(shown, cells, widths)
    elif wrapping is not None and widths[wrapping] - excess >= WRAPPED_MIN:
        widths[wrapping] -= excess
        _print_lines(shown, _wrapped(cells, wrapping, widths[wrapping]), widths)
    else:
        _print_one_by_one(shown, cells)
    if left_out:
        titles = ", ".join(columns[place].title for place in left_out)
        print(f"\nNo room for {titles}: see --wide.")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, the values below each other."""
    pairs = [(name, printable(value)) for name, value in facts]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}{GAP}{value}".rstrip())


def terminal_width() -> int:
    """The columns of the terminal, or COLUMNS."""
    return max(1, shutil.get_terminal_size().columns)


def _choose(columns: Sequence[Column], cells: Sequence[Row], width: int) -> tuple[list[int], ...]:
    """The places of the columns to show, and of those that there is no room for."""
    widths = _widths(columns, cells)
    kept, left_out = list(range(len(columns))), list[int]()
    while kept and not columns[kept[-1]].runs_on:
        if _total([widths[place] for place in kept]) <= width:
            break
        least = max(kept, key=lambda place: columns[place].rank)
        if columns[least].rank == 0:
            break
        kept.remove(least)
        left_out.insert(0, least)
    return kept, sorted(left_out)


def _widths(columns: Sequence[Column], cells: Sequence[Row]) -> list[int]:
    return [
        max([_length(column.title), *(_length(row[place]) for row in cells)])
        for place, column in enumerate(columns)
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _length(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _print_lines(columns: Sequence[Column], cells: Sequence[Row], widths: Sequence[int]) -> None:
    _print_heading(_line([each.title for each in columns], columns, widths))
    for row in cells:
        print(_line(row, columns, widths))


def _line(row: Row, columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        blank = " " * (width - _length(cell))
        parts.append(blank + cell if column.right else cell + blank)
    return GAP.join(parts).rstrip()


def _print_heading(line: str) -> None:
    """A heading is bold on a terminal that can show it, unless nothing is to be coloured."""
    dull = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "")
    if not sys.stdout.isatty() or dull:
        print(line)
    else:
        sys.stdout.flush()
        print(f"\x1b[1m{line}\x1b[0m", file=unscreened(sys.stdout))


def _wrapped(cells: Sequence[Row], place: int, width: int) -> list[Row]:
    """Rows whose text in one column goes on in rows that are empty else."""
    found: list[Row] = []
    for row in cells:
        text = row[place]
        # What is two columns wide counts twice.
        most = width if _length(text) == len(text) else width // 2
        first, *others = textwrap.wrap(text, most, break_on_hyphens=False) or [""]
        found.append([*row[:place], first, *row[place + 1 :]])
        blank = [""] * len(row)
        found += [[*blank[:place], other, *blank[place + 1 :]] for other in others]
    return found


def _print_one_by_one(columns: Sequence[Column], cells: Sequence[Row]) -> None:
    for number, row in enumerate(cells):
        if number:
            print()
        print_facts(zip((each.title for each in columns), row, strict=True))
