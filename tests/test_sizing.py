"""The sizing table of docs/performance.md follows from the costs that stand above it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from registry.core.policy import DEFAULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
RENEWED_EVERY_S = 20
FILES = 10
MIB = 1 << 20


def tables() -> list[list[list[float]]]:
    """The tables of the section, as numbers: what is none, as words and signs, is left out."""
    section = PAGE.read_text().partition("## How large a service")[2].partition("\n## ")[0]
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", section, re.M):
        lines = [line.strip("|").split("|") for line in table.splitlines()[2:]]
        found.append([[number for cell in line for number in numbers(cell)] for line in lines])
    return found


def numbers(cell: str) -> list[float]:
    found = re.fullmatch(r"\s*([\d.]+)\s*", cell)
    return [float(found[1])] if found else []


COSTS, FLEETS, _ = tables()


@pytest.mark.parametrize("row", FLEETS)
def test_the_table_follows_from_the_costs(row: list[float]) -> None:
    workers, loras, changes, gets, owners, core, commits, written, disk, hours = row
    call, each_owner, attach, detach, get = (cost for (cost,) in COSTS)
    per_worker = 1 + loras
    calls = workers / RENEWED_EVERY_S
    lines = 2 * (2 * FILES + 1)
    ms = calls * (call + each_owner * per_worker) + changes * (attach + detach) + gets * get
    assert owners == workers * per_worker
    assert core == pytest.approx(ms / 10, rel=0.1, abs=0.05)
    assert commits == pytest.approx(calls + 2 * changes, rel=0.1)
    assert written == pytest.approx(commits * 115 * 1024 / MIB, rel=0.1, abs=0.05)
    assert disk == pytest.approx(owners * (130 + FILES * (230 + 180)) / MIB, rel=0.1, abs=0.1)
    full = DEFAULTS.journal_max_rows / (changes * lines) / 3600
    assert hours == pytest.approx(full, rel=0.1)
