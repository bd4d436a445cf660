"""Take the figures, print the table, keep the results.

python -m benchmarks [ONLY]      ONLY: B1,B3 takes only these
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable

from benchmarks import pages, reading, renewing, report, standing, writing
from benchmarks.machine import WORK, describe, find_tool, pin_load
from benchmarks.measuring import Figure
from benchmarks.reading import Tell, Tools

Group = Callable[[Tools, int, Tell], list[Figure]]

GROUPS: dict[str, tuple[Group, int]] = {
    "B1": (reading.small_files, 5),
    "B2": (reading.large_files, 5),
    "B3": (writing.one_artifact, 5),
    "B4": (writing.manifests, 5),
    "B5": (writing.unregistering, 5),
    "B6": (reading.beside_writing, 5),
    "B7": (standing.starting, 5),
    "B8": (writing.sweeping, 3),
    "B10": (standing.auditing, 5),
    "B11": (renewing.beating, 1),
}
"""Every group of figures that is kept, with its rounds."""

BY_NAME: dict[str, tuple[Group, int]] = {"pages": (pages.showing, 5)}
"""Those that are taken only when they are asked for."""

BUDGET_S = 13 * 60
"""No group is begun after this; together with the longest group that makes 15 minutes."""


def main() -> int:
    """Run what was asked for; 2 if something of it does not exist."""
    wanted = [name for name in ",".join(sys.argv[1:]).replace(" ", "").split(",") if name]
    unknown = [name for name in wanted if name not in GROUPS | BY_NAME]
    if unknown:
        print(
            f"there is no {', '.join(unknown)}; there are {', '.join(GROUPS | BY_NAME)}",
            file=sys.stderr,
        )
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    pin_load()
    tools = Tools(find_tool("wrk"), find_tool("nginx"))
    figures = _take(wanted or list(GROUPS), tools)
    print()
    report.print_table([report.row(figure) for figure in figures])
    print()
    machine = describe()
    for name, value in machine.items():
        print(f"{name}: {value}")
    if wanted:
        print("results are kept when every figure is taken: make bench")
    else:
        for path in report.keep(figures, machine):
            print(f"wrote {path}")
    return 0


def _take(names: list[str], tools: Tools) -> list[Figure]:
    figures: list[Figure] = []
    began = time.monotonic()
    for missing in (name for name in ("wrk", "nginx") if getattr(tools, name) is None):
        print(
            f"{missing} is missing: the figures that need it are left out (apt install {missing})"
        )
    try:
        for name in names:
            group, rounds = (GROUPS | BY_NAME)[name]
            if time.monotonic() - began > BUDGET_S:
                print(f"{name} is left out: the time is over")
                continue
            try:
                found = group(tools, rounds, _Progress(name, began))
            except (AssertionError, OSError, RuntimeError) as error:
                print(f"\n{name} failed: {error!r}; the log of the servers is {WORK}/servers.log")
                continue
            for figure in found:
                print("\r\033[K" * sys.stdout.isatty() + "  ".join(report.row(figure)), flush=True)
            figures += found
    finally:
        _tidy()
    return figures


class _Progress:
    """Says on the terminal what is going on."""

    def __init__(self, name: str, began: float) -> None:
        self._name, self._began = name, began

    def __call__(self, what: str) -> None:
        line = f"{time.monotonic() - self._began:4.0f} s  {self._name}: {what}"
        print(f"\r\033[K{line}" if sys.stdout.isatty() else line, end="", flush=True)
        if not sys.stdout.isatty():
            print(flush=True)


def _tidy() -> None:
    """Drop what can be made again quickly; the large databases stay for the next run."""
    for path in WORK.glob("*"):
        if path.name.startswith(("live-", "lapsed-")):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
