"""What a figure is, and how it is taken: ours and its reference in turn, several rounds.

Machines are shared and noisy, so that a time by itself says little. Each round measures the
reference, then ours, then the reference again; what counts is the ratio within a round, and of
the rounds the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from benchmarks.machine import cpu_s

Measure = Callable[[], float]


class Run(Protocol):
    """What a run of a load found."""

    @property
    def requests(self) -> int: ...
    @property
    def per_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach: a bound of ours, or of ours compared with the reference."""

    of: Literal["ours", "compared"]
    bound: float
    at_most: bool = False

    def met(self, figure: Figure) -> bool:
        judged = figure.ours if self.of == "ours" else figure.compared
        if judged is None:
            return False
        return judged.median <= self.bound if self.at_most else judged.median >= self.bound


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `compared` is ours by the reference (`ratio`) or less it."""

    name: str
    work: str
    unit: str
    ours: Spread
    reference: Spread | None = None
    reference_name: str = ""
    compared: Spread | None = None
    compared_as: Literal["ratio", "difference"] = "ratio"
    goal: Goal | None = None
    cpu_us: Spread | None = None
    """Processor time of the server for a request, in microseconds."""
    reference_cpu_us: Spread | None = None
    """The same of the reference's server."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.goal.met(self) if self.goal else None}


class Costs:
    """The processor time that requests take a program, its own code and the kernel for it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._us: list[float] = []

    def rate(self, run: Callable[[], Run]) -> Measure:
        """Measures how many requests a second a run has answered, and notes what each took."""

        def measure() -> float:
            before = cpu_s(self._pid)
            done = run()
            self._us.append((cpu_s(self._pid) - before) * 1e6 / done.requests)
            return done.per_s

        return measure

    @property
    def us(self) -> Spread:
        """For a request, in microseconds."""
        return Spread.of(self._us)


@dataclass(frozen=True, slots=True)
class InTurn:
    """What rounds of a reference and of several programs of ours found, round by round."""

    reference: list[float]
    """The mean of before and after, for each round."""
    ours: dict[str, list[float]]

    def figure(
        self,
        ours: str,
        name: str,
        work: str,
        unit: str,
        reference_name: str,
        *,
        goal: Goal | None = None,
        compared_as: Literal["ratio", "difference"] = "ratio",
        by: str | None = None,
        costs: Costs | None = None,
    ) -> Figure:
        """A line of the table. `by` names one of ours that is the reference instead, `costs` are
        ours."""
        mine = self.ours[ours]
        others = self.ours[by] if by is not None else self.reference
        pairs = list(zip(mine, others, strict=True))
        compared = [a / b if compared_as == "ratio" else a - b for a, b in pairs]
        return Figure(
            name,
            work,
            unit,
            Spread.of(mine),
            Spread.of(others),
            reference_name,
            Spread.of(compared),
            compared_as,
            goal,
            None if costs is None else costs.us,
        )


def in_turn(
    reference: Measure, ours: dict[str, Measure], rounds: int, tell: Callable[[str], None]
) -> InTurn:
    """Measure the reference, each of ours and the reference again, `rounds` times."""
    found = InTurn([], {name: [] for name in ours})
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        before = reference()
        for name, measure in ours.items():
            found.ours[name].append(measure())
        found.reference.append((before + reference()) / 2)
    return found
