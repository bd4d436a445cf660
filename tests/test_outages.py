"""The registry's own troubles end nobody: outages, stalls, crashes, a clock that is moved (S10)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.core.checks import LEASE_MAX_MS
from registry.core.policy import Policy
from registry.core.records import Artifact, Owner, Registration, Renewed
from registry.errors import RegistryError
from registry.service.sweeper import Sweeper
from registry.store.engine import Connection
from registry.store.ops import expire, register
from registry.store.ops import leases as leases_module
from registry.store.ops.expire import Sweep
from registry.store.owner_columns import identity
from registry.store.sqlite.engine import Database, system_clock
from tests.fleet import (
    DAY,
    GRACE,
    HOUR,
    INTERVAL,
    LEASE,
    MINUTE,
    SECOND,
    START,
    Service,
    World,
    key,
    run_cli,
    worker,
)

OUTAGE = Policy().outage_ms
FLEET = [worker(number) for number in range(1, 11)]

# The floor


def test_nobody_is_ended_for_an_outage_and_everybody_gets_a_lease_and_the_grace(
    world: World,
) -> None:
    """Half of the fleet comes back, at the last moment; the other half is dead."""
    alive, dead = FLEET[:8], FLEET[8:]
    world.attach_many(FLEET)
    world.sweep()
    world.sweeping_for(5 * MINUTE, renewing=FLEET)
    world.clock.now += 10 * HOUR
    first = world.sweep()
    assert (first.ended, first.waiting) == ((), len(FLEET))
    assert first.paused is not None
    assert "after an outage" in first.paused
    assert not any(each.ended for each in world.sweeping_for(LEASE + GRACE - 1))
    assert all(isinstance(each, Renewed) for each in world.renew(*alive))
    world.clock.now += 1
    assert {each.owner for each in world.sweep().ended} == set(dead)
    assert world.live() == set(alive)
    world.assert_healthy()


def test_every_owner_gets_its_own_lease_after_an_outage(world: World) -> None:
    leases = {worker(1): SECOND, worker(2): 10 * MINUTE, worker(3): HOUR}
    for owner, lease in leases.items():
        world.attach(owner, lease=lease)
    world.adopt(brake_percent=100)
    world.sweep()
    world.clock.now += DAY
    back = world.clock.now
    world.sweep()
    ended: dict[Owner, int] = {}
    while world.live():
        (swept,) = world.sweeping_for(MINUTE, every=MINUTE)
        ended |= {each.owner: world.clock.now - back for each in swept.ended}
    assert ended == {
        owner: -(-(lease + GRACE) // MINUTE) * MINUTE for owner, lease in leases.items()
    }
    world.assert_healthy()


@pytest.mark.parametrize("gap", [OUTAGE, OUTAGE + 1])
def test_a_gap_is_an_outage_when_it_is_longer_than_a_third_of_the_grace(
    world: World, gap: int
) -> None:
    world.attach(worker(1))
    world.sweep()
    for _ in range(3):
        world.clock.now += gap
        world.sweep()
    floor = int(world.variable("expiry_floor_at") or 0)
    assert floor == (START if gap == OUTAGE else world.clock.now)
    world.sweeping_for(LEASE + GRACE, every=OUTAGE)
    assert world.live() == set()
    world.assert_healthy()


def test_a_service_that_crashes_every_minute_still_ends_the_dead(world: World) -> None:
    """Nobody sweeps for most of each minute, and that is no outage: the floor stays."""
    alive = worker(2)
    world.attach(worker(1))
    world.attach(alive)

    async def live_for_a_moment() -> None:
        async with Service(world.path, world.clock) as registry:
            await Sweeper(registry).sweep_once()

    asyncio.run(live_for_a_moment())
    while worker(1) in world.live():
        world.clock.now += MINUTE
        assert world.clock.now <= START + LEASE + GRACE + MINUTE
        world.renew(alive)
        asyncio.run(live_for_a_moment())
    assert world.live() == {alive}
    world.assert_healthy()


def test_a_database_that_was_never_swept_is_like_one_after_an_outage(world: World) -> None:
    """It comes from an earlier version, say, that did not sweep."""
    world.attach_many(FLEET)
    world.clock.now += DAY
    assert world.variable("expiry_floor_at") is None
    assert world.sweep().ended == ()
    assert world.variable("expiry_floor_at") == str(world.clock.now)
    world.sweeping_for(LEASE + GRACE - 1, renewing=FLEET)
    assert world.live() == set(FLEET)
    world.assert_healthy()


def test_the_first_sweep_after_an_outage_may_be_one_from_cron(world: World) -> None:
    """The floor is stored: the command sets it, and it binds the next command and the service."""
    world.clock.now = system_clock() - HOUR
    world.attach_many(FLEET)
    world.sweep()
    for flags in (["--dry-run"], [], [], ["--release-brake"]):
        code, out, err = run_cli("sweep", *flags, "--database-url", world.url)
        assert (code, err) == (0, "")
        assert "\n10 lapsed owners left alone: after an outage" in "\n" + out
        assert world.live() == set(FLEET)
        assert (world.variable("brake_engaged_at"), world.kinds("expired")) == (None, [])
    floor = int(world.variable("expiry_floor_at") or 0)
    assert floor > world.clock.now + HOUR - 1
    world.clock.now = system_clock()

    async def serve() -> None:
        async with Service(world.path, world.clock) as registry:
            swept = await Sweeper(registry).sweep_once()
            assert (swept.skipped, swept.ended) == (True, ())
            world.clock.now += INTERVAL
            swept = await Sweeper(registry).sweep_once()
            assert (swept.ended, swept.waiting) == ((), len(FLEET))

    asyncio.run(serve())
    assert world.variable("expiry_floor_at") == str(floor)
    world.renew(*FLEET)
    world.assert_healthy()


def test_a_drain_deadline_does_not_run_on_while_the_registry_is_down(world: World) -> None:
    """Who drains could neither detach nor change its mind meanwhile."""
    hurried, patient, immortal = worker(1), worker(2), worker(3)
    for owner, deadline in ((hurried, MINUTE), (patient, 3 * HOUR), (immortal, MINUTE)):
        world.attach(owner, lease=None if owner == immortal else LEASE)
        world.drain(owner, deadline)
    world.sweep()
    world.clock.now += 10 * HOUR
    back = world.clock.now
    assert world.sweep(dry_run=True).ended == ()
    assert world.sweep().ended == ()
    rows = world.sql("SELECT drain_deadline_at FROM owners ORDER BY id")
    assert [at - back for (at,) in rows] == [LEASE + GRACE, 3 * HOUR, GRACE]
    world.sweeping_for(LEASE + GRACE, renewing=[patient])
    assert world.live() == {patient}
    world.sweeping_for(3 * HOUR, renewing=[], every=MINUTE)
    assert world.live() == set()
    world.assert_healthy()


# A clock that is moved


def test_moving_the_clock_forward_ends_nobody(world: World) -> None:
    world.attach_many(FLEET)
    drained = worker(20)
    world.attach(drained, lease=None)
    world.drain(drained, HOUR)
    world.sweep()
    world.clock.now += HOUR
    world.sweep()
    assert world.live() == {*FLEET, drained}
    world.sweeping_for(LEASE + GRACE - 1)
    assert world.live() == {*FLEET, drained}
    world.sweeping_for(HOUR, renewing=FLEET, every=MINUTE)
    assert world.live() == set(FLEET)
    world.assert_healthy()


@pytest.mark.parametrize("swept_meanwhile", [True, False])
def test_what_a_clock_left_in_the_future_does_not_live_for_ever(
    world: World, swept_meanwhile: bool
) -> None:
    """The clock was years ahead for a moment: leases, drains, tombstones, uploads, files."""
    leased, drained, ended = worker(1), worker(2), worker(3)
    world.sweep()
    world.clock.now += 20 * 365 * DAY
    if swept_meanwhile:
        world.sweep()
    world.attach(leased, path="/models")
    world.attach(drained, lease=None)
    world.drain(drained, 5 * MINUTE)
    world.attach(ended)
    world.unregister(ended)
    world.upload(b"never registered")
    world.clock.now = START + INTERVAL
    world.sweep()
    world.prune()
    assert world.sql("SELECT MAX(verified_at) FROM owner_refs WHERE path IS NOT NULL") == [
        (world.clock.now,)
    ]
    # A sweep that saw the clock go back knows what is left of a deadline.
    deadline = GRACE if swept_meanwhile else LEASE_MAX_MS
    rows = world.sql("SELECT drain_deadline_at FROM owners WHERE state = 'draining'")
    assert rows == [(world.clock.now + deadline,)]
    world.sweeping_for(LEASE + GRACE)
    assert world.states()[leased] == "expired"
    assert world.live() == (set() if swept_meanwhile else {drained})
    world.unregister(drained)
    for _ in range(2):
        world.prune()
        world.clock.now += DAY
    world.prune()
    assert world.states() == {}
    assert world.sql("SELECT checksum FROM blobs") == []
    world.assert_healthy()


def test_a_renewal_while_the_clock_was_slow_for_a_moment_does_not_shorten_the_lease(
    world: World,
) -> None:
    """Back and forth between two sweeps: nothing is left that would tell of it."""
    world.attach(worker(1))
    world.sweep()
    world.clock.now -= HOUR
    world.renew(worker(1))
    world.clock.now += HOUR + INTERVAL
    assert world.sweep().ended == ()
    world.renew(worker(1))
    assert world.sql("SELECT lease_expires_at FROM owners") == [(world.clock.now + LEASE,)]
    world.assert_healthy()


def test_a_short_step_back_is_nothing(world: World) -> None:
    """A clock that is corrected by less than a second does not move the floor."""
    world.attach(worker(1))
    world.sweep()
    world.clock.now -= SECOND
    world.sweep()
    assert world.variable("expiry_floor_at") == str(START - SECOND)
    world.clock.now -= SECOND + 1
    world.sweep()
    assert world.variable("expiry_floor_at") == str(world.clock.now)
    world.assert_healthy()


jumps = st.lists(
    st.tuples(
        st.integers(0, 6).map(lambda steps: steps * 20 * SECOND),
        st.sampled_from([HOUR, -HOUR, 3 * HOUR, -10 * MINUTE, 10 * MINUTE, -500, 0]),
    ),
    max_size=4,
)


@given(jumps=jumps)
def test_moving_the_clock_ends_nobody_who_lives_and_keeps_nobody_who_is_dead(
    database: Database, jumps: Sequence[tuple[int, int]]
) -> None:
    """Forward and back while owners renew in real time: the living stay; the dead are ended one
    lease and the grace after the last jump, and never before they had that in real time."""
    with database.write() as conn:
        conn.run_text("SAVEPOINT before")
        fleet = Fleet(conn)
        for passed, jump in jumps:
            fleet.live_for(passed)
            fleet.now += jump
            fleet.sweep()
        fleet.live_for(LEASE + GRACE + INTERVAL)
        rows = conn.run_text("SELECT instance_id FROM owners WHERE state = 'active' ORDER BY id")
        assert [worker(int(number)) for (number,) in rows] == fleet.alive
        conn.run_text("DROP VIEW clock")
        conn.run_text(f"CREATE VIEW clock AS SELECT {fleet.now} AS now_ms")
        assert conn.run_text("SELECT * FROM leaks") == []
        conn.run_text("ROLLBACK TO before")


class Fleet:
    """Ten owners, of whom two died at the start, in real time beside a clock that is moved."""

    def __init__(self, conn: Connection) -> None:
        self.conn, self.now, self.lived = conn, START, 0
        self.alive, self.dead = FLEET[:8], set(FLEET[8:])
        self.renewing = leases_module.RenewOperation()
        content = Artifact(key(), "blake3:" + "0" * 64, 2, "/models/config.json")
        register.register(conn, self.now, [Registration(each, (content,), LEASE) for each in FLEET])
        self.sweep()

    def live_for(self, duration: int) -> None:
        """In steps of 20 s of real time: everybody who lives renews, then comes a sweep."""
        for _ in range(-(-duration // (20 * SECOND))):
            self.now += 20 * SECOND
            self.lived += 20 * SECOND
            for outcome in self.renewing.renew(
                self.conn, self.now, list(map(identity, self.alive))
            ):
                assert not isinstance(outcome, RegistryError)
            self.sweep()

    def sweep(self) -> None:
        (swept,) = expire.sweep(self.conn, self.now, [Sweep(force=True)])
        for each in swept.ended:
            assert each.owner in self.dead
            assert self.lived >= LEASE + GRACE
