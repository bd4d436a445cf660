"""Renewing: B12 (the leases of a fleet, an instance a call beside an owner a call)."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import databases, load, programs
from benchmarks.machine import cpu_s
from benchmarks.measuring import Figure, Goal, Spread
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools
from registry.core.records import Artifact, ArtifactKey, Owner, Registration
from registry.store.ops import register
from registry.store.sqlite.engine import Database

INSTANCES = 500
OWNERS = 21
"""Of one instance: its base model and LoRAs."""
CALLERS = 64
SECONDS = 3.0
TOGETHER = 25
"""Instances whose owners are made by one transaction."""
BEAT_S = 20.0
"""How often a lease of a minute is renewed; as long each way is measured."""

_commits = re.compile(rb"^metadata_registry_commit_seconds_count (\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class Beat:
    """What renewing every lease once cost, spread over the time between two renewals."""

    requests_per_s: float
    commits_per_s: float
    core: float
    """The share of a core, in percent."""


def renewing(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B12a, B12b: renew as fast as it goes, 64 callers: an instance a call, an owner a call."""
    path = databases.fresh("b12")
    fill(path, INSTANCES, OWNERS, 600, tell)
    figures = []
    with programs.registry(path) as program:
        for name, what, each, goal in (
            ("B12a", f"{OWNERS} owners of an instance a call", OWNERS, 100_000),
            ("B12b", "one owner a call", 1, 10_000),
        ):
            rates, used = [], []
            for number in range(1, rounds + 1):
                tell(f"{what}, round {number} of {rounds}")
                before = cpu_s(program.pid)
                streams = [_apart(caller, each) for caller in range(CALLERS)]
                done = load.call_in_turn([program.address], streams, _is_renewed, seconds=SECONDS)
                calls = len(done.latencies_s)
                rates.append(done.per_s * each)
                used.append((cpu_s(program.pid) - before) * 1e6 / calls)
            figures.append(
                Figure(
                    name,
                    f"renew leases, {what}, {CALLERS} callers",
                    "owners/s",
                    Spread.of(rates),
                    goal=Goal("ours", goal),
                    cpu_us=Spread.of(used),
                )
            )
    return figures


def _apart(caller: int, each: int) -> Iterator[bytes]:
    """What one of the callers renews: instances of its own."""
    mine = [n for n in range(INSTANCES) if n % CALLERS == caller]
    return _together(mine) if each > 1 else _alone(mine)


def beating(_: Tools, __: int, tell: Tell) -> list[Figure]:
    """B12c: renew the leases of 10,500 owners of 500 instances every 20 s."""
    path = databases.fresh("b12")
    fill(path, INSTANCES, OWNERS, 60, tell)
    with programs.registry(path) as program:
        tell("an owner a call")
        alone = _measure(program, _alone(range(INSTANCES)), INSTANCES * OWNERS)
        tell("an instance a call")
        together = _measure(program, _together(range(INSTANCES)), INSTANCES)
    _assert_all_renewed(path)
    work = f"renew {INSTANCES * OWNERS:,} owners of {INSTANCES} instances every {BEAT_S:g} s"
    return [
        Figure(
            name,
            f"{work}: {what}",
            unit,
            Spread.of([ours]),
            Spread.of([other]),
            "an owner a call",
            Spread.of([ours / other]),
        )
        for name, what, unit, ours, other in (
            ("B12c", "share of a core", "%", together.core, alone.core),
            ("B12d", "requests", "/s", together.requests_per_s, alone.requests_per_s),
            ("B12e", "commits", "/s", together.commits_per_s, alone.commits_per_s),
        )
    ]


def _measure(program: Program, requests: Iterator[bytes], count: int) -> Beat:
    commits, used_s, began = _commits_of(program), cpu_s(program.pid), time.perf_counter()
    done = load.call_at_rate(
        program.address, requests, _is_renewed, per_s=count / BEAT_S, seconds=BEAT_S
    )
    seconds = time.perf_counter() - began
    used_s, written = cpu_s(program.pid) - used_s, _commits_of(program) - commits
    return Beat(len(done.latencies_s) / seconds, written / seconds, 100 * used_s / seconds)


def _is_renewed(answer: bytes) -> bool:
    ok = answer.startswith(b"HTTP/1.1 200") and b'"error"' not in answer
    return ok and answer.count(b'"expires_at"') in (1, OWNERS)


def owner_of(instance: int, number: int) -> Owner:
    """One of the owners of an instance; number 0 is its base model."""
    return Owner("bench", "backend", "generate", instance, f"lora-{number}" if number else None)


def _owners_of(instance: int) -> list[Owner]:
    return [owner_of(instance, number) for number in range(OWNERS)]


def _alone(instances: Sequence[int]) -> Iterator[bytes]:
    owners = itertools.chain.from_iterable(map(_owners_of, itertools.cycle(instances)))
    return (databases.http("POST", f"/v1/owners/{owner}/renew") for owner in owners)


def _together(instances: Sequence[int]) -> Iterator[bytes]:
    for instance in itertools.cycle(instances):
        owners = [
            {
                "namespace": each.namespace,
                "component": each.component,
                "endpoint": each.endpoint,
                "instance_id": str(each.instance_id),
                "lora_slug": each.lora_slug,
            }
            for each in _owners_of(instance)
        ]
        body = json.dumps({"owners": owners}).encode()
        yield databases.http("POST", "/v1/renewals", body)


def fill(path: Path, instances: int, owners: int, lease_s: int, tell: Tell) -> None:
    """Every owner holds ten files, those of its base model or of the LoRA of that name."""
    database = Database(f"sqlite:///{path}")
    for first in range(0, instances, TOGETHER):
        tell(f"making {instances * owners:,} owners: {100 * first // instances} %")
        items = [
            Registration(
                owner_of(instance, number),
                _files_of(owner_of(instance, number), number),
                lease_ttl_ms=lease_s * 1000,
            )
            for instance in range(first, min(first + TOGETHER, instances))
            for number in range(owners)
        ]
        with database.write() as conn:
            register.register(conn, conn.now, items)
    database.close()


def _files_of(owner: Owner, number: int) -> tuple[Artifact, ...]:
    return tuple(
        Artifact(ArtifactKey("model", owner.suffix, each.key.filename), each.checksum)
        for each in databases.manifest(number, 10**6)
    )


def _assert_all_renewed(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    with database.read() as conn:
        ((count, first, last),) = conn.run_text(
            "SELECT COUNT(*), MIN(renewed_at), MAX(renewed_at) FROM owners WHERE state = 'active'"
        )
    database.close()
    assert count == INSTANCES * OWNERS, f"{count} owners are left"
    assert last - first < BEAT_S * 1000 + 2000, "not every lease was renewed"


def _commits_of(program: Program) -> float:
    with socket.create_connection(program.address, timeout=load.ANSWER_S) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    found = _commits.search(answer)
    assert found is not None, answer[:600]
    return float(found[1])
