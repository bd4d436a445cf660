"""Reading from PostgreSQL: P5 (small files), P8 (leaks)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import databases, load, programs, reading
from benchmarks.fleet_writing import MANY, SQLITE
from benchmarks.machine import WORK, cpu_s
from benchmarks.measuring import Figure, Goal, InTurn, in_turn
from benchmarks.postgresql import ServerDatabases
from benchmarks.programs import Program
from benchmarks.reading import SMALL_BYTES, Tell, Tools
from registry.core.hashing import checksum_of
from registry.store.engine import Engine
from registry.store.opening import open_database
from registry.store.reads.audit import find_leaks

CONNECTIONS = 16
BARE = "bare ASGI application"


def small_files(kept: ServerDatabases, tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P5: GET a 1 KiB file, 16 connections: what it takes of the core of our process, and how
    many a second there are."""
    if tools.wrk is None:
        return []
    wrk = tools.wrk
    cpu: dict[str, list[float]] = {BARE: [], "ours": []}
    file = WORK / "p5.json"
    WORK.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.urandom(SMALL_BYTES))
    with ExitStack() as stack:
        ours = stack.enter_context(programs.registry(kept.fresh()))
        bare = stack.enter_context(programs.reference("bare", file))
        with load.Caller(ours.address) as caller:
            reading.put(caller, file.read_bytes())
            reading.register(caller, 0, f'"checksum":"{checksum_of(file.read_bytes())}"')

        def gets(name: str, program: Program, path: str) -> Callable[[], float]:
            def measure() -> float:
                before = cpu_s(program.pid)
                found = load.wrk(wrk, program.url(path), connections=CONNECTIONS)
                cpu[name].append((cpu_s(program.pid) - before) / found.requests * 1e6)
                return found.per_s

            return measure

        path = reading.path_of(0)
        found = in_turn(gets(BARE, bare, "/"), {"ours": gets("ours", ours, path)}, rounds, tell)
    before, after = cpu[BARE][::2], cpu[BARE][1::2]
    around = [(one + two) / 2 for one, two in zip(before, after, strict=True)]
    work = f"GET a 1 KiB file, {CONNECTIONS} connections"
    return [
        InTurn(around, {"ours": cpu["ours"]}).figure(
            "ours",
            "P5a",
            f"{work}: CPU of our process",
            "us",
            BARE,
            goal=Goal("compared", 1.3, at_most=True),
        ),
        found.figure("ours", "P5b", work, "/s", BARE, goal=Goal("compared", 0.6)),
    ]


def leaks(kept: ServerDatabases, _: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """P8: the view `leaks` of a sound database."""
    with ExitStack() as stack:
        urls = [f"sqlite:///{databases.with_entries(MANY, tell)}", kept.with_entries(MANY, tell)]
        sqlite, ours = (open_database(url) for url in urls)
        stack.callback(sqlite.close)
        stack.callback(ours.close)
        found = in_turn(lambda: _leaks_s(sqlite), {"ours": lambda: _leaks_s(ours)}, rounds, tell)
    goal = Goal("compared", 3, at_most=True)
    return [found.figure("ours", "P8", f"leaks of {MANY:,} entries", "s", SQLITE, goal=goal)]


def _leaks_s(database: Engine) -> float:
    began = time.perf_counter()
    with database.read() as conn:
        found = find_leaks(conn)
    assert not found, f"the database has findings: {found[:3]}"
    return time.perf_counter() - began
