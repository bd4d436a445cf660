"""What a sweep did, or would do."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.records import Owner, OwnerState


@dataclass(frozen=True, slots=True)
class Ending:
    """An owner that is to be ended, and why."""

    owner: Owner
    state: OwnerState
    reason: str


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did. `waiting` counts the owners that it left alone although their lease and
    the grace are over, and `paused` says why."""

    skipped: bool = False
    ended: tuple[Ending, ...] = ()
    released: int = 0
    more: bool = False
    paused: str | None = None
    waiting: int = 0
