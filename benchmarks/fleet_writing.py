"""Writing to PostgreSQL: P1 (many callers), P2 (one), P3 (manifests), P4 (replicas), P6
(unregistering), P7 (ending owners)."""

from __future__ import annotations

import random
from contextlib import ExitStack

from benchmarks import databases, programs, writing
from benchmarks.machine import ALL_CORES
from benchmarks.measuring import Figure, Goal, InTurn, in_turn
from benchmarks.postgresql import ServerDatabases
from benchmarks.reading import Tell, Tools
from benchmarks.writing import CALLERS, LAPSED_OWNERS, MANIFEST, Registering

RAW = "raw psycopg loop"
SQLITE = "SQLite"
MANIFEST_CALLERS = 8
REPLICAS = 3
FEW, MANY = 100_000, 1_000_000


def many_callers(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P1: register one new artifact per request with 64 callers."""
    with ExitStack() as stack:
        beside = kept.fresh()
        ours = stack.enter_context(programs.registry(kept.fresh()))
        sqlite = stack.enter_context(programs.registry(databases.fresh("p1")))
        found = in_turn(
            lambda: writing.raw(beside, 1)[0],
            {
                "ours": lambda: Registering(1, ours).run(CALLERS).per_s,
                SQLITE: lambda: Registering(1, sqlite).run(CALLERS).per_s,
            },
            rounds,
            tell,
        )
    work = f"register one new artifact a request, {CALLERS} callers"
    return [
        found.figure("ours", "P1a", work, "/s", RAW, goal=Goal("compared", 4)),
        found.figure("ours", "P1b", work, "/s", SQLITE, goal=Goal("compared", 0.6), by=SQLITE),
    ]


def one_caller(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P2: the same with one caller."""
    beside = kept.fresh()
    with programs.registry(kept.fresh()) as ours:
        found = in_turn(
            lambda: writing.raw(beside, 1)[1],
            {"ours": lambda: Registering(1, ours).run(1).latency_s(0.5) * 1000},
            rounds,
            tell,
        )
    goal = Goal("compared", 0.8, at_most=True)
    work = "the same, 1 caller: median latency"
    return [found.figure("ours", "P2", work, "ms", RAW, goal=goal, compared_as="difference")]


def manifests(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P3: register a manifest of 200 artifacts per request."""
    with ExitStack() as stack:
        ours = stack.enter_context(programs.registry(kept.fresh()))
        sqlite = stack.enter_context(programs.registry(databases.fresh("p3")))
        found = in_turn(
            lambda: Registering(MANIFEST, sqlite).run(MANIFEST_CALLERS).per_s * MANIFEST,
            {"ours": lambda: Registering(MANIFEST, ours).run(MANIFEST_CALLERS).per_s * MANIFEST},
            rounds,
            tell,
        )
    work = f"register manifests of {MANIFEST} artifacts, {MANIFEST_CALLERS} callers"
    goal = Goal("compared", 0.7)
    return [found.figure("ours", "P3", work, "artifacts/s", SQLITE, goal=goal)]


def replicas(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P4: two and three replicas with 64 callers in all, on whichever cores there are."""
    url = kept.fresh()
    with ExitStack() as stack:
        running = [stack.enter_context(programs.registry(url, ALL_CORES)) for _ in range(REPLICAS)]

        def per_s(count: int) -> float:
            return Registering(1, *running[:count]).run(CALLERS).per_s

        found = in_turn(
            lambda: per_s(1), {"2": lambda: per_s(2), "3": lambda: per_s(3)}, rounds, tell
        )
    return [
        found.figure(
            count,
            name,
            f"register one new artifact a request, {CALLERS} callers, {count} replicas",
            "/s",
            "one replica",
            goal=Goal("compared", bound),
        )
        for name, count, bound in (("P4a", "2", 1.1), ("P4b", "3", 1.0))
    ]


def unregistering(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P6: unregister an owner of 10 refs, in databases of two sizes."""
    with ExitStack() as stack:
        few, many = (
            stack.enter_context(programs.registry(kept.with_entries(size, tell)))
            for size in (FEW, MANY)
        )
        randoms = random.Random(6)

        def of(program: programs.Program, size: int) -> float:
            return writing.median_unregister_ms(program, size, randoms)

        of(few, FEW), of(many, MANY)  # What is read for the first time is not what is asked.
        found = in_turn(lambda: of(few, FEW), {"many": lambda: of(many, MANY)}, rounds, tell)
    work = f"unregister an owner of 10 refs among {MANY:,} entries"
    goal = Goal("compared", 1.2, at_most=True)
    return [found.figure("many", "P6", work, "ms", f"itself among {FEW:,}", goal=goal)]


def ending(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P7: end 10,000 lapsed owners of 10 refs, the brake off."""
    ours, sqlite = [], []
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        sqlite.append(_ended_per_s(f"sqlite:///{databases.lapsed(LAPSED_OWNERS, tell)}"))
        ours.append(_ended_per_s(kept.lapsed(LAPSED_OWNERS, tell)))
    work = f"end {LAPSED_OWNERS:,} lapsed owners of 10 refs"
    found = InTurn(sqlite, {"ours": ours})
    return [found.figure("ours", "P7", work, "refs/s", SQLITE, goal=Goal("compared", 0.6))]


def _ended_per_s(url: str) -> float:
    with programs.registry(url, **writing.SWEEPING):
        writing.wait_until_swept(url)
    return writing.swept(url)[2]
