"""What a statement answered that somebody typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.store.sql import Row

ANSWER_MAX_BYTES = 256 << 20
"""As much a statement may answer, with some bytes for each value and bytes as hex digits."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a statement answered. `is_whole` is False if there were more rows than were wanted."""

    columns: tuple[str, ...]
    rows: list[Row]
    is_whole: bool


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns; one that repeats gets a number: `id`, `id_2`."""
    found: list[str] = []
    for name in names:
        number, distinct = 1, name
        while distinct in found:
            number += 1
            distinct = f"{name}_{number}"
        found.append(distinct)
    return tuple(found)
