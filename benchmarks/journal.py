"""The journal's own price: registering with and without it, and pruning it beside traffic."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import databases, load, programs
from benchmarks.machine import cpu_s
from benchmarks.measuring import Figure, InTurn, Spread, in_turn
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools
from benchmarks.writing import Registering, ask
from registry.store.opening import open_database

EVENTS = 10**7
ENTRIES = 100_000
ALL_KEPT: dict[str, Any] = {"journal_max_rows": 10**9}
SURPLUS: dict[str, Any] = {"journal_max_rows": EVENTS // 10}
WITHOUT = """
import sys
from registry.__main__ import main
from registry.store.ops import register
register.write_events = lambda conn, now, rows: None
sys.exit(main())
"""
"""The service, but for the lines of the journal that a registration writes."""

GETS_PER_S = 200
CHANGES_PER_S = 50
PRUNED_S = 15.0


def price(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """What the lines of the journal cost a registration where ten million events are kept, and
    what pruning most of them costs those who read and register meanwhile."""
    full, without = databases.with_journal(ENTRIES, EVENTS, tell)
    with ExitStack() as stack:
        shipped = stack.enter_context(programs.registry(full, **ALL_KEPT))
        bare = stack.enter_context(programs.registry(without, changed=WITHOUT, **ALL_KEPT))
        empty = stack.enter_context(programs.registry(databases.fresh("journal-empty")))
        single, manifests = (
            in_turn(
                _cost(bare, artifacts, callers),
                {
                    "shipped": _cost(shipped, artifacts, callers),
                    "empty": _cost(empty, artifacts, callers),
                },
                rounds,
                tell,
            )
            for artifacts, callers in ((1, 64), (200, 8))
        )
    figures = [
        *_figures("journal-a", "a registration of one artifact, 64 callers", single),
        *_figures("journal-b", "an artifact in manifests of 200", manifests),
    ]
    return figures + _pruning(full, tell)


def _figures(name: str, work: str, found: InTurn) -> list[Figure]:
    return [
        found.figure(
            "shipped",
            f"{name}1",
            f"processor time of {work}, {EVENTS:,} events",
            "us",
            "without the journal",
            compared_as="difference",
        ),
        found.figure(
            "shipped",
            f"{name}2",
            f"processor time of {work}, {EVENTS:,} events",
            "us",
            "with an empty journal",
            compared_as="difference",
            by="empty",
        ),
    ]


def _cost(program: Program, artifacts: int, callers: int) -> Callable[[], float]:
    """Processor time for an artifact, in microseconds."""
    registering = Registering(artifacts, program)

    def measure() -> float:
        before = cpu_s(program.pid)
        done = registering.run(callers)
        return (cpu_s(program.pid) - before) * 1e6 / (len(done.latencies_s) * artifacts)

    return measure


def _pruning(database: Path, tell: Tell) -> list[Figure]:
    """The journal is cut to a tenth while somebody reads and somebody registers."""
    reads: dict[str, load.Load] = {}
    writes: dict[str, load.Load] = {}
    per_s = 0.0
    for name, flags in (("alone", ALL_KEPT), ("pruning", SURPLUS)):
        tell(f"{PRUNED_S:g} s of reads and registrations, {name}")
        with programs.registry(database, **flags) as program:
            before, last = _events(database)
            began = time.perf_counter()
            reads[name], writes[name] = _traffic(program)
            seconds = time.perf_counter() - began
            after, new_last = _events(database)
            per_s = (before + new_last - last - after) / seconds
    work = f"while {EVENTS:,} events are cut to {EVENTS // 10:,}"

    def beside(figure: str, what: str, found: dict[str, load.Load]) -> Figure:
        ours, alone = (found[name].latency_s(0.99) * 1000 for name in ("pruning", "alone"))
        return Figure(
            figure,
            f"p99 of {what}, {work}",
            "ms",
            Spread.of([ours]),
            Spread.of([alone]),
            "without pruning",
            Spread.of([ours / alone]),
        )

    return [
        Figure("journal-c1", f"events pruned {work}", "/s", Spread.of([per_s])),
        beside("journal-c2", f"{GETS_PER_S} GETs/s", reads),
        beside("journal-c3", f"{CHANGES_PER_S} registrations/s", writes),
    ]


def _traffic(program: Program) -> tuple[load.Load, load.Load]:
    """GETs and registrations, each at its rate, at the same time."""
    found: list[load.Load] = []
    key = databases.manifest(0, ENTRIES)[0].key
    get = itertools.repeat(databases.http("GET", f"/v1/metadata/{key}"))
    new = databases.new_artifacts(0, 1, time.time_ns() % 10**6)

    def register() -> None:
        found.append(_at_rate(program, new, CHANGES_PER_S))

    writing = threading.Thread(target=register)
    writing.start()
    reads = _at_rate(program, get, GETS_PER_S)
    writing.join()
    return reads, found[0]


def _at_rate(program: Program, requests: Iterator[bytes], per_s: float) -> load.Load:
    return load.call_at_rate(program.address, requests, _is_ok, per_s=per_s, seconds=PRUNED_S)


def _is_ok(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200")


def _events(path: Path) -> tuple[int, int]:
    """How many events there are, and the id of the last."""
    database = open_database(f"sqlite:///{path}")
    ((count, last),) = ask(database, "SELECT COUNT(*), MAX(id) FROM events")
    database.close()
    return int(count), int(last)
