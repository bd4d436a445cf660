"""The sweeper ends who is due, and leaves the rows that a polite worker would have left (S9)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.config import Settings
from registry.core.policy import Policy
from registry.core.records import OwnerState, Renewed
from registry.errors import LeaseGone
from registry.service.sweeper import Sweeper, pause_s, policy_from
from registry.store.ops import expire
from registry.store.ops.expire import Ending, Sweep, Swept
from registry.store.ops.settings_table import policy_of, read_variables
from registry.store.sqlite.engine import system_clock
from tests.fleet import (
    GRACE,
    HOUR,
    INTERVAL,
    LEASE,
    MINUTE,
    SECOND,
    Service,
    World,
    key,
    run_cli,
    worker,
)
from tests.places import Place, Places, SQLitePlace, on_both
from tests.support import Dump, dump_of, wait_for

pytestmark = on_both

# Who is due


@pytest.mark.parametrize(
    ("after", "state"),
    [
        pytest.param(LEASE - 1, "active", id="the lease runs"),
        pytest.param(LEASE, "active", id="it lapsed"),
        pytest.param(LEASE + GRACE - 1, "active", id="the grace runs"),
        pytest.param(LEASE + GRACE, "expired", id="the grace is over"),
    ],
)
def test_an_owner_is_ended_when_its_lease_and_the_grace_are_over(
    world: World, after: int, state: str
) -> None:
    mine = worker(1)
    world.attach(mine)
    world.sweep()
    world.sweeping_for(after)
    assert world.states() == {mine: state}
    world.assert_healthy()


def test_an_owner_without_a_lease_is_never_ended(world: World) -> None:
    mine = worker(1)
    world.attach(mine, lease=None)
    world.sweep()
    world.sweeping_for(2 * HOUR, every=MINUTE)
    assert world.states() == {mine: "active"}
    world.assert_healthy()


def test_a_sweep_says_who_was_ended_and_why(world: World) -> None:
    gone, drained, alive = worker(1), worker(2, "tuned"), worker(3)
    for owner in (gone, drained, alive):
        world.attach(owner)
    world.sweep()
    world.drain(drained, LEASE)
    swept = [each for each in world.sweeping_for(LEASE + GRACE, renewing=[alive]) if each.ended]
    assert [each.ended for each in swept] == [
        (Ending(drained, OwnerState.DETACHED, "drain deadline"),),
        (Ending(gone, OwnerState.EXPIRED, "expired"),),
    ]
    assert [(each.released, each.waiting, each.paused) for each in swept] == [(1, 0, None)] * 2
    world.assert_healthy()


def test_what_others_hold_stays_when_an_owner_expires(world: World) -> None:
    gone, alive = worker(1), worker(2)
    world.attach(gone, {key("shared"): b"1", key("own"): b"2"})
    world.attach(alive, {key("shared"): b"1"})
    world.sweep()
    world.sweeping_for(LEASE + GRACE + 15 * MINUTE, renewing=[alive])
    assert world.sql("SELECT filename, instance_id FROM holders") == [("shared", "2")]
    world.clock.now += HOUR
    world.prune()
    assert world.sql("SELECT COUNT(*) FROM blobs") == [(1,)]
    world.renew(alive)
    world.assert_healthy()


def test_a_dead_worker_and_a_polite_one_leave_the_same_rows(places: Places, tmp_path: Path) -> None:
    """S7, S9: expiry and unregister differ in the words for it, and in nothing else."""

    def left_by(place: Place, polite: bool) -> Dump:
        world = World(place)
        mine, other = worker(1, "tuned"), worker(2)
        world.attach(mine, {key("shared"): b"1", key("own"): b"2", key("a", "b"): b"2"})
        world.attach(other, {key("shared"): b"1"}, lease=None)
        world.sweep()
        world.sweeping_for(LEASE + GRACE - 1)
        world.clock.now += 1
        if polite:
            world.unregister(mine)
        world.sweep()
        world.assert_healthy()
        world.close()
        return dump_of(world.place)

    with places.at(tmp_path, "dead.db") as one, places.at(tmp_path, "polite.db") as other:
        dead, polite = left_by(one, False), left_by(other, True)
    assert dead != polite
    words = {"expired": "detached", "unregistered": "detached"}
    for rows in (dead, polite):
        for table in ("owners", "events"):
            rows[table] = [tuple(words.get(str(each), each) for each in row) for row in rows[table]]
    assert dead == polite


def test_a_renewal_between_two_batches_is_not_overlooked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch judges again under the write lock."""
    monkeypatch.setattr(expire, "OWNERS_PER_SWEEP", 2)
    world.adopt(brake_percent=100)
    fleet = world.attach_many(worker(number) for number in range(5))
    world.sweep()
    world.sweeping_for(LEASE + GRACE - 1)
    world.clock.now += 1
    first = world.do(expire.sweep, Sweep(force=True))
    assert ([each.owner for each in first.ended], first.more) == (fleet[:2], True)
    gone, renewed = world.renew(fleet[0], fleet[3])
    assert isinstance(gone, LeaseGone)
    assert isinstance(renewed, Renewed)
    second = world.do(expire.sweep, Sweep(repeated=True))
    assert [each.owner for each in second.ended] == [fleet[2], fleet[4]]
    assert world.live() == {fleet[3]}
    world.assert_healthy()


