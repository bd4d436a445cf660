"""Tables: as wide as the terminal with names that are whole, and lines for programs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

import pytest

from registry.cli.tables import Column, print_table
from registry.core.records import Owner

OWNER = str(Owner("dynamo", "backend", "generate", 14594360683070792150))
COLUMNS = [
    Column("OWNER"),
    Column("FILES", right=True, rank=1),
    Column("LEASE ENDS", rank=2),
    Column("WORKER", rank=3),
]
ROWS = [
    (OWNER, "3", "2026-01-31T12:00:00.000Z", "gpu-a"),
    ("a/b/c/1/_base", "12", "-", "größe"),
]
Draw = Callable[..., list[str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The lines of a table on a terminal of so many columns."""

    def draw(
        columns: list[Column], rows: list[tuple[str, ...]], width: int, wide: bool = False
    ) -> list[str]:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(os, "environ", {"COLUMNS": str(width), "NO_COLOR": "1"})
        print_table(columns, rows, wide=wide)
        return terminal.getvalue().splitlines()

    return draw


def test_a_table_that_fits_is_drawn_whole(draw: Draw) -> None:
    heading, first, second = draw(COLUMNS, ROWS, 120)
    assert heading.split() == ["OWNER", "FILES", "LEASE", "ENDS", "WORKER"]
    assert first == f"{OWNER}      3  2026-01-31T12:00:00.000Z  gpu-a"
    assert second.split() == ["a/b/c/1/_base", "12", "-", "größe"]


def test_columns_that_matter_less_go_first_and_are_named(draw: Draw) -> None:
    lines = draw(COLUMNS, ROWS, 80)
    assert [line.split() for line in lines] == [
        ["OWNER", "FILES"],
        [OWNER, "3"],
        ["a/b/c/1/_base", "12"],
        [],
        ["No", "room", "for", "LEASE", "ENDS,", "WORKER:", "see", "--wide."],
    ]


@pytest.mark.parametrize("width", range(1, 120, 7))
def test_a_name_is_whole_in_its_line_on_a_terminal_of_any_width(draw: Draw, width: int) -> None:
    lines = draw(COLUMNS, ROWS, width)
    assert sum(OWNER in line for line in lines) == 1
    if width >= len(OWNER) + len("OWNER  "):
        assert all(len(line) <= width for line in lines[:-1])


def test_a_wide_table_has_every_column_whole(draw: Draw) -> None:
    drawn = draw(COLUMNS, ROWS, 40, wide=True)
    assert all("WORKER" in line or "2026" in line or "größe" in line for line in drawn)
    assert len(drawn) == 3


def test_without_a_terminal_nothing_is_wrapped_left_out_or_shortened(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [("x" * 500, "1", "y" * 500, "z z " * 100)]
    print_table([*COLUMNS[:3], Column("DETAIL", wraps=True)], rows)
    heading, line = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["x" * 500, "1", "y" * 500]
    assert line.endswith(("z z " * 100).rstrip())
    assert heading.split()[-1] == "DETAIL"


def test_text_is_wrapped_where_there_is_room_for_it(draw: Draw) -> None:
    columns = [Column("NAME"), Column("DETAIL", wraps=True), Column("N", right=True)]
    lines = draw(columns, [("one", "word " * 20, "7")], 60)
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith("one   word")
    assert lines[1].endswith("  7")
    assert " ".join(lines).count("word") == 20
    assert all(line.startswith("      word") for line in lines[2:])


def test_what_does_not_fit_at_all_is_printed_row_by_row(draw: Draw) -> None:
    columns = [Column("OWNER"), Column("ENTRY"), Column("DETAIL")]
    lines = draw(columns, [(OWNER, "model/_base/config.json", "gone")] * 2, 80)
    assert lines == [
        f"OWNER   {OWNER}",
        "ENTRY   model/_base/config.json",
        "DETAIL  gone",
        "",
        f"OWNER   {OWNER}",
        "ENTRY   model/_base/config.json",
        "DETAIL  gone",
    ]


def test_a_path_at_the_end_may_run_on(draw: Draw) -> None:
    columns = [Column("SIZE", right=True), Column("PATH", runs_on=True)]
    lines = draw(columns, [("2 B", "/" + "p" * 200)], 80)
    assert lines == ["SIZE  PATH", " 2 B  /" + "p" * 200]


def test_wide_letters_take_two_columns(draw: Draw) -> None:
    _, first, second = draw([Column("NAME"), Column("N")], [("模型", "1"), ("abcd", "2")], 80)
    assert (first, second) == ("模型  1", "abcd  2")
