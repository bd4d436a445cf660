"""The brake (S10): when many lapse together, something is broken, and it is hardly they.

The fleet has 100 owners here, the brake engages at more than 30 of them and holds for 15 minutes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

import pytest

from registry.config import Settings
from registry.core.policy import Policy
from registry.service.sweeper import Sweeper, policy_from
from registry.store.ops.expire import Swept
from registry.store.sqlite.engine import system_clock
from tests.fleet import (
    GRACE,
    INTERVAL,
    LEASE,
    MINUTE,
    SECOND,
    Service,
    World,
    run_cli,
    worker,
)
from tests.places import on_both

pytestmark = on_both

FLEET = [worker(number) for number in range(1, 101)]
BRAKE_MAX = Policy().brake_max_ms
PAUSED, RESUMED = "expiry_paused", "expiry_resumed"


@pytest.fixture
def fleet(world: World) -> World:
    """The fleet has registered and nobody renews: one sweep before the grace of all is over."""
    world.attach_many(FLEET)
    world.sweep()
    world.sweeping_for(LEASE + GRACE - INTERVAL)
    return world


@pytest.fixture
def braked(fleet: World) -> World:
    """All 100 lapsed together, and the brake has engaged."""
    fleet.clock.now += INTERVAL
    assert fleet.sweep().ended == ()
    assert fleet.variable("brake_engaged_at") == str(fleet.clock.now)
    return fleet


def ended(sweeps: Sequence[Swept]) -> list[int]:
    return [len(each.ended) for each in sweeps]


# When it engages


@pytest.mark.parametrize(
    ("alive", "dead", "engages"),
    [(7, 3, False), (6, 4, True), (0, 2, False), (0, 3, True), (4, 2, False), (20, 10, True)],
)
def test_it_engages_when_more_than_30_percent_and_at_least_three_lapse(
    world: World, alive: int, dead: int, engages: bool
) -> None:
    living, lapsing = FLEET[:alive], FLEET[alive : alive + dead]
    world.attach_many([*living, *lapsing])
    world.attach(worker(500), lease=None)  # Who has no lease does not count.
    world.sweep()
    world.sweeping_for(LEASE + GRACE, renewing=living)
    assert world.live() == {*living, worker(500), *(lapsing if engages else [])}
    assert world.variable("brake_engaged_at") == (str(world.clock.now) if engages else None)
    if engages:
        world.sweep(release_brake=True)
    world.assert_healthy()


def test_suspects_alone_do_not_engage_it(fleet: World) -> None:
    """Everybody has lapsed, but nobody's grace is over: there is nothing to hold back."""
    assert fleet.sql("SELECT COUNT(*) FROM owners WHERE lease_expires_at < renewed_at") == [(0,)]
    assert fleet.variable("brake_engaged_at") is None
    assert fleet.kinds(PAUSED) == []
    fleet.renew(*FLEET)
    fleet.sweep()
    fleet.assert_healthy()


def test_lapses_that_are_spread_over_a_renewal_are_together(world: World) -> None:
    """A fleet renews at different times. When the first of it are due, all have lapsed."""
    for start in range(0, 100, 10):
        world.attach_many(FLEET[start : start + 10])
        world.sweeping_for(2 * SECOND, every=2 * SECOND)
    assert ended(world.sweeping_for(LEASE + GRACE + 10 * MINUTE)) == [0] * 96
    assert world.kinds(PAUSED) == [(PAUSED, "100 of 100 leased owners lapsed")]
    world.sweep(release_brake=True)
    world.assert_healthy()


def test_it_is_not_for_those_who_said_that_they_would_leave(braked: World) -> None:
    """Past its drain deadline an owner is ended, and does not count as waiting."""
    for owner in FLEET[:40]:
        braked.drain(owner, INTERVAL)
    braked.clock.now += INTERVAL
    swept = braked.sweep()
    assert {each.owner for each in swept.ended} == set(FLEET[:40])
    assert {each.reason for each in swept.ended} == {"drain deadline"}
    assert swept.waiting == 60
    braked.sweep(release_brake=True)
    braked.assert_healthy()


