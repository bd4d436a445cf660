"""Writing: B3 (one artifact a request), B4 (manifests), B5 (unregistering), B8 (sweeping)."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import databases, load, programs
from benchmarks.machine import SERVER_CORE
from benchmarks.measuring import Costs, Figure, Goal, InTurn, Spread, in_turn
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools, created
from registry.store.engine import Engine
from registry.store.opening import open_database

CALLERS = 64
MANIFEST = 200
SECONDS = 2.0
SIZES = (1_000, 100_000, 1_000_000)
UNREGISTERED = 100
LAPSED_OWNERS = 10_000
SWEEPING: dict[str, Any] = {"brake_fraction": 1, "lease_grace_s": 6, "sweep_interval_s": 0.1}
SWEEP_WITHIN_S = 30.0


def raw(database: Path | str, artifacts: int) -> tuple[float, float]:
    """Commits a second and the median time of one in ms, of the raw loop of the engine."""
    module = "benchmarks.raw" if isinstance(database, Path) else "benchmarks.raw_postgresql"
    command = [sys.executable, "-m", module, str(database), str(artifacts), f"{SECONDS:g}"]
    with programs.started(command, SERVER_CORE) as (_, output):
        rate, median_ms = output.read().split()
    return float(rate), float(median_ms)


_runs = itertools.count()


class Registering:
    """Rounds of registrations of new keys against a service, or several replicas of one."""

    def __init__(self, artifacts: int, *programs: Program) -> None:
        self._addresses = [each.address for each in programs]
        self._artifacts = artifacts

    def run(self, callers: int, seconds: float = SECONDS) -> load.Load:
        run = next(_runs)
        streams = [databases.new_artifacts(n, self._artifacts, run) for n in range(callers)]
        return load.call_in_turn(self._addresses, streams, self._check, seconds=seconds)

    def _check(self, answer: bytes) -> bool:
        ok = answer.startswith(b"HTTP/1.1 200")
        return ok and answer.count(b'"outcome":"created"') == self._artifacts


def one_artifact(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B3: register one new artifact per request, durably, with 64 callers and with one."""
    with programs.registry(databases.fresh("b3")) as program:
        beside = databases.fresh("b3-raw")
        registering = Registering(1, program)
        commits: list[float] = []
        costs = Costs(program.pid)

        def reference() -> float:
            rate, median_ms = raw(beside, 1)
            commits.append(median_ms)
            return rate

        found = in_turn(
            reference,
            {
                "64": costs.rate(lambda: registering.run(CALLERS)),
                "1": lambda: registering.run(1).latency_s(0.5) * 1000,
            },
            rounds,
            tell,
        )
    commit_ms = [statistics.mean(pair) for pair in zip(commits[::2], commits[1::2], strict=True)]
    alone = InTurn(commit_ms, found.ours)
    return [
        found.figure(
            "64",
            "B3a",
            f"register one new artifact a request, {CALLERS} callers",
            "/s",
            "raw sqlite3 loop",
            goal=Goal("compared", 1.2),
            costs=costs,
        ),
        alone.figure(
            "1",
            "B3b",
            "the same, 1 caller: median latency",
            "ms",
            "a raw commit",
            goal=Goal("compared", 0.5, at_most=True),
            compared_as="difference",
        ),
        Figure(
            "B3c",
            f"processor time of a registration, {CALLERS} callers",
            "us",
            costs.us,
            goal=Goal("ours", 150, at_most=True),
        ),
    ]


