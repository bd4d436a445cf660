"""What sweepers remember in common, kept in the settings table (S10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from registry.store.engine import Connection
from registry.store.ops.settings_table import write_variables


@dataclass(slots=True)
class SweepState:
    """The sweepers' common memory, kept in the settings table."""

    last_sweep_at: int | None
    expiry_floor_at: int
    brake_engaged_at: int | None
    brake_leased: int
    brake_released: bool


class LeaseCounts(NamedTuple):
    """Owners with a lease: all, those that lapsed, those whose grace is over as well, and those of
    them that the floor lets expire; owners past their drain deadline; and owners with a time that
    cannot be yet."""

    leased: int
    lapsed: int
    overdue: int
    expirable: int
    overdrained: int
    ahead: int


def state_of(variables: Mapping[str, str]) -> SweepState:
    """What the last sweep left in the settings table."""

    def number(name: str) -> int | None:
        return int(variables[name]) if name in variables else None

    return SweepState(
        last_sweep_at=number("last_sweep_at"),
        expiry_floor_at=number("expiry_floor_at") or 0,
        brake_engaged_at=number("brake_engaged_at"),
        brake_leased=number("brake_leased") or 0,
        brake_released=variables.get("brake_released") == "1",
    )


def write_state(conn: Connection, state: SweepState, now: int) -> None:
    """Leave to the next sweep what it must know."""
    write_variables(
        conn,
        {
            "last_sweep_at": now,
            "expiry_floor_at": state.expiry_floor_at,
            "brake_engaged_at": state.brake_engaged_at,
            "brake_leased": state.brake_leased if state.brake_engaged_at is not None else None,
            "brake_released": "1" if state.brake_released else None,
        },
    )
