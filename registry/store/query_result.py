"""What a statement answered that somebody typed."""

from __future__ import annotations

from dataclasses import dataclass

from registry.store.sql import Row


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a statement answered. `is_whole` is False if there were more rows than were wanted."""

    columns: tuple[str, ...]
    rows: list[Row]
    is_whole: bool
