"""Moving: P9 (to a standby that was promoted), P10 (from SQLite into PostgreSQL)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.fleet_writing import FEW, MANY
from benchmarks.machine import on_all_cores
from benchmarks.measuring import Figure, Goal, Spread
from benchmarks.postgresql import ServerDatabases, new_server
from benchmarks.reading import Tell, Tools
from tests.postgres import Cluster
from tests.replicas import Callers, set_fixed, start
from tests.support import wait_for
from tests.test_failover import name_of, url_of

SERVICES = 2
WRITES_BEFORE = 150
KINDS = (("POST", "DELETE"), ("GET",))
"""What has to work again: writes and reads."""
COPIES = {FEW: 10, MANY: 60}
"""How many seconds it may take, by entries."""


def failing_over(_: ServerDatabases, __: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P9: until a write and a read work after a promotion. What was acknowledged is there."""
    figures = []
    for name, what, end, goal_s in (
        ("P9a", "killed", Cluster.kill, 1),
        ("P9b", "frozen", Cluster.freeze, 10),
    ):
        times = []
        for number in range(1, rounds + 1):
            tell(f"primary {what}, round {number} of {rounds}")
            with on_all_cores():
                times.append(_first_success_s(end))
        work = f"first success after the promotion, primary {what}"
        goal = Goal("ours", goal_s, at_most=True)
        figures.append(Figure(name, work, "s", Spread.of(times), goal=goal))
    return figures


def _first_success_s(end: Callable[[Cluster], None]) -> float:
    with ExitStack() as stack:
        primary = stack.enter_context(new_server())
        standby = stack.enter_context(primary.standby(synchronous=True))
        database = name_of(primary.new_database())
        url = url_of(primary, standby, database=database)
        services = [stack.enter_context(start(url)) for _ in range(SERVICES)]
        set_fixed(services[0])
        with Callers([each.url for each in services]) as callers:
            callers.wait_for_more(WRITES_BEFORE)
            end(primary)
            standby.promote()
            promoted = time.monotonic()
            wait_for(lambda: all(_succeeded(callers, promoted, kind) for kind in KINDS))
        callers.check(standby.url(database))
        return max(callers.first_success_after(promoted, *kind) for kind in KINDS)


def _succeeded(callers: Callers, moment: float, methods: tuple[str, ...]) -> bool:
    assert not callers.faults, callers.faults
    return any(
        each.began > moment and each.status == 200 and each.method in methods
        for each in reversed(callers.answers)
    )


def copying(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P10: `db copy` from SQLite, read back and compared. The large one is copied once."""
    figures = []
    for name, (entries, goal_s) in zip(("P10a", "P10b"), COPIES.items(), strict=True):
        wanted = rounds if entries == FEW else 1
        while len(kept.copy_s.get(entries, [])) < wanted:
            kept.copy(entries, tell)
        goal = Goal("ours", goal_s, at_most=True)
        work = f"db copy of {entries:,} entries from SQLite, verified"
        figures.append(Figure(name, work, "s", Spread.of(kept.copy_s[entries]), goal=goal))
    return figures