@pytest.mark.parametrize(
    ("fraction", "dead", "engages"),
    [(0, 3, True), (0, 2, False), (0.005, 3, True), (1, 10, False), (0.999, 10, True), (0.5, 5, 0)],
)
def test_the_part_of_the_fleet_is_a_setting(
    world: World, fraction: float, dead: int, engages: bool
) -> None:
    policy = policy_from(Settings(brake_fraction=fraction))
    world.adopt(brake_percent=policy.brake_percent)
    world.attach_many(FLEET[:10])
    world.sweep()
    world.sweeping_for(LEASE + GRACE, renewing=FLEET[dead:10])
    assert (world.variable("brake_engaged_at") is not None) == engages
    world.sweep(release_brake=True)
    world.assert_healthy()


# While it holds


def test_it_holds_and_says_so_everywhere(braked: World, caplog: pytest.LogCaptureFixture) -> None:
    since = braked.clock.now
    sweeps = braked.sweeping_for(BRAKE_MAX - 2 * INTERVAL)
    assert ended(sweeps) == [0] * len(sweeps)
    assert {each.waiting for each in sweeps} == {100}
    assert sweeps[-1].paused is not None
    assert sweeps[-1].paused.startswith("the brake is engaged: 100 of 100 leased owners lapsed")
    assert braked.live() == set(FLEET)
    assert braked.kinds(PAUSED, RESUMED) == [(PAUSED, "100 of 100 leased owners lapsed")]
    assert braked.findings() == {"lapsed_lease": 100}

    braked.clock.now += SECOND * 9

    async def ask() -> None:
        async with Service(braked.place, braked.clock) as registry:
            with caplog.at_level(logging.WARNING):
                await Sweeper(registry).sweep_once()
            check, warnings = await registry.health.check_sweeper()
            assert check == "ok"  # It can serve; somebody should look.
            assert "--release-brake" in warnings["brake"]
            report = await registry.lookups.audit()
            assert report.summary is not None
            assert report.summary.brake_engaged_at == since
            assert report.summary.overdue_owners == 100

    asyncio.run(ask())
    assert "100 lapsed owners wait: the brake is engaged" in caplog.text
    code, out, _ = run_cli("audit", "--json", "--database-url", braked.url)
    assert (code, json.loads(out)["summary"]["brake_engaged_at"] is not None) == (1, True)
    _, out, _ = run_cli("audit", "--database-url", braked.url)
    assert "\nbrake               20" in out
    braked.sweep(release_brake=True)
    braked.assert_healthy()


def test_it_is_remembered_by_whoever_sweeps_next(braked: World) -> None:
    """It is state of the database: a restart does not let go of it, nor engage it again."""
    since = braked.variable("brake_engaged_at")
    braked.database.close()
    again = World(braked.place, braked.clock)
    assert ended(again.sweeping_for(5 * MINUTE)) == [0] * 30
    assert again.variable("brake_engaged_at") == since
    assert len(again.kinds(PAUSED)) == 1
    again.sweep(release_brake=True)
    again.assert_healthy()
    again.close()


def test_registering_and_leaving_go_on_meanwhile(braked: World) -> None:
    braked.unregister(FLEET[0])
    braked.attach(FLEET[1])
    newcomer = worker(900)
    braked.attach(newcomer)
    braked.sweep()
    assert braked.live() == {*FLEET[1:], newcomer}
    assert braked.variable("brake_engaged_at") is not None
    braked.sweep(release_brake=True)
    assert braked.live() == {FLEET[1], newcomer}
    braked.assert_healthy()


# How it lets go


def test_it_lets_go_when_renewals_return_and_gives_the_rest_one_more_lease(
    braked: World,
) -> None:
    """Renewals come back over a third of the lease: who has not renewed yet is not dead."""
    first, late, dead = FLEET[:70], FLEET[70:95], FLEET[95:]
    braked.renew(*FLEET[:69])
    braked.clock.now += INTERVAL
    braked.sweep()
    assert braked.variable("brake_engaged_at") is not None  # 31 are still lapsed.
    braked.renew(FLEET[69])
    braked.clock.now += INTERVAL
    swept = braked.sweep()
    assert (swept.ended, swept.waiting) == ((), 30)
    assert swept.paused is not None
    assert "when the brake let go" in swept.paused
    assert braked.kinds(RESUMED) == [(RESUMED, "only 30 of 100 leased owners are lapsed")]
    assert braked.variable("brake_engaged_at") is None
    assert ended(braked.sweeping_for(20 * SECOND, renewing=first)) == [0, 0]
    sweeps = braked.sweeping_for(LEASE - 20 * SECOND, renewing=[*first, *late])
    assert ended(sweeps) == [0, 0, 0, 5]
    assert braked.live() == {*first, *late}
    assert {each.owner for each in sweeps[-1].ended} == set(dead)
    braked.assert_healthy()


