"""The results: a table on the terminal, the same as Markdown and JSON, and plots where we can."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Figure, Goal, Spread

RESULTS = Path(__file__).resolve().parent / "results"
LATEST = "latest"
HEAD = ("figure", "work", "ours", "CPU a request", "reference", "compared", "goal", "met")

Row = tuple[str, str, str, str, str, str, str, str]


def row(figure: Figure) -> Row:
    """A figure as the cells of the table."""
    reference = compared = ""
    if figure.reference is not None and figure.compared is not None:
        reference = f"{number(figure.reference.median)} {figure.unit} ({figure.reference_name})"
        compared = _compared(figure, figure.compared)
    met = "" if figure.goal is None else "yes" if figure.goal.met(figure) else "NO"
    ours = f"{number(figure.ours.median)} {figure.unit}"
    if figure.compared is None and figure.ours.low != figure.ours.high:
        ours += f" ({number(figure.ours.low)} to {number(figure.ours.high)})"
    return figure.name, figure.work, ours, _cpu(figure), reference, compared, _goal(figure), met


def number(value: float) -> str:
    """Three digits that count, no more decimals than they need."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cpu(figure: Figure) -> str:
    if figure.cpu_us is None:
        return ""
    ours = f"{number(figure.cpu_us.median)} us"
    if figure.reference_cpu_us is None:
        return ours
    return f"{ours} (reference {number(figure.reference_cpu_us.median)} us)"


def _compared(figure: Figure, spread: Spread) -> str:
    middle, low, high = (f"{each:.2f}" for each in (spread.median, spread.low, spread.high))
    if figure.compared_as == "ratio":
        return f"{middle} x ({low} to {high})"
    return f"+ {middle} {figure.unit} ({low} to {high})"


def _goal(figure: Figure) -> str:
    goal = figure.goal
    if goal is None:
        return ""
    return f"{'<=' if goal.at_most else '>='} {_bound(figure, goal)}"


def _bound(figure: Figure, goal: Goal) -> str:
    if goal.of == "ours":
        return f"{number(goal.bound)} {figure.unit}"
    return (
        f"{goal.bound:g} x" if figure.compared_as == "ratio" else f"+ {goal.bound:g} {figure.unit}"
    )


def print_table(rows: Sequence[Row]) -> None:
    """The table on the terminal."""
    widths = [max(len(each[i]) for each in [HEAD, *rows]) for i in range(len(HEAD))]
    for each in [HEAD, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip()
        )


def keep(figures: Sequence[Figure], machine: dict[str, str], name: str = LATEST) -> list[Path]:
    """Write the results down; what was written. There are plots only of the usual figures."""
    RESULTS.mkdir(exist_ok=True)
    as_json = RESULTS / f"{name}.json"
    found = {"machine": machine, "figures": [figure.to_json() for figure in figures]}
    as_json.write_text(json.dumps(found, indent=1) + "\n")
    as_text = RESULTS / f"{name}.md"
    as_text.write_text(_markdown(figures, machine))
    if name != LATEST:
        return [as_json, as_text]
    try:
        from benchmarks.plots import draw
    except ImportError:
        sys.stderr.write("matplotlib is not installed: no plots were drawn\n")
        return [as_json, as_text]
    return [as_json, as_text, *draw(figures, machine, RESULTS)]


def keep_peers(figures: Sequence[Figure], machine: dict[str, str]) -> None:
    """Write down what the comparison with other programs found."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.md").write_text(_markdown(figures, machine))


def _markdown(figures: Sequence[Figure], machine: dict[str, str]) -> str:
    lines = ["# Results of the last run", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(row(figure)) + " |" for figure in figures]
    lines += ["", "Medians of several rounds; in brackets the lowest and the highest round."]
    return "\n".join(lines) + "\n"
