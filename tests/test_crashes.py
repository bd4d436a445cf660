"""kill -9 of a service under load (S16): what it acknowledged is there, the rest wholly or not.

64 workers upload, register new and shared keys, and unregister. At a moment chosen by how much
was acknowledged the service is killed and started again on the same file; then the database is
compared with what the workers were told, and they go on.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from tests.support import (
    Server,
    assert_sound,
    checksum,
    copied,
    in_place,
    owner_body,
    sql,
)

WRITERS = 64
COMMIT_WITHIN_S = 0.2
SHARED = {
    ArtifactKey("shared", "_base", f"{number}.json"): b"shared %d" % number for number in range(3)
}
CONTESTED = ArtifactKey("contested", "_base", "config.json")

Held = Mapping[ArtifactKey, str]
"""What an owner holds: keys and their checksums."""


class Killed(Exception):
    """The service is gone; a request may have been carried out or not."""


class Refused(Exception):
    """The service is busy, as a slow machine makes it: nothing was written."""


@dataclass
class Worker:
    """One owner with what was acknowledged to it, and what it asked for without an answer."""

    number: int
    rng: random.Random
    root: Path
    held: Held = field(default_factory=dict)
    pending: Held | None = None
    uploaded: set[str] = field(default_factory=set)
    generation: int = 0

    @property
    def owner(self) -> Owner:
        endpoint = "prefill" if self.number % 2 else "generate"
        return Owner("ns", "backend", endpoint, self.number // 2)

    async def work(self, service: Service) -> None:
        while True:
            try:
                if self.held and self.rng.random() < 0.3:
                    await self.unregister(service)
                else:
                    await self.register(service)
            except Refused:
                self.pending = None

    async def register(self, service: Service) -> None:
        """A manifest of copies that were uploaded just now, shared ones, a file, and sometimes a
        key that everybody wants for himself."""
        self.generation += 1
        own = {
            ArtifactKey(f"model-{self.number}", "_base", name): b"%d %d %s"
            % (self.number, self.generation, name.encode())
            for name in self.rng.sample(["a.json", "b.json", "c.json"], 2)
        }
        for content in own.values():
            await service.call("PUT", f"/v1/blobs/{checksum(content)}", content=content)
            self.uploaded.add(checksum(content))
        wanted = own | {key: SHARED[key] for key in self.rng.sample(list(SHARED), 2)}
        if self.rng.random() < 0.2:
            wanted[CONTESTED] = next(iter(own.values()))
        lines = [copied(key, content) for key, content in wanted.items()]
        file = self.root / f"{self.number}.json"
        placed = ArtifactKey(f"model-{self.number}", "_base", "placed.json")
        lines.append(in_place(placed, file))
        self.pending = {
            **self.held,
            **{key: checksum(content) for key, content in wanted.items()},
            placed: checksum(file.read_bytes()),
        }
        body = {"owner": owner_body(self.owner), "lease_ttl_s": None, "artifacts": lines}
        answer = await service.call("POST", "/v1/registrations", json=body)
        if answer.status_code == 200:
            self.held = self.pending
        else:
            assert (answer.status_code, CONTESTED in wanted) == (409, True), answer.text
        self.pending = None

    async def unregister(self, service: Service) -> None:
        self.pending = {}
        answer = await service.call("DELETE", f"/v1/owners/{self.owner}")
        assert answer.json()["released"] == len(self.held)
        self.held, self.pending = {}, None

    def settle(self, found: Held) -> None:
        """Compare with the database, which also tells what became of the last request."""
        assert found in [self.held, self.held if self.pending is None else self.pending]
        self.held, self.pending = found, None


@dataclass
class Service:
    """The service as the workers see it: killed once `limit` requests were acknowledged."""

    client: httpx2.AsyncClient
    kill: Callable[[], None]
    limit: int
    acknowledged: int = 0

    async def call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = await self.client.request(method, path, **request)
        except httpx2.TransportError as error:
            raise Killed from error
        if answer.status_code == 503:
            assert answer.json()["code"] == "busy", answer.text
            raise Refused
        assert answer.status_code < 500, answer.text
        self.acknowledged += 1
        if self.acknowledged == self.limit:
            self.kill()
        return answer


def kill_after_next_commit(server: Server) -> None:
    """Kill between a commit and the answers to it, as far as one can from outside."""
    with sql(server.database) as connection:
        version = connection.execute("PRAGMA data_version").fetchall()
        patience = time.monotonic() + COMMIT_WITHIN_S
        while connection.execute("PRAGMA data_version").fetchall() == version:
            if time.monotonic() > patience:
                break  # No request was under way.
        server.kill()


async def work_until_killed(
    server: Server, workers: Sequence[Worker], kill: Callable[[Server], None], limit: int
) -> None:
    limits = httpx2.Limits(max_connections=len(workers))
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        service = Service(client, functools.partial(kill, server), limit)
        ends = await asyncio.gather(
            *[worker.work(service) for worker in workers], return_exceptions=True
        )
    for end in ends:
        if not isinstance(end, Killed):
            assert isinstance(end, BaseException)
            raise end


def holdings(connection: sqlite3.Connection) -> Iterator[tuple[Owner, ArtifactKey, str]]:
    rows = connection.execute(
        "SELECT namespace, component, endpoint, instance_id, slug, suffix, filename, checksum "
        "FROM owner_refs JOIN owners ON owners.id = owner_id JOIN entries ON entries.id = entry_id"
    )
    for namespace, component, endpoint, number, slug, suffix, filename, content in rows:
        owner = Owner(namespace, component, endpoint, int(number))
        yield owner, ArtifactKey(slug, suffix, filename), content


def check(path: Path, workers: Sequence[Worker]) -> None:
    """Everything acknowledged is there; what was not is there as a whole or not at all."""
    assert_sound(path)
    found: dict[Owner, dict[ArtifactKey, str]] = {worker.owner: {} for worker in workers}
    with sql(path) as connection:
        for owner, key, content in holdings(connection):
            found[owner][key] = content
        copies = {row[0] for row in connection.execute("SELECT checksum FROM blobs")}
        live = {
            row[0]
            for row in connection.execute(
                "SELECT endpoint || instance_id FROM owners WHERE state = 'active'"
            )
        }
    for worker in workers:
        worker.settle(found[worker.owner])
        assert worker.uploaded <= copies
        name = f"{worker.owner.endpoint}{worker.owner.instance_id}"
        assert (name in live) == bool(worker.held)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("processes", "kills"), [(1, 14), (2, 6)])
def test_after_kill_9_everything_acknowledged_is_there_and_nothing_is_half_there(
    database_path: Path, tmp_path: Path, processes: int, kills: int
) -> None:
    rng = random.Random()
    root = tmp_path / "root"
    root.mkdir()
    workers = [Worker(number, random.Random(rng.random()), root) for number in range(WRITERS)]
    for worker in workers:
        (root / f"{worker.number}.json").write_bytes(b"in place %d" % worker.number)
    for _ in range(kills):
        with Server(database_path, workers=processes, artifact_root=root) as server:
            check(database_path, workers)
            for content in SHARED.values():
                assert server.upload(content).status_code in (200, 201), server.log
            kill = rng.choice([Server.kill, kill_after_next_commit])
            asyncio.run(work_until_killed(server, workers, kill, rng.randint(20, 400)))
    with Server(database_path, workers=processes, artifact_root=root) as server:
        check(database_path, workers)
        for worker in workers:
            for key, held in worker.held.items():
                if key.slug != "shared":
                    assert server.fetch(key).headers["etag"] == f'"{held}"'