def test_it_lets_go_by_command_and_stays_so_until_the_fleet_is_well(braked: World) -> None:
    """Everybody is ended at once. When nobody is lapsed any more, it is armed again."""
    swept = braked.sweep(release_brake=True)
    assert len(swept.ended) == 100
    assert braked.kinds(RESUMED) == [(RESUMED, "released by command")]
    braked.attach_many(FLEET)
    braked.sweeping_for(LEASE + GRACE)
    assert braked.live() == set(FLEET)  # It engaged anew: in between, the fleet was well.
    assert len(braked.kinds(PAUSED)) == 2
    braked.sweep(release_brake=True)
    braked.assert_healthy()


def test_after_the_command_a_next_sweep_does_not_engage_it_again(
    braked: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service sweeps between the batches of the command, and after it."""
    from registry.store.ops import expire

    monkeypatch.setattr(expire, "OWNERS_PER_SWEEP", 10)
    first = braked.do(expire.sweep, expire.Sweep(force=True, release_brake=True))
    assert (len(first.ended), first.more) == (10, True)
    assert braked.variable("brake_released") == "1"
    second = braked.do(expire.sweep, expire.Sweep(force=True))
    assert (len(second.ended), second.paused) == (10, None)
    assert len(braked.sweep().ended) == 80
    braked.sweep()
    assert braked.variable("brake_released") is None
    braked.assert_healthy()


def test_it_lets_go_after_its_longest_pause_at_a_bounded_rate(braked: World) -> None:
    """30 percent of the fleet in a minute: five in each sweep, the longest dead first."""
    assert sum(ended(braked.sweeping_for(BRAKE_MAX - INTERVAL))) == 0
    sweeps = braked.sweeping_for(MINUTE)
    assert ended(sweeps) == [5] * 6
    assert [each.owner for sweep in sweeps for each in sweep.ended] == FLEET[:30]
    assert sweeps[0].paused == "the brake lets 5 owners expire in this sweep"
    hurried = [braked.sweep() for _ in range(3)]
    assert ended(hurried) == [3, 3, 3]  # Not faster for being called more often, but for a few.
    braked.sweeping_for(4 * MINUTE + LEASE)
    assert braked.live() == set()
    assert braked.kinds(RESUMED) == [(RESUMED, "only 1 of 1 leased owners are lapsed")]
    braked.assert_healthy()


def test_who_comes_back_while_the_rate_is_bounded_stays(braked: World) -> None:
    braked.sweeping_for(BRAKE_MAX)
    gone = set(FLEET) - braked.live()
    assert 0 < len(gone) < 10
    alive = sorted(braked.live(), key=FLEET.index)
    braked.sweeping_for(20 * MINUTE, renewing=alive, every=20 * SECOND)
    assert braked.live() == set(alive)
    braked.assert_healthy()


def test_the_command_releases_it_and_a_rehearsal_does_not(world: World) -> None:
    """On the command line, which goes by the real time."""
    world.clock.now = system_clock() - LEASE - GRACE - MINUTE
    world.attach_many(FLEET)
    world.sweep()
    world.sweeping_for(LEASE + GRACE + 30 * SECOND)
    assert world.variable("brake_engaged_at") is not None
    for flags, count in ((["--dry-run"], 0), (["--dry-run", "--release-brake"], 100), ([], 0)):
        code, out, _ = run_cli("sweep", *flags, "--json", "--database-url", world.url)
        answer = json.loads(out)
        assert (code, len(answer["ended"]), answer["waiting"]) == (0, count, 100 - count)
        assert (answer["paused"] is None) == (count > 0)
    assert world.live() == set(FLEET)
    code, out, _ = run_cli("sweep", "--database-url", world.url)
    assert out.startswith(
        "0 owners ended, 0 refs released.\nRemoved: nothing.\n"
        "100 lapsed owners left alone: the brake"
    )
    code, out, _ = run_cli("sweep", "--release-brake", "--database-url", world.url)
    assert (code, "100 owners ended, 100 refs released.\n" in out) == (0, True)
    assert world.kinds(PAUSED, RESUMED)[1:] == [(RESUMED, "released by command")]
    world.clock.now = system_clock()
    world.assert_healthy()
