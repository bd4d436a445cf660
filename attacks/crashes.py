"""Processes that are killed, and files that are removed, under load (S16)."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from pathlib import Path

from attacks.arena import NO_ANSWER, Caller, Findings, Load
from tests.support import Server
from tests.test_crashes import (
    SHARED,
    WRITERS,
    Worker,
    check,
    kill_after_next_commit,
    work_until_killed,
)

KILLS = {1: 40, 2: 20}
KILLING_S = 180
REMOVALS = 6


def kills_of_one(folder: Path, findings: Findings) -> None:
    """kill -9 of a service with one process."""
    _kills(folder, findings, 1)


def kills_of_two(folder: Path, findings: Findings) -> None:
    """The same with two processes."""
    _kills(folder, findings, 2)


def _kills(folder: Path, findings: Findings, processes: int) -> None:
    path, root = folder / "registry.db", folder / "root"
    root.mkdir()
    rng = random.Random()
    workers = [Worker(number, random.Random(rng.random()), root) for number in range(WRITERS)]
    for worker in workers:
        (root / f"{worker.number}.json").write_bytes(b"in place %d" % worker.number)
    until = time.monotonic() + KILLING_S
    for _ in range(KILLS[processes]):
        if time.monotonic() > until:
            break
        with Server(path, workers=processes, artifact_root=root) as server:
            check(path, workers)
            for content in SHARED.values():
                findings.check(server.upload(content).status_code in (200, 201), "an upload fails")
            kill = rng.choice([Server.kill, kill_after_next_commit])
            limit = rng.randint(20, 400)
            asyncio.run(work_until_killed(server, workers, kill, limit))
            findings.count("kills")
            findings.count("acknowledged", limit)
    check(path, workers)


def removed_files(folder: Path, findings: Findings) -> None:
    """`rm` of the log and its index beside two processes that write."""
    for turn in range(REMOVALS):
        place = folder / str(turn)
        place.mkdir()
        with Server(place / "registry.db", workers=2) as server:
            load = Load(server, findings)
            with load.going_on():
                time.sleep(1)
                for suffixes in (("-shm",), ("-wal", "-shm"), ("-wal",))[: 1 + turn % 3]:
                    for suffix in suffixes:
                        Path(f"{server.database}{suffix}").unlink(missing_ok=True)
                        findings.count("removals")
                    time.sleep(1.5)
            with suppress(*NO_ANSWER):
                status, _ = Caller(server).call("GET", "/health")
                findings.count(f"times health {status}")
            server.stop()
        load.check(place / "registry.db")
