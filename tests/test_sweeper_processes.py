"""The sweeper in real processes: thousands of dead owners beside readers and writers, kill -9 in
the middle, several sweepers at once, workers and a registry that are stopped and wake up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from registry.core.records import Owner
from registry.store.sqlite.engine import system_clock
from tests.fleet import GRACE, LEASE, Clock, World, key, worker, worst_of
from tests.places import Place, SQLitePlace
from tests.support import Server, copied, dump_of, wait_for

SHARED = [key(f"{number}.json", "shared") for number in range(2)]
KEPT = key("kept.json", "shared")


def dead_fleet(place: Place, owners: int) -> World:
    """Owners of eight files of their own and two shared ones, whose grace was over a minute ago,
    as if a service had swept until just now; and one that lives and shares a file with them."""
    world = World(place, Clock(system_clock() - LEASE - GRACE - 60_000))
    world.attach_many((worker(n) for n in range(owners)), files=8, shared=2, copied=True)
    world.clock.now = system_clock()
    world.attach(worker(10**6), {SHARED[0]: b"{}", KEPT: b"{}"}, lease=None)
    world.sql("INSERT INTO settings VALUES ('last_sweep_at', ?)", str(world.clock.now))
    if isinstance(place, SQLitePlace):
        world.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    world.close()
    return world


def expired(place: Place) -> int:
    count: int = place.ask("SELECT COUNT(*) FROM owners WHERE state = 'expired'")[0][0]
    return count


def assert_ended_once(place: Place, owners: int) -> None:
    """Each owner has one `expired` event, and nothing is left of any."""
    with place.sql() as connection:
        ask = connection.execute
        assert ask(
            "SELECT COUNT(*), COUNT(DISTINCT instance_id) FROM events WHERE kind = 'expired'"
        ).fetchall() == [(owners, owners)]
        assert ask("SELECT COUNT(*) FROM events WHERE kind = 'released'").fetchall() == [
            (owners * 10,)
        ]
        assert ask("SELECT COUNT(*) FROM events WHERE kind = 'removed'").fetchall() == [
            (owners * 8 + 1,)
        ]


class Load:
    """Callers that go on until the block ends; what they did not expect is raised there."""

    def __init__(self, *callers: Callable[[threading.Event], int]) -> None:
        self._done = threading.Event()
        self._callers = callers
        self._threads = ThreadPoolExecutor(len(callers))
        self.calls: list[int] = []

    def __enter__(self) -> Load:
        self._running = [self._threads.submit(each, self._done) for each in self._callers]
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.calls = [each.result(60) for each in self._running]
        self._threads.shutdown()


def reader(server: Server, owners: int) -> Callable[[threading.Event], int]:
    """Reads a shared file, which is always there, and dead owners' files, which go."""

    def read(done: threading.Event) -> int:
        calls = 0
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                calls += 1
                shared = client.get(f"/v1/metadata/{SHARED[0].slug}/_base/{SHARED[0].filename}")
                assert (shared.status_code, shared.content) == (200, b"{}"), shared.text
                number = calls * 997 % owners
                theirs = client.get(f"/v1/metadata/own-{number}/_base/{calls % 8}.json")
                assert theirs.status_code in (200, 404), theirs.text
                assert client.get("/health").json()["checks"]["database"] == "ok"
        return calls

    return read


def registrar(server: Server, first: int) -> Callable[[threading.Event], int]:
    """Registers new owners with a file of their own and a shared one, and renews them."""

    def register(done: threading.Event) -> int:
        number = first
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                mine = worker(number)
                body = {
                    "owner": {
                        "namespace": mine.namespace,
                        "component": mine.component,
                        "endpoint": mine.endpoint,
                        "instance_id": str(number),
                    },
                    "artifacts": [copied(key("a", f"own-{number}"), b"{}"), copied(KEPT, b"{}")],
                }
                answer = client.post("/v1/registrations", json=body)
                assert answer.status_code == 200, answer.text
                assert client.post(f"/v1/owners/{mine}/renew").status_code == 200
                number += 1
        return number - first

    return register


@pytest.mark.timeout(300)
def test_10_000_dead_owners_are_swept_by_three_sweepers_beside_readers_and_writers(
    place: Place,
) -> None:
    """Two services and the command. Readers see no error, registrations succeed, the work is done
    once, and what is left is what the model says."""
    owners = 10_000
    dead_fleet(place, owners)
    with Server(place, brake_fraction=1) as one, Server(place, brake_fraction=1) as two:
        callers = [reader(one, owners), reader(two, owners)]
        callers += [registrar(one, 20_000), registrar(two, 30_000)]
        with Load(*callers) as load:
            command = [sys.executable, "-m", "registry", "sweep", "--json"]
            by_hand = subprocess.run(
                [*command, "--database-url", place.url], capture_output=True, timeout=100
            )
            assert by_hand.returncode == 0, by_hand.stderr
            wait_for(lambda: expired(place) == owners, 100)
        assert all(count > 0 for count in load.calls)
        alive = load.calls[2] + load.calls[3]
        assert two.client.get("/v1/audit").json()["counts"].keys() <= {"immortal_owner"}
        assert {one.stop(), two.stop()} == {0}
    assert_ended_once(place, owners)
    with place.sql() as connection:
        ask = connection.execute
        assert ask("SELECT COUNT(*) FROM owner_refs").fetchall() == [(2 + 2 * alive,)]
        assert ask("SELECT COUNT(*) FROM entries").fetchall() == [(2 + alive,)]
        assert ask(
            "SELECT slug, filename, COUNT(*) FROM holders WHERE slug = 'shared' "
            "GROUP BY 1, 2 ORDER BY 2"
        ).fetchall() == [("shared", "0.json", 1), ("shared", "kept.json", 1 + alive)]
        assert ask("SELECT COUNT(*) FROM blobs").fetchall() == [(1,)]
    place.assert_sound()
    assert worst_of(place) == {}


