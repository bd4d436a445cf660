"""What a statement answered that somebody typed."""

from __future__ import annotations

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
