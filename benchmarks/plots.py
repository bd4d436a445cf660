"""The results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.measuring import Figure

MET, MISSED, PLAIN = "#2f7d4f", "#b3412e", "#5b6b7b"


def draw(figures: Sequence[Figure], machine: dict[str, str], directory: Path) -> list[Path]:
    """The figures as shares of their goals; the files that were written."""
    path = directory / "goals.png"
    judged = [figure for figure in figures if figure.goal is not None]
    shares = [_share_of_goal(figure) for figure in judged]
    picture, axes = plt.subplots(figsize=(9, 0.42 * len(judged) + 1.6))
    for place, (figure, (middle, low, high)) in enumerate(zip(judged, shares, strict=True)):
        met = figure.goal is not None and figure.goal.met(figure)
        axes.barh(place, middle, color=MET if met else MISSED, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
    axes.axvline(1, color=PLAIN, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(judged)), [f"{f.work}  {f.name}" for f in judged], fontsize=8)
    axes.set_xlabel("of the goal: 1 reaches it, more is better (line: lowest to highest round)")
    axes.invert_yaxis()
    axes.set_xlim(0, min(4.0, 1.1 * max((s[0] for s in shares), default=1)))
    axes.set_title(f"{machine['processor']}, {machine['date']}", fontsize=9)
    picture.tight_layout()
    picture.savefig(path, dpi=120)
    plt.close(picture)
    return [path, *_draw_ratios(figures, machine, directory)]


def _share_of_goal(figure: Figure) -> tuple[float, float, float]:
    """How much of its goal a figure reaches: middle, low, high; above 1 is better."""
    goal = figure.goal
    assert goal is not None
    judged = figure.ours if goal.of == "ours" else figure.compared
    assert judged is not None
    values = (judged.median, judged.low, judged.high)
    if not goal.at_most:
        middle, low, high = (value / goal.bound for value in values)
        return middle, low, high
    middle, high, low = (goal.bound / max(value, 1e-9) for value in values)
    return middle, low, high


def _draw_ratios(figures: Sequence[Figure], machine: dict[str, str], directory: Path) -> list[Path]:
    """Ours beside the reference, where both are rates."""
    rates = [f for f in figures if f.reference is not None and f.unit.endswith("/s")]
    if not rates:
        return []
    path = directory / "rates.png"
    picture, panels = plt.subplots(
        len(rates), 1, figsize=(8, 0.95 * len(rates) + 0.8), squeeze=False
    )
    for figure, axes in zip(rates, panels[:, 0], strict=True):
        assert figure.reference is not None
        axes.barh(
            ["ours", figure.reference_name],
            [figure.ours.median, figure.reference.median],
            color=[MET, PLAIN],
            height=0.65,
        )
        axes.invert_yaxis()
        axes.set_title(f"{figure.name}  {figure.work} ({figure.unit})", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    picture.suptitle(f"{machine['processor']}, {machine['date']}", fontsize=9)
    picture.tight_layout()
    picture.savefig(path, dpi=120)
    plt.close(picture)
    return [path]
