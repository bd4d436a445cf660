"""After thousands of attaches, detaches, restarts and deaths there is what is alive and no more."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from registry.core.records import ArtifactKey, Owner
from tests.fleet import DAY, GRACE, HOUR, INTERVAL, LEASE, SECOND, World, key, worker, worst_of
from tests.support import Server, checksum, sql, wait_for

WORKERS = 10
LORA_CYCLES = 2000
RESTARTS = 200
BASE = {key("config.json"): b"{}", key("tokenizer.json"): b"[1]" * 100}


def lora_files(name: str) -> dict[ArtifactKey, bytes]:
    return {
        key("adapter_config.json", suffix=name): name.encode(),
        key("tokenizer.json", suffix=name): b"[1]" * 100,
    }


class Fleet:
    """Ten workers that share a model; half of them have a name that outlives restarts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.instances = 0
        self.alive: dict[int, Owner] = {}
        self.killed = 0
        for rank in range(WORKERS):
            self.start(rank)

    def name(self, rank: int) -> str | None:
        return f"rank-{rank}" if rank % 2 else None

    def start(self, rank: int) -> None:
        """A new instance: of a worker with a name it takes the place of what the old one left."""
        self.instances += 1
        self.alive[rank] = worker(self.instances)
        self.world.attach(self.alive[rank], BASE, worker_name=self.name(rank))

    def cycle(self, number: int) -> None:
        """A LoRA is attached to a worker; then it is detached, or its worker goes down with it."""
        rank, name = number % WORKERS, f"lora-{number % 37}"
        base = self.alive[rank]
        lora = worker(base.instance_id, name)
        self.world.attach(lora, lora_files(name), worker_name=self.name(rank))
        self.pass_time(6 * SECOND)
        restarts = number * 7 % LORA_CYCLES < RESTARTS
        if restarts and number % 4 < 2:
            self.killed += 1  # kill -9: nothing is detached.
        else:
            self.world.unregister(lora)
            if restarts:
                self.world.unregister(base)
        if restarts:
            self.start(rank)

    def pass_time(self, duration: int) -> None:
        world = self.world
        before, world.clock.now = world.clock.now, world.clock.now + duration
        if before // INTERVAL != world.clock.now // INTERVAL:
            world.renew(*self.alive.values())
            world.sweep()
        if before // (10 * INTERVAL) != world.clock.now // (10 * INTERVAL):
            world.prune()


def size_of(world: World) -> int:
    """Pages of the file; free ones are used again before it grows."""
    pages: int = world.sql("PRAGMA page_count")[0][0]
    return pages


def test_after_2_000_lora_cycles_and_200_restarts_there_is_what_is_alive(world: World) -> None:
    """Half of the restarts are kill -9, without detach. The file has long stopped growing."""
    world.adopt(journal_max_rows=2000, tombstone_retention_ms=HOUR)
    fleet = Fleet(world)
    world.sweep()
    sizes = []
    for number in range(LORA_CYCLES):
        fleet.cycle(number)
        if (number + 1) % 250 == 0:
            sizes.append(size_of(world))
    assert fleet.instances == WORKERS + RESTARTS
    assert fleet.killed == RESTARTS // 2

    for _ in range((LEASE + GRACE + 15 * 60 * SECOND) // INTERVAL):
        fleet.pass_time(INTERVAL)
    assert world.live() == set(fleet.alive.values())
    assert world.sql("SELECT filename, COUNT(*) FROM holders GROUP BY 1 ORDER BY 1") == [
        ("config.json", WORKERS),
        ("tokenizer.json", WORKERS),
    ]
    assert world.sql("SELECT slug, suffix, filename FROM entries ORDER BY 3") == [
        (each.slug, each.suffix, each.filename) for each in BASE
    ]
    kept = {checksum(content) for content in BASE.values()}
    assert {name for (name,) in world.sql("SELECT checksum FROM blobs")} == kept
    assert world.kinds("expiry_paused") == []
    assert max(sizes) <= sizes[3] * 1.02, sizes
    world.assert_healthy()

    world.clock.now += DAY
    world.prune()
    ended = [owner for owner in world.states() if owner not in fleet.alive.values()]
    assert len(ended) <= 10 * WORKERS // 2  # The last ten of each worker with a name.
    world.renew(*fleet.alive.values())
    world.sweep()
    world.assert_healthy()


WORKER = """
    import signal, sys, time
    from registry.client.client import RegistryClient
    from registry.errors import ContentMissing
    from registry.core.hashing import checksum_of
    from registry.core.records import ArtifactKey, Offer, Owner

    url, instance = sys.argv[1:]
    base = Owner("dynamo", "backend", "generate", int(instance))
    loras = [Owner("dynamo", "backend", "generate", int(instance), f"lora-{n}") for n in range(6)]
    checksum = checksum_of(b"1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    def attach(owner):
        offer = Offer(ArtifactKey("tiny", owner.suffix, "a"), checksum=checksum)
        try:
            client.register(owner, [offer], lease_ttl_s=1, worker_name="rank-0")
        except ContentMissing:
            client.upload(checksum, b"1")
            attach(owner)

    with RegistryClient(url) as client:
        attach(base)
        for lora in loras:
            attach(lora)
            if lora != loras[-1]:
                client.unregister_for_owner(lora)
        print("ready", flush=True)
        try:
            while True:
                client.renew(base)
                client.renew(loras[-1])
                time.sleep(0.2)
        finally:
            for owner in (loras[-1], base):
                client.unregister_for_owner(owner)
"""


def test_a_worker_that_is_restarted_and_killed_leaves_what_its_last_instance_holds(
    serve: Callable[..., Server],
) -> None:
    """In real processes: eight restarts with LoRAs that come and go, half of them kill -9. The last
    one is killed for good, and then there is nothing."""
    server = serve(lease_grace_s=1, sweep_interval_s=0.1, upload_grace_s=0)
    for instance in range(1, 9):
        command = [sys.executable, "-c", textwrap.dedent(WORKER), server.url, str(instance)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        rows = sql_rows(server, "SELECT DISTINCT instance_id FROM holders")
        assert rows == [(str(instance),)]
        assert len(sql_rows(server, "SELECT * FROM owner_refs")) == 2
        if instance % 2:
            process.terminate()
        else:
            process.kill()
        _, complaints = process.communicate(timeout=30)
        assert (process.returncode, complaints) == (0 if instance % 2 else -9, "")
    wait_for(lambda: sql_rows(server, "SELECT * FROM owner_refs") == [])
    assert sql_rows(server, "SELECT * FROM entries") == []
    assert sql_rows(server, "SELECT * FROM blobs") == []
    states: dict[str, str] = dict(
        sql_rows(server, "SELECT lora_slug, state FROM owners WHERE instance_id = '8'")
    )
    assert (states[""], states["lora-5"]) == ("expired", "expired")
    assert server.stop() == 0
    assert worst_of(server.database) == {}


def sql_rows(server: Server, query: str) -> list[tuple[Any, ...]]:
    with sql(server.database) as connection:
        return connection.execute(query).fetchall()
