"""Renewing: B11 (the leases of a fleet, an instance a call beside an owner a call)."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import databases, load, programs
from benchmarks.measuring import Figure, Spread
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools
from registry.core.records import Artifact, ArtifactKey, Owner, Registration
from registry.store.ops import register
from registry.store.sqlite.engine import Database

INSTANCES = 500
OWNERS = 20
"""Of one instance: its base model and LoRAs."""
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


def beating(_: Tools, __: int, tell: Tell) -> list[Figure]:
    """B11: renew the leases of 10,000 owners of 500 instances every 20 s."""
    path = databases.fresh("b11")
    _fill(path, tell)
    with programs.registry(path) as program:
        tell("an owner a call")
        alone = _measure(program, _alone(), INSTANCES * OWNERS)
        tell("an instance a call")
        together = _measure(program, _together(), INSTANCES)
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
            ("B11a", "share of a core", "%", together.core, alone.core),
            ("B11b", "requests", "/s", together.requests_per_s, alone.requests_per_s),
            ("B11c", "commits", "/s", together.commits_per_s, alone.commits_per_s),
        )
    ]


def _measure(program: Program, requests: Iterator[bytes], count: int) -> Beat:
    commits, cpu_s, began = _commits_of(program), _cpu_s(program), time.perf_counter()
    done = load.call_at_rate(
        program.address, requests, _is_renewed, per_s=count / BEAT_S, seconds=BEAT_S
    )
    seconds = time.perf_counter() - began
    used_s, written = _cpu_s(program) - cpu_s, _commits_of(program) - commits
    return Beat(len(done.latencies_s) / seconds, written / seconds, 100 * used_s / seconds)


def _is_renewed(answer: bytes) -> bool:
    ok = answer.startswith(b"HTTP/1.1 200") and b'"error"' not in answer
    return ok and answer.count(b'"expires_at"') in (1, OWNERS)


def _owners_of(instance: int) -> list[Owner]:
    loras = [None, *(f"lora-{number}" for number in range(1, OWNERS))]
    return [Owner("bench", "backend", "generate", instance, lora) for lora in loras]


def _alone() -> Iterator[bytes]:
    owners = itertools.chain.from_iterable(map(_owners_of, itertools.cycle(range(INSTANCES))))
    return (databases.http("POST", f"/v1/owners/{owner}/renew") for owner in owners)


def _together() -> Iterator[bytes]:
    for instance in itertools.cycle(range(INSTANCES)):
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


def _fill(path: Path, tell: Tell) -> None:
    """Every owner holds ten files, those of its base model or of the LoRA of that name."""
    database = Database(f"sqlite:///{path}")
    for first in range(0, INSTANCES, TOGETHER):
        tell(f"making {INSTANCES * OWNERS:,} owners: {100 * first // INSTANCES} %")
        items = [
            Registration(owner, _files_of(owner, number), lease_ttl_ms=60_000)
            for instance in range(first, first + TOGETHER)
            for number, owner in enumerate(_owners_of(instance))
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


def _cpu_s(program: Program) -> float:
    """Processor time of the server until now, in seconds."""
    fields = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
