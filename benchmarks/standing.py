"""What a large database costs: B7 (start and memory), B10 (the audit)."""

from __future__ import annotations

import compileall
import time

from benchmarks import databases, programs
from benchmarks.machine import ROOT, memory_mib
from benchmarks.measuring import Figure, Goal, Spread
from benchmarks.reading import Tell, Tools
from registry.store.reads.audit import audit
from registry.store.sqlite.engine import Database

ENTRIES = 1_000_000
IDLE_S = 2.0
AUDIT_GOALS_S = {100_000: 0.2, 1_000_000: 2.0}


def starting(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B7: start until /health is 200 with 10^6 entries, and the memory of the idle service."""
    path = databases.with_entries(ENTRIES, tell)
    compileall.compile_dir(ROOT / "registry", quiet=1)  # As pip does where it installs it.
    times, memory = [], []
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        with programs.starting(path) as (program, seconds):
            times.append(seconds)
            time.sleep(IDLE_S)
            memory.append(memory_mib(program.pid))
    among = f"with {ENTRIES:,} entries"
    return [
        Figure(
            "B7a",
            f"start until /health is 200, {among}",
            "s",
            Spread.of(times),
            goal=Goal("ours", 0.6, at_most=True),
        ),
        Figure(
            "B7b",
            f"memory of the idle service, {among}",
            "MiB",
            Spread.of(memory),
            goal=Goal("ours", 75, at_most=True),
        ),
    ]


def auditing(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B10: the audit of a sound database."""
    figures = []
    for name, (entries, goal_s) in zip(("B10a", "B10b"), AUDIT_GOALS_S.items(), strict=True):
        database = Database(f"sqlite:///{databases.with_entries(entries, tell)}")
        times = []
        for number in range(1, rounds + 1):
            tell(f"{entries:,} entries, round {number} of {rounds}")
            began = time.perf_counter()
            with database.read() as conn:
                report = audit(conn)
            times.append(time.perf_counter() - began)
            assert not report.counts, f"the database has findings: {report.counts}"
        database.close()
        work = f"audit of {entries:,} entries, {entries // databases.REFS:,} owners"
        goal = Goal("ours", goal_s, at_most=True)
        figures.append(Figure(name, work, "s", Spread.of(times), goal=goal))
    return figures
