"""Files in place are looked at once for all who ask in one round of the event loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from registry.content.round_looks import RoundLooks


class Eyes:
    """Looks at real files, and counts how often."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, path: str) -> os.stat_result:
        self.looks += 1
        return os.lstat(path)


def test_reads_of_one_round_cost_one_look(tmp_path: Path) -> None:
    path, eyes = tmp_path / "config.json", Eyes()
    path.write_text("{}")

    async def read() -> None:
        looks = RoundLooks()
        assert {looks.find_status(str(path), eyes).st_size for _ in range(5)} == {2}

    asyncio.run(read())
    assert eyes.looks == 1


def test_a_round_believes_nothing_of_the_round_before(tmp_path: Path) -> None:
    path, eyes = tmp_path / "config.json", Eyes()

    async def read() -> None:
        looks = RoundLooks()
        for size in range(1, 4):
            path.write_text("x" * size)
            assert looks.find_status(str(path), eyes).st_size == size
            await asyncio.sleep(0)

    asyncio.run(read())
    assert eyes.looks == 3


def test_what_cannot_be_looked_at_is_looked_at_again(tmp_path: Path) -> None:
    path, eyes = tmp_path / "config.json", Eyes()

    async def read() -> None:
        looks = RoundLooks()
        with pytest.raises(FileNotFoundError):
            looks.find_status(str(path), eyes)
        path.write_text("{}")
        assert looks.find_status(str(path), eyes).st_size == 2

    asyncio.run(read())
    assert eyes.looks == 2