def manifests(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B4: register a manifest of 200 artifacts per request."""
    with programs.registry(databases.fresh("b4")) as program:
        beside = databases.fresh("b4-raw")
        registering = Registering(MANIFEST, program)
        costs = Costs(program.pid)
        register = costs.rate(lambda: registering.run(8))
        found = in_turn(
            lambda: raw(beside, MANIFEST)[0] * MANIFEST,
            {"ours": lambda: register() * MANIFEST},
            rounds,
            tell,
        )
    work = f"register manifests of {MANIFEST} artifacts, 8 callers"
    return [
        found.figure(
            "ours",
            "B4a",
            work,
            "artifacts/s",
            "raw sqlite3 loop",
            goal=Goal("compared", 0.6),
            costs=costs,
        ),
        Figure(
            "B4b",
            work,
            "artifacts/s",
            Spread.of(found.ours["ours"]),
            goal=Goal("ours", 35_000),
        ),
    ]


def unregistering(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B5: unregister an owner of 10 refs, in databases of growing size."""
    with ExitStack() as stack:
        running = {
            size: stack.enter_context(programs.registry(databases.with_entries(size, tell)))
            for size in SIZES
        }
        randoms = random.Random(5)

        def measure(size: int) -> Callable[[], float]:
            return lambda: median_unregister_ms(running[size], size, randoms)

        found = in_turn(measure(SIZES[0]), {str(s): measure(s) for s in SIZES[1:]}, rounds, tell)
    return [
        found.figure(
            str(size),
            name,
            f"unregister an owner of 10 refs among {size:,} entries",
            "ms",
            f"itself among {SIZES[0]:,}",
            goal=Goal("compared", 1.2, at_most=True),
        )
        for name, size in (("B5a", SIZES[1]), ("B5b", SIZES[2]))
    ]


def median_unregister_ms(program: Program, entries: int, randoms: random.Random) -> float:
    """Owners anywhere in the database leave, and come back so that it stays as it was."""
    times = []
    with load.Caller(program.address) as caller:
        for _ in range(UNREGISTERED):
            number = randoms.randrange(entries // databases.REFS)
            answer, latency_s = caller.call(databases.unregistration(number))
            assert b'"released":10' in answer, answer[:300]
            times.append(latency_s * 1000)
            request = databases.registration(number, databases.manifest(number, entries))
            answer, _ = caller.call(request)
            assert created(answer), answer[:300]
    return statistics.median(times)


def sweeping(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B8: end 10,000 lapsed owners of 10 refs, the brake off, while somebody reads."""
    rates, p99s = [], []
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        rate, p99_ms = _sweep(databases.lapsed(LAPSED_OWNERS, tell))
        rates.append(rate)
        p99s.append(p99_ms)
    work = f"sweep {LAPSED_OWNERS:,} lapsed owners of 10 refs"
    return [
        Figure("B8a", work, "refs/s", Spread.of(rates), goal=Goal("ours", 75_000)),
        Figure(
            "B8b",
            "p99 of 200 GETs/s meanwhile",
            "ms",
            Spread.of(p99s),
            goal=Goal("ours", 5, at_most=True),
        ),
    ]


def _sweep(database: Path) -> tuple[float, float]:
    """Refs a second, from the begin of the first sweeping transaction to that of the last one,
    and the p99 in ms of GETs in that time.

    The service ends nobody before one lease and the grace have passed since its start, so all
    are due at once, 6 s (grace) and 1 s (lease) later.
    """
    url = f"sqlite:///{database}"
    with programs.registry(database, **SWEEPING) as program:
        # The last to be swept is read: owners go in the order of their ids.
        last = databases.manifest(LAPSED_OWNERS - 1, LAPSED_OWNERS * databases.REFS)[0].key
        get = itertools.repeat(databases.http("GET", f"/v1/metadata/{last}"))
        reads = load.call_at_rate(program.address, get, _found_or_gone, per_s=200, seconds=14)
        wait_until_swept(url)
    began, ended, rate = swept(url)
    offset_s = time.time() - time.perf_counter()
    meanwhile = [
        latency_s
        for at, latency_s in zip(reads.ended_at, reads.latencies_s, strict=True)
        if began / 1000 <= at + offset_s <= ended / 1000 + 0.05
    ]
    assert len(meanwhile) >= 50, "the sweep did not fall into the time of the reads"
    return rate, load.Load(1, [], meanwhile).latency_s(0.99) * 1000


def _found_or_gone(answer: bytes) -> bool:
    return answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 404"))


def wait_until_swept(url: str) -> None:
    """Until no owner is live any more."""
    deadline = time.monotonic() + SWEEP_WITHIN_S
    live = "SELECT COUNT(*) FROM owners WHERE state = 'active'"
    database = open_database(url)
    while ask(database, live)[0][0]:
        if time.monotonic() > deadline:
            raise RuntimeError("the sweep does not come to its end")
        time.sleep(0.1)
    database.close()


def swept(url: str) -> tuple[int, int, float]:
    """When the first sweeping transaction began and when the last, and refs a second between."""
    database = open_database(url)
    batches = ask(
        database,
        "SELECT at, COUNT(*) FROM events WHERE kind = 'released' GROUP BY at ORDER BY at",
    )
    database.close()
    began, ended = batches[0][0], batches[-1][0]
    return began, ended, sum(count for _, count in batches[:-1]) / ((ended - began) / 1000)


def ask(database: Engine, query: str) -> Sequence[Any]:
    """The rows of a query, whatever the engine."""
    with database.read() as conn:
        return conn.run_text(query)
