"""What a fetch takes at most, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

from registry.errors import Invalid

DEADLINE_MAX_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What is taken at most, whatever is advertised, and how long it may take."""

    file_max_bytes: int = 512 << 20
    total_max_bytes: int = 4 << 30
    files_max: int = 10_000
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s <= DEADLINE_MAX_S:
            raise Invalid(
                f"The deadline is {self.deadline_s!r} s; it must be more than 0 and at most "
                f"{DEADLINE_MAX_S:g} s."
            )