def test_batches_are_bounded_by_owners_and_by_refs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least one owner goes in each, however much it holds."""
    monkeypatch.setattr(expire, "OWNERS_PER_SWEEP", 4)
    monkeypatch.setattr(expire, "REFS_PER_SWEEP", 10)
    world.adopt(brake_percent=100)
    for numbers, files in ((range(6), 1), (range(6, 9), 4), (range(9, 11), 20)):
        world.attach_many((worker(number) for number in numbers), files=files)
    world.sweep()
    world.sweeping_for(LEASE + GRACE - 1)
    world.clock.now += 1
    batches: list[tuple[int, int]] = []
    item, more = Sweep(force=True), True
    while more:
        done = world.do(expire.sweep, item)
        batches.append((len(done.ended), done.released))
        item, more = Sweep(repeated=True), done.more
    assert batches == [(4, 4), (4, 10), (1, 4), (1, 20), (1, 20)]
    assert world.live() == set()
    world.assert_healthy()


# Several sweepers


def test_who_comes_right_after_another_does_nothing(world: World) -> None:
    mine = worker(1)
    world.attach(mine)
    assert not world.do(expire.sweep, Sweep()).skipped
    before = dump_of(world.place)
    world.clock.now += INTERVAL // 2 - 1
    assert world.do(expire.sweep, Sweep()) == Swept(skipped=True)
    assert dump_of(world.place) == before
    assert not world.do(expire.sweep, Sweep(force=True)).skipped
    world.clock.now += INTERVAL // 2
    assert not world.do(expire.sweep, Sweep()).skipped
    world.clock.now -= HOUR
    assert not world.do(expire.sweep, Sweep()).skipped  # Nobody swept in the last half hour.
    world.assert_healthy()


def test_of_two_services_one_does_the_work(world: World) -> None:
    """They take turns, whoever comes first; each owner is ended once."""
    fleet = world.attach_many(worker(number) for number in range(3))
    alive = world.attach_many(worker(number) for number in range(100, 120))

    async def run_both() -> None:
        async with (
            Service(world.place, world.clock) as one,
            Service(world.place, world.clock) as two,
        ):
            sweepers = [Sweeper(one), Sweeper(two)]
            for turn in range(80):
                world.clock.now += INTERVAL // 2 - 1
                await asyncio.gather(*(each.sweep_once() for each in sweepers[:: (-1) ** turn]))
                world.renew(*alive)

    asyncio.run(run_both())
    assert world.live() == set(alive)
    rows = world.sql("SELECT instance_id, COUNT(*) FROM events WHERE kind = 'expired' GROUP BY 1")
    assert rows == [(str(owner.instance_id), 1) for owner in fleet]
    world.assert_healthy()


def test_a_service_adopts_its_settings_for_everybody(world: World) -> None:
    async def start() -> Policy:
        settings = {"lease_grace_s": 30, "brake_fraction": 0.5, "journal_max_rows": 77}
        async with Service(world.place, world.clock, **settings) as registry:
            await Sweeper(registry).sweep_once()
            return policy_from(registry.settings)

    policy = asyncio.run(start())
    with world.database.read() as conn:
        assert policy_of(read_variables(conn)) == policy
    assert (policy.lease_grace_ms, policy.brake_percent) == (30_000, 50)
    assert policy.sweep_interval_ms == 5 * SECOND  # Half of what counts as an outage.
    world.attach(worker(1))
    world.sweeping_for(LEASE + 30_000, every=5 * SECOND)
    assert world.live() == set()
    world.assert_healthy()


def test_a_service_with_a_longer_grace_sweeps_as_often_as_the_shortest_asks_for(
    world: World,
) -> None:
    """Otherwise each of its pauses would count as an outage, and nobody would ever be ended."""
    mine = worker(1)
    world.attach(mine)

    async def run_both() -> None:
        async with Service(world.place, world.clock) as slow:
            sweeper = Sweeper(slow)
            await sweeper.sweep_once()
            assert sweeper.pause_s == 10
            async with Service(world.place, world.clock, lease_grace_s=6) as quick:
                world.clock.now += 10 * SECOND
                await Sweeper(quick).sweep_once()
            while world.clock.now < 2 * MINUTE + world.sql("SELECT renewed_at FROM owners")[0][0]:
                world.clock.now += round(sweeper.pause_s * 1000)
                await sweeper.sweep_once()
            assert sweeper.pause_s == 1

    asyncio.run(run_both())
    assert world.states() == {mine: "expired"}
    world.assert_healthy()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 10),
        ({"sweep_interval_s": 3600}, 50),
        ({"sweep_interval_s": 0.1}, 0.1),
        ({"lease_grace_s": 6}, 1),
        ({"lease_grace_s": 0}, 0.25),
    ],
)
def test_two_sweeps_fit_into_what_counts_as_an_outage(
    given: dict[str, Any], expected: float
) -> None:
    settings = Settings(**given)
    assert pause_s(settings) == expected
    assert 2000 * pause_s(settings) <= policy_from(settings).outage_ms


def test_without_any_grace_the_dead_are_ended_all_the_same(world: World) -> None:
    """The pause between two sweeps is no outage, however short the grace."""
    policy = policy_from(Settings(lease_grace_s=0))
    world.adopt(lease_grace_ms=0, sweep_interval_ms=policy.sweep_interval_ms)
    mine = worker(1)
    world.attach(mine, lease=SECOND)
    world.sweep()
    world.sweeping_for(SECOND, every=policy.sweep_interval_ms)
    assert world.states() == {mine: "expired"}
    world.assert_healthy()


def test_a_sweep_that_fails_is_logged_and_the_next_one_comes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def run_locked() -> None:
        settings = {"sweep_interval_s": 0.1, "busy_timeout_s": 0.01}
        service = Service(world.place, world.clock, **settings)
        service.registry.database.busy_timeout_s = 0.01
        async with service as registry:
            sweeper = Sweeper(registry)
            with world.place.write_locked():
                sweeper.start()
                await until(lambda: "the sweep failed and will be tried again" in caplog.text)
            await until(lambda: world.variable("last_sweep_at") is not None)
            await sweeper.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run_locked())
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    world.assert_healthy()


async def until(condition: Any) -> None:
    await asyncio.to_thread(wait_for, condition)


# By hand


@pytest.fixture
def due(world: World) -> World:
    """Commands go by the real time: 600 dead owners and one that drained are due at about now."""
    world.clock.now = system_clock() - LEASE - GRACE - 5 * SECOND
    world.adopt(brake_percent=100)
    world.attach_many(worker(number) for number in range(600))
    world.attach(worker(1000, "tuned"))
    world.drain(worker(1000, "tuned"), LEASE + GRACE)
    world.sweep()
    world.sweeping_for(LEASE + GRACE - SECOND, every=MINUTE)
    assert len(world.live()) == 601
    return world


@contextmanager
def committing_nothing(place: Place) -> Iterator[None]:
    """Also not a change that is taken back. (PostgreSQL tells only of all of its databases.)"""
    if not isinstance(place, SQLitePlace):
        yield
        return
    with place.sql() as watching:
        version = watching.execute("PRAGMA data_version").fetchall()
        yield
        assert watching.execute("PRAGMA data_version").fetchall() == version


def test_a_dry_run_changes_nothing_and_names_everybody(due: World) -> None:
    """More than one batch would end, and not a word of it in the database."""
    before = dump_of(due.place)
    with committing_nothing(due.place):
        for flags in ([], ["--release-brake"]):
            arguments = ["sweep", "--dry-run", *flags, "--database-url", due.url]
            code, out, err = run_cli(*arguments)
            assert (code, err) == (0, "")
            assert out.endswith("\n601 owners would be ended, 601 refs released.\n")
            code, out, _ = run_cli(*arguments, "--json")
            answer = json.loads(out)
            assert (answer["released"], answer["waiting"], answer["paused"]) == (601, 0, None)
            ended = [(each["state"], each["reason"]) for each in answer["ended"]]
            assert ended == [("detached", "drain deadline"), *[("expired", "expired")] * 600]
    assert dump_of(due.place) == before


def test_the_command_ends_whoever_is_due_and_then_there_is_nothing_to_do(due: World) -> None:
    code, out, err = run_cli("sweep", "--database-url", due.url)
    assert (code, err) == (0, "")
    assert "dynamo/backend/generate/1000/tuned  detached  drain deadline" in out
    ended, removed = out.splitlines()[-2:]
    assert ended == "601 owners ended, 601 refs released."
    assert removed == "Removed: 601 entries."
    assert due.sql("SELECT state, COUNT(*) FROM owners GROUP BY state ORDER BY state") == [
        ("detached", 1),
        ("expired", 600),
    ]
    due.clock.now = system_clock()
    due.assert_healthy()
    before = due.sql("SELECT COUNT(*) FROM events")
    code, out, _ = run_cli("sweep", "--json", "--database-url", due.url)
    nothing = {"entries": 0, "copies": 0, "tombstones": 0, "events": 0}
    assert json.loads(out) == {
        "ended": [],
        "released": 0,
        "waiting": 0,
        "paused": None,
        "owners": 0,
        "removed": nothing,
    }
    assert due.sql("SELECT COUNT(*) FROM events") == before


def test_a_dry_run_needs_no_write_lock(due: World) -> None:
    with due.place.write_locked():
        code, out, _ = run_cli("sweep", "--dry-run", "--database-url", due.url)
        assert (code, "601 owners would be ended" in out) == (0, True)


def test_a_database_that_cannot_be_swept_is_left_as_it_is(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    for command in ("sweep", "audit", "verify"):
        code, out, err = run_cli(command, "--database-url", f"sqlite:///{missing}")
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
