"""Taking groups of figures, one after the other, within a time."""

from __future__ import annotations

import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping

from benchmarks import report
from benchmarks.machine import WORK, find_tool, pin_load
from benchmarks.measuring import Figure
from benchmarks.reading import Tell, Tools

Group = Callable[[Tools, int, Tell], list[Figure]]

Groups = Mapping[str, tuple[Group, int]]
"""Groups of figures by name, with their rounds."""

BUDGET_S = 24 * 60
"""No group is begun after this; together with the longest group that makes half an hour."""

LOG = WORK / "servers.log"


def asked_for(names: Iterable[str]) -> list[str]:
    """What the command line names, separated by commas; empty: everything. Ends this process with
    2 if something of it does not exist."""
    wanted = [name for name in ",".join(sys.argv[1:]).replace(" ", "").split(",") if name]
    known = list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"there is no {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    return wanted


def ready() -> Tools:
    """Make this process the one that makes the load; the tools that it has."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    pin_load()
    WORK.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    return Tools(find_tool("wrk"), find_tool("nginx"))


def take(names: Iterable[str], groups: Groups, tools: Tools) -> list[Figure]:
    """Take the figures, and print each. A group that fails does not keep the others from theirs."""
    figures: list[Figure] = []
    began = time.monotonic()
    for missing in (name for name in ("wrk", "nginx") if getattr(tools, name) is None):
        print(
            f"{missing} is missing: the figures that need it are left out (apt install {missing})"
        )
    try:
        for name in names:
            group, rounds = groups[name]
            if time.monotonic() - began > BUDGET_S:
                print(f"{name} is left out: the time is over")
                continue
            try:
                found = group(tools, rounds, _Progress(name, began))
            except Exception as error:
                with LOG.open("a") as log:
                    traceback.print_exc(file=log)
                print(f"\n{name} failed: {error!r}; the log is {LOG}", flush=True)
                continue
            for figure in found:
                print("\r\033[K" * sys.stdout.isatty() + "  ".join(report.row(figure)), flush=True)
            figures += found
    finally:
        _tidy()
    return figures


def show(figures: list[Figure], machine: Mapping[str, str]) -> None:
    """Print the table, and what it was measured on."""
    print()
    report.print_table([report.row(figure) for figure in figures])
    print()
    for name, value in machine.items():
        print(f"{name}: {value}")


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
    """Drop what can be made again quickly; the large databases and the log stay."""
    for path in WORK.glob("*"):
        # A server of PostgreSQL has a folder of its own, and deletes it when it ends.
        if path.name.startswith(("live-", "lapsed-", "pg-")) or path == LOG:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
