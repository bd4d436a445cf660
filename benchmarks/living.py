"""A fleet as it lives: B14 (heartbeats, comings and goings and reads, on one core)."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from benchmarks import databases, load, programs
from benchmarks.machine import cpu_s, memory_mib, written_mib
from benchmarks.measuring import Costs, Figure, Goal, Spread
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools
from benchmarks.renewing import fill, owner_of
from registry.core.records import Owner
from registry.store.sqlite.engine import Database

INSTANCES = 1000
OWNERS = 21
"""Of one instance: its base model and 20 LoRAs."""
LEASE_S = 60
BEAT_S = 20
CHANGES_PER_S = 50
GETS_PER_S = 200
SECONDS = 300.0
RENEW = f"a renewal of {OWNERS} owners"
ATTACH = "a registration of 10 files"
DETACH = "an unregistering of 10 files"
GET = "a GET of 1 KiB"
PER_S = {
    RENEW: INSTANCES / BEAT_S,
    ATTACH: CHANGES_PER_S,
    DETACH: CHANGES_PER_S,
    GET: GETS_PER_S,
}
ALONE_S, ALONE_ROUNDS = 0.7, 3
COMERS = 10**7
"""Instances from here on come and go."""


@dataclass(slots=True)
class Life:
    """What was found: latencies of GETs, memory, processor time and bytes written while the fleet
    lived."""

    reads: load.Load | None = None
    memory: list[float] = field(default_factory=list)
    core: float = 0.0
    written_mib_s: float = 0.0


def fleet(_: Tools, __: int, tell: Tell) -> list[Figure]:
    """B14: 1,000 instances with 20 LoRAs each renew leases of 60 s every 20 s; 50 owners a second
    attach and 50 detach; 200 GETs a second. For five minutes, on one core."""
    path = databases.fresh("b14")
    fill(path, INSTANCES, OWNERS, LEASE_S, tell)
    with programs.registry(path) as program:
        tell("what each call costs")
        costs = _costs(program)
        found = _live(program, tell)
    _assert_nobody_lapsed(f"sqlite:///{path}")
    assert found.reads is not None
    work = f"{INSTANCES:,} instances of {OWNERS} owners, 50 + 50 changes/s, 200 GETs/s, 5 min"
    early, late = found.memory[len(found.memory) // 5], found.memory[-1]
    return [
        Figure(
            "B14a",
            f"{work}: p99 of the GETs",
            "ms",
            Spread.of([found.reads.latency_s(0.99) * 1000]),
            goal=Goal("ours", 5, at_most=True),
        ),
        Figure(
            "B14b",
            "share of a core, without a lapsed lease",
            "%",
            Spread.of([found.core]),
            goal=Goal("ours", 50, at_most=True),
        ),
        Figure(
            "B14c",
            "memory at the end, less that after a minute",
            "MiB",
            Spread.of([late - early]),
            goal=Goal("ours", 4, at_most=True),
        ),
        Figure("B14d", "written to disk", "MiB/s", Spread.of([found.written_mib_s])),
        *(
            Figure(name, f"processor time of {call}, alone", "us", costs[call])
            for name, call in zip(("B14e", "B14f", "B14g", "B14h"), PER_S, strict=True)
        ),
        _foretold(costs, found.core),
    ]


def _foretold(costs: dict[str, Spread], core: float) -> Figure:
    """What the costs of the calls say of the share of the core, beside what was found."""
    share = sum(per_s * costs[call].median for call, per_s in PER_S.items()) / 1e4
    return Figure(
        "B14i",
        "share of a core that these costs foretell",
        "%",
        Spread.of([share]),
        Spread.of([core]),
        "found",
        Spread.of([share / core]),
    )


def _costs(program: Program) -> dict[str, Spread]:
    """Processor time of each kind of call, in microseconds, where one caller waits for each."""
    newcomers = 10 * COMERS
    coming, going = itertools.count(newcomers), itertools.count(newcomers)
    streams: dict[str, tuple[Iterator[bytes], load.Check]] = {
        RENEW: (_beats(), _is_renewed),
        ATTACH: (
            (databases.registration(n, databases.manifest(n % 1000, 10**6)) for n in coming),
            _is_ok,
        ),
        DETACH: ((databases.unregistration(n) for n in going), _has_released),
        GET: (_gets(), _is_ok),
    }
    found = {}
    for call, (stream, check) in streams.items():
        costs = Costs(program.pid)
        seconds = ALONE_S * (2 if call == ATTACH else 1)  # More come than go.
        measure = costs.rate(
            partial(load.call_in_turn, [program.address], [stream], check, seconds=seconds)
        )
        for _ in range(ALONE_ROUNDS):
            measure()
        found[call] = costs.us
    return found


def _live(program: Program, tell: Tell) -> Life:
    life = Life()
    errors: list[BaseException] = []

    def doing(what: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                what()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=run)

    def at_rate(requests: Iterator[bytes], per_s: float, check: load.Check) -> load.Load:
        return load.call_at_rate(program.address, requests, check, per_s=per_s, seconds=SECONDS)

    def read() -> None:
        life.reads = at_rate(_gets(), GETS_PER_S, _is_ok)

    threads = [
        doing(lambda: at_rate(_beats(), INSTANCES / BEAT_S, _is_renewed)),
        doing(lambda: at_rate(_changes(), 2 * CHANGES_PER_S, _is_ok)),
        doing(read),
    ]
    used_s, written, began = cpu_s(program.pid), written_mib(program.pid), time.perf_counter()
    for each in threads:
        each.start()
    while any(each.is_alive() for each in threads):
        life.memory.append(memory_mib(program.pid))
        tell(f"{len(life.memory)} of {SECONDS / 5:.0f}")
        time.sleep(5)
    for each in threads:
        each.join()
    if errors:
        raise errors[0]
    seconds = time.perf_counter() - began
    life.core = 100 * (cpu_s(program.pid) - used_s) / seconds
    life.written_mib_s = (written_mib(program.pid) - written) / seconds
    return life


def _beats() -> Iterator[bytes]:
    for instance in itertools.cycle(range(INSTANCES)):
        owners = [_spelled(owner_of(instance, number)) for number in range(OWNERS)]
        yield databases.http("POST", "/v1/renewals", json.dumps({"owners": owners}).encode())


def _spelled(owner: Owner) -> dict[str, object]:
    return {
        "namespace": owner.namespace,
        "component": owner.component,
        "endpoint": owner.endpoint,
        "instance_id": str(owner.instance_id),
        "lora_slug": owner.lora_slug,
    }


def _changes() -> Iterator[bytes]:
    """One comes; the one that came 100 before goes."""
    for number in itertools.count():
        yield databases.registration(COMERS + number, databases.manifest(number % 1000, 10**6))
        if number >= 100:
            yield databases.unregistration(COMERS + number - 100)


def _gets() -> Iterator[bytes]:
    key = databases.manifest(0, 10**6)[0].key
    return itertools.repeat(databases.http("GET", f"/v1/metadata/model/_base/{key.filename}"))


def _is_ok(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200")


def _has_released(answer: bytes) -> bool:
    return b'"released":10' in answer


def _is_renewed(answer: bytes) -> bool:
    return _is_ok(answer) and answer.count(b'"expires_at"') == OWNERS


def _assert_nobody_lapsed(url: str) -> None:
    database = Database(url)
    with database.read() as conn:
        ((lapsed,),) = conn.run_text("SELECT COUNT(*) FROM events WHERE kind = 'expired'")
        ((live,),) = conn.run_text(
            "SELECT COUNT(*) FROM owners "
            f"WHERE state = 'active' AND CAST(instance_id AS INTEGER) < {COMERS}"
        )
    database.close()
    assert (lapsed, live) == (0, INSTANCES * OWNERS), f"{lapsed} lapsed, {live} are left"
