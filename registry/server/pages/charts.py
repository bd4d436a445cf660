"""Charts as SVG: where each bar, line and label is. The templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 180
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 12, 24
"""Room for labels around the drawing."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a place of an axis."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar, and what it says."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars or a line over time, with its axes. `says` is the same in a sentence."""

    title: str
    says: str
    bars: tuple[Bar, ...]
    line: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def bar_chart(title: str, says: str, values: Sequence[int], labels: Sequence[str]) -> Chart:
    """A bar for each value, from left to right."""
    step = (WIDTH - LEFT - RIGHT) / len(values)
    top = _nice(max(values))
    bars = tuple(
        Bar(
            round(LEFT + step * place + 1, 1),
            round(_height(value, 0, top), 1),
            round(step - 2, 1),
            round(HEIGHT - BOTTOM - _height(value, 0, top), 1),
            f"{label}: {value:,}",
        )
        for place, (value, label) in enumerate(zip(values, labels, strict=True))
    )
    return Chart(title, says, bars, "", _across(labels, step), _up(0, top))


def line_chart(title: str, says: str, values: Sequence[int | None], labels: Sequence[str]) -> Chart:
    """A line through the values; where one is not known, the line has not begun."""
    step = (WIDTH - LEFT - RIGHT) / len(values)
    top = _nice(max((value for value in values if value is not None), default=0))
    points = [
        f"{LEFT + step * (place + 1):.1f},{_height(value, 0, top):.1f}"
        for place, value in enumerate(values)
        if value is not None
    ]
    return Chart(title, says, (), " ".join(points), _across(labels, step), _up(0, top))


def _height(value: int, bottom: int, top: int) -> float:
    """The place of a value from above."""
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - bottom) / (top - bottom)


def _across(labels: Sequence[str], step: float) -> tuple[Tick, ...]:
    return tuple(
        Tick(round(LEFT + step * (place + 0.5), 1), label)
        for place, label in enumerate(labels)
        if place % 6 == 5
    )


def _up(bottom: int, top: int) -> tuple[Tick, ...]:
    values = sorted({bottom, (bottom + top) // 2, top})
    return tuple(Tick(round(_height(value, bottom, top), 1), _brief(value)) for value in values)


def _nice(largest: int) -> int:
    """The first number of one digit and zeros, or half of one, that is as large."""
    if largest <= 4:
        return 4
    unit = int(10 ** (len(str(largest)) - 1))
    return min(n for n in (unit, 2 * unit, 3 * unit, 5 * unit, 8 * unit, 10 * unit) if n >= largest)


def _brief(value: int) -> str:
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return str(value)