def test_a_sweep_that_is_killed_is_finished_by_the_next_service(place: Place) -> None:
    """kill -9 in the middle: what was ended is wholly ended, the rest is as it was."""
    owners = 3000
    dead_fleet(place, owners)
    killed = Server(place, brake_fraction=1)
    wait_for(lambda: expired(place) > 0)
    killed.kill()
    done = expired(place)
    assert 0 < done < owners
    assert done % 500 == 0  # By whole batches.
    place.assert_sound()
    assert worst_of(place) == {"lapsed_lease": owners - done}
    with Server(place, brake_fraction=1) as server:
        wait_for(lambda: expired(place) == owners, 60)
        assert server.stop() == 0
    assert_ended_once(place, owners)
    place.assert_sound()
    assert worst_of(place) == {}


# Workers

WORKER = """
    import sys, time
    from registry.client.client import RegistryClient
    from registry.errors import LeaseGone
    from registry.core.records import ArtifactKey, Offer, Owner

    url, checksum = sys.argv[1:]
    mine = Owner("dynamo", "backend", "generate", 1)
    offers = [Offer(ArtifactKey("tiny", "_base", name), checksum=checksum) for name in ("a", "b")]
    with RegistryClient(url) as client:
        while True:
            client.register(mine, offers, lease_ttl_s=2)
            print("attached", flush=True)
            try:
                while True:
                    time.sleep(0.2)
                    client.renew(mine)
            except LeaseGone:
                print("gone", flush=True)
"""


@contextmanager
def worker_process(
    server: Server, content: bytes
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A worker that registers two files and renews its lease of two seconds; what it says."""
    checksum = copied(KEPT, content)["checksum"]
    command = [sys.executable, "-c", textwrap.dedent(WORKER), server.url, checksum]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    assert process.stdout is not None
    listener = threading.Thread(target=lambda: said.extend(map(str.strip, process.stdout or ())))
    listener.start()
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()


def state_of(server: Server, owner: Owner) -> str:
    answer = server.client.get(f"/v1/owners/{owner}")
    return str(answer.json().get("state"))


def test_a_worker_that_was_stopped_past_its_grace_attaches_again_and_touches_nobody_else(
    serve: Callable[..., Server],
) -> None:
    """SIGSTOP: the machine was suspended, say. Awake, its renewals get 410, and it registers."""
    server = serve(lease_grace_s=1, sweep_interval_s=0.1)
    assert server.upload(b"1").status_code == 201
    mine, other = worker(1), worker(2)
    files = {key("a", "tiny"): b"1", key("c", "tiny"): b"2"}
    with worker_process(server, b"1") as (process, said):
        wait_for(lambda: said == ["attached"])
        assert server.register_copies(other, files, lease_ttl_s=600).status_code == 200
        before = server.client.get(f"/v1/owners/{other}").json()
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state_of(server, mine) == "expired")
        assert said == ["attached"]
        assert server.client.get(f"/v1/owners/{other}").json() == before
        assert server.fetch(key("a", "tiny")).content == b"1"
        assert server.fetch(key("b", "tiny")).status_code == 404
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: said == ["attached", "gone", "attached"])
        assert state_of(server, mine) == "active"
        assert server.client.get(f"/v1/owners/{other}").json() == before
    assert server.unregister(mine).json()["released"] == 2
    assert server.stop() == 0
    assert worst_of(server.place) == {}


# The registry itself


class Heartbeats:
    """Renews leases until the block ends, and goes on when nobody answers; what was answered."""

    def __init__(self, server: Server, owners: list[Owner]) -> None:
        self._server, self._owners = server, owners
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self.answers: set[int] = set()
        self.rounds = 0

    def _beat(self) -> None:
        with httpx2.Client(base_url=self._server.url, timeout=60) as client:
            while not self._done.wait(0.1):
                for owner in self._owners:
                    self.answers.add(client.post(f"/v1/owners/{owner}/renew").status_code)
                self.rounds += 1

    def __enter__(self) -> Heartbeats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_a_registry_that_was_stopped_ends_nobody_for_it(serve: Callable[..., Server]) -> None:
    """Its processes were stopped for longer than lease and grace; workers renew when it wakes."""
    server = serve(lease_grace_s=1.5, sweep_interval_s=0.1, workers=2)
    fleet = [worker(number) for number in range(1, 6)]
    for owner in fleet:
        assert server.register(owner, [], lease_ttl_s=1).status_code == 200
    with Heartbeats(server, fleet) as beating:
        floor = server_variable(server, "expiry_floor_at")
        os.killpg(server.process.pid, signal.SIGSTOP)
        time.sleep(3.5)  # The clock of another process cannot be passed in.
        os.killpg(server.process.pid, signal.SIGCONT)
        rounds = beating.rounds
        wait_for(lambda: server_variable(server, "expiry_floor_at") > floor)
        wait_for(lambda: beating.rounds > rounds + 5)
    assert beating.answers == {200}
    assert server_variable(server, "brake_engaged_at") == 0
    # And who is dead from here on is ended as ever, the brake permitting.
    with Heartbeats(server, fleet[1:]):
        wait_for(lambda: state_of(server, fleet[0]) == "expired")
    assert server.stop() == 0
    assert worst_of(server.place).keys() <= {"lapsed_lease"}


def server_variable(server: Server, name: str) -> int:
    with server.place.sql() as connection:
        row = connection.execute("SELECT value FROM settings WHERE name = ?", [name]).fetchone()
    return int(row[0]) if row else 0


def test_after_an_outage_the_first_sweep_from_cron_ends_nobody(
    serve: Callable[..., Server], place: Place
) -> None:
    """Everything in the database is an hour older than when the service was killed."""
    server = serve()
    fleet = [worker(number) for number in range(1, 6)]
    for owner in fleet:
        assert server.register_copies(owner, {KEPT: b"1"}).status_code == 200
    server.kill()
    with place.sql() as connection:
        connection.execute("UPDATE owners SET lease_expires_at = lease_expires_at - 3600000")
        connection.execute(
            "UPDATE settings SET value = CAST(value AS BIGINT) - 3600000 "
            "WHERE name IN ('last_sweep_at', 'expiry_floor_at')"
        )
    command = [sys.executable, "-m", "registry", "sweep"]
    for _ in range(2):
        swept = subprocess.run(
            [*command, "--database-url", place.url],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (swept.returncode, swept.stderr) == (0, "")
        assert "0 owners ended" in swept.stdout
        assert "5 lapsed owners left alone: after an outage" in swept.stdout
    again = serve()
    for owner in fleet:
        assert again.client.post(f"/v1/owners/{owner}/renew").status_code == 200
    assert again.fetch(KEPT).content == b"1"
    assert again.stop() == 0
    assert worst_of(place) == {}


# Health


def audit_of(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = server.client.get("/v1/audit").json()
    return answer


def test_the_brake_shows_in_health_and_in_the_audit_and_lets_go_when_renewals_return(
    serve: Callable[..., Server],
) -> None:
    server = serve(lease_grace_s=1, sweep_interval_s=0.1)
    fleet = [worker(number) for number in range(1, 5)]
    for owner in fleet:
        assert server.register_copies(owner, {KEPT: b"1"}, lease_ttl_s=1).status_code == 200
    assert server.client.get("/health").json().get("warnings", {}) == {}

    def warnings() -> Any:
        answer = server.client.get("/health")
        assert answer.status_code == 200
        return answer.json().get("warnings", {})

    wait_for(lambda: "brake" in warnings())
    assert "metadata-registry sweep --release-brake" in warnings()["brake"]
    wait_for(lambda: audit_of(server)["counts"] == {"lapsed_lease": 4})
    assert audit_of(server)["summary"]["brake_engaged_at"] is not None
    assert server.fetch(KEPT).content == b"1"
    with Heartbeats(server, fleet) as beating:
        wait_for(lambda: "brake" not in warnings())
        wait_for(lambda: beating.rounds > 3)
        assert beating.answers == {200}
        kinds = [
            server.client.get("/v1/events", params={"kind": kind}).json()["events"]
            for kind in ("expiry_paused", "expiry_resumed", "expired")
        ]
        assert [len(events) for events in kinds] == [1, 1, 0]
        assert audit_of(server)["summary"]["brake_engaged_at"] is None
    for owner in fleet:
        server.unregister(owner)
    assert server.stop() == 0
    assert worst_of(server.place) == {}


def test_an_idle_service_sweeps_and_is_healthy(serve: Callable[..., Server]) -> None:
    server = serve(sweep_interval_s=0.1)
    first = server_variable(server, "last_sweep_at")
    wait_for(lambda: server_variable(server, "last_sweep_at") > first + 300)
    health = server.client.get("/health")
    assert (health.status_code, health.json()["checks"]["sweeper"]) == (200, "ok")
    before = len(dump_of(server.place)["events"])
    wait_for(lambda: server_variable(server, "last_sweep_at") > first + 600)
    assert len(dump_of(server.place)["events"]) == before
