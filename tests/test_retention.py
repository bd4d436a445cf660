"""What grows old is pruned, and what is still needed to explain something stays (S11, S14)."""

from __future__ import annotations

import asyncio

import pytest

from registry.cli.text import counted
from registry.core.records import Artifact, Registration
from registry.errors import LeaseGone
from registry.service.sweeper import Sweeper
from registry.store.ops import prune, register
from registry.store.ops.blobs import find_content
from tests.fleet import (
    DAY,
    HOUR,
    MINUTE,
    START,
    Service,
    World,
    key,
    run_cli,
    worker,
)
from tests.places import on_both
from tests.support import checksum, dump_of

pytestmark = on_both

MINE, OTHER = worker(1), worker(2)
UPLOAD_GRACE = 15 * MINUTE
CONFIG = key("config.json")


def event_ids(world: World) -> list[int]:
    return [row[0] for row in world.sql("SELECT id FROM events ORDER BY id")]


# Tombstones


def test_a_tombstone_tells_who_left_when_until_its_retention_is_over(world: World) -> None:
    world.attach(MINE)
    world.unregister(MINE)
    world.clock.now += DAY - 1
    world.prune()
    assert world.sql("SELECT state, ended_at, end_reason FROM owners") == [
        ("detached", START, "unregistered")
    ]
    world.clock.now += 1
    world.prune()
    assert world.states() == {}
    assert world.kinds("detached") == [("detached", "unregistered")]  # The journal still knows.
    assert isinstance(world.renew(MINE)[0], LeaseGone)
    world.assert_healthy()


def test_an_owner_that_attached_again_is_no_tombstone(world: World) -> None:
    world.attach(MINE)
    world.unregister(MINE)
    world.clock.now += DAY
    world.attach(MINE, lease=None)
    world.prune()
    assert world.states() == {MINE: "active"}
    world.assert_healthy()


def test_a_tombstone_that_still_holds_something_is_kept_for_the_audit(world: World) -> None:
    """It should hold nothing; deleting it would leave refs of nobody."""
    world.attach(MINE, lease=None)
    world.sql("UPDATE owners SET state = 'detached', ended_at = 5")
    world.prune()
    assert world.findings() == {"ref_of_ended_owner": 1}
    assert world.unregister(MINE).released == 1
    world.prune()
    assert world.states() == {}
    world.assert_healthy()


def test_ids_of_pruned_owners_are_never_given_again(world: World) -> None:
    world.attach(MINE)
    world.unregister(MINE)
    world.clock.now += DAY
    world.prune()
    world.attach(OTHER, lease=None)
    assert world.sql("SELECT id FROM owners") == [(2,)]
    world.assert_healthy()


def test_many_tombstones_go_in_bounded_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "TOMBSTONES_PER_PRUNE", 10)
    for owner in world.attach_many(worker(number) for number in range(25)):
        world.unregister(owner)
    world.clock.now += DAY
    pruned = [world.do(prune.prune, prune.Prune()) for _ in range(3)]
    assert [each.tombstones for each in pruned] == [10, 10, 5]
    assert [each.more for each in pruned] == [True, True, False]
    assert [each.next_step(()).tombstones for each in pruned] == [True, True, False]
    world.assert_healthy()


# The journal


def test_steps_that_only_shorten_the_journal_do_not_go_through_the_owners(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million events are ten thousand steps, and a fleet has a hundred thousand owners."""
    monkeypatch.setattr(prune, "EVENTS_PER_PRUNE", 5)
    world.adopt(journal_retention_ms=0)
    for owner in world.attach_many(worker(number) for number in range(10)):
        world.unregister(owner)
    first = world.do(prune.prune, prune.Prune())
    assert (first.events, first.more) == (5, True)
    world.clock.now += DAY  # Whoever has left is due meanwhile, and waits for the next sweep.
    second = world.do(prune.prune, first.next_step(()))
    assert (second.events, second.tombstones, second.more) == (5, 0, True)
    assert len(world.states()) == 10
    world.prune()
    assert world.states() == {}
    world.assert_healthy()


def test_the_journal_is_kept_for_its_age_and_what_explains_a_live_ref_for_longer(
    world: World,
) -> None:
    world.attach(MINE, {CONFIG: b"1"}, lease=None)
    world.attach(OTHER, {CONFIG: b"1", key("more.json"): b"2"}, lease=None)
    world.attach(MINE, {CONFIG: b"1"}, lease=None, path="/models")  # Held elsewhere: a new event.
    world.unregister(OTHER)
    before = event_ids(world)
    world.clock.now += 90 * DAY - 1
    world.prune()
    assert event_ids(world) == before
    world.clock.now += HOUR
    world.prune()
    rows = world.sql("SELECT kind, reason, id = (SELECT event_id FROM owner_refs) FROM events")
    assert rows == [("registered", "moved", 1)]
    world.assert_healthy()


def test_the_journal_is_kept_to_a_number_of_rows_and_what_explains_a_live_ref(
    world: World,
) -> None:
    world.adopt(journal_max_rows=10)
    world.attach(MINE, {CONFIG: b"1"}, lease=None)
    explains = world.sql("SELECT event_id FROM owner_refs")[0][0]
    for number in range(10, 20):
        world.attach(worker(number))
        world.unregister(worker(number))
    last = event_ids(world)[-1]
    world.prune()
    assert event_ids(world) == [explains, *range(last - 9, last + 1)]
    world.assert_healthy()


def test_a_replaced_entry_is_explained_by_the_event_that_replaced_it(world: World) -> None:
    world.adopt(journal_max_rows=1)
    world.attach(MINE, {CONFIG: b"1"}, lease=None)
    world.attach(MINE, {CONFIG: b"2"}, lease=None)
    world.prune()
    assert world.kinds("registered", "replaced", "created") == [("replaced", None)]
    world.assert_healthy()


def test_ids_of_events_are_never_given_again(world: World) -> None:
    world.adopt(journal_retention_ms=0)
    world.attach(MINE)
    world.unregister(MINE)
    last = event_ids(world)[-1]
    world.prune()
    assert event_ids(world) == []
    world.attach(MINE, lease=None)
    assert event_ids(world)[0] == last + 1
    world.assert_healthy()


def test_the_journal_is_pruned_in_stretches_and_from_its_start_again_every_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had to stay is not looked at in every sweep, and it goes in the end."""
    monkeypatch.setattr(prune, "EVENTS_PER_PRUNE", 5)
    world.adopt(journal_retention_ms=0)
    fleet = [worker(number) for number in range(4)]
    for owner in fleet:
        # Three events each, the last of which explains the ref.
        world.attach(owner, lease=None, path="/models")
    pruned = [world.do(prune.prune, prune.Prune()) for _ in range(3)]
    assert [(each.events, each.more) for each in pruned] == [(4, True), (3, True), (1, False)]
    assert event_ids(world) == [3, 6, 9, 12]
    assert world.variable("journal_pruned_to") == "12"
    # Released behind the cursor: its registration goes along with the word of the release.
    world.unregister(fleet[0])
    world.clock.now += MINUTE
    world.prune()
    assert event_ids(world) == [6, 9, 12]
    world.assert_healthy()
    for owner in fleet[1:]:
        world.unregister(owner)
    with world.place.sql() as connection:
        connection.execute("DELETE FROM events WHERE kind = 'released'")
    world.clock.now += MINUTE
    world.prune()
    assert event_ids(world) == [6, 9, 12]
    world.clock.now += HOUR
    world.prune()
    assert event_ids(world) == []
    assert (world.variable("journal_round_at"), world.variable("journal_pruned_to")) == (
        str(world.clock.now),
        str(12),
    )
    world.assert_healthy()


def test_a_release_that_is_pruned_takes_only_the_registrations_before_it_along(
    world: World,
) -> None:
    """The journal never says that an owner holds what it let go of, nor the other way round."""
    world.adopt(journal_max_rows=7)
    for owner in (MINE, OTHER):
        world.attach(owner, {CONFIG: b"1"}, lease=None)
    for _ in range(5):
        world.unregister(MINE)
        world.prune()
        world.assert_healthy()
        world.attach(MINE, {CONFIG: b"1"}, lease=None)
        world.prune()
        world.assert_healthy()
    assert len(event_ids(world)) <= 7 + 2


def test_an_event_from_a_moment_when_the_clock_was_wrong_says_nothing_of_its_neighbours(
    world: World,
) -> None:
    """Without a battery a clock may start in 1970: that ages one event, not those before it."""
    world.attach(MINE, lease=None)
    before = event_ids(world)
    world.clock.now = 0
    world.attach(OTHER, lease=None)
    world.clock.now = START + MINUTE
    world.prune()
    assert event_ids(world) == [*before, *world.sql("SELECT event_id FROM owner_refs")[1]]
    world.assert_healthy()


# Uploads


def test_an_upload_that_nobody_registered_goes_when_its_grace_is_over(world: World) -> None:
    world.upload(b"left")
    world.attach(MINE, {CONFIG: b"held"}, lease=None)
    world.clock.now += UPLOAD_GRACE - 1
    world.prune()
    assert world.sql("SELECT COUNT(*) FROM blobs") == [(2,)]
    world.assert_healthy()
    world.clock.now += 1
    world.prune()
    assert world.sql("SELECT checksum FROM blobs") == [(checksum(b"held"),)]
    world.assert_healthy()


def test_an_upload_that_is_repeated_or_registered_meanwhile_stays(world: World) -> None:
    """What looked abandoned is looked at again under the write lock."""
    contents = [b"left", b"repeated", b"registered"]
    for content in contents:
        world.upload(content)
    world.clock.now += UPLOAD_GRACE
    with world.database.read() as conn:
        abandoned = prune.find_abandoned(conn, conn.now)
    assert set(abandoned) == {checksum(content) for content in contents}
    world.upload(b"repeated")
    world.do(
        register.register,
        Registration(MINE, (Artifact(CONFIG, checksum(b"registered")),)),
    )
    world.do(prune.prune, prune.Prune(abandoned))
    with world.database.read() as conn:
        left = [find_content(conn, checksum(content)) for content in contents]
    assert left == [None, b"repeated", b"registered"]
    world.assert_healthy()


def test_content_that_was_let_go_within_its_upload_grace_is_pruned_behind_it(
    world: World,
) -> None:
    """Between an upload and its registration nobody's removal takes it; but somebody does."""
    world.attach(MINE, {CONFIG: b"1"})
    world.unregister(MINE)
    assert world.sql("SELECT COUNT(*) FROM blobs") == [(1,)]
    world.clock.now += UPLOAD_GRACE + 1
    assert world.findings() == {"orphan_blob": 1}
    world.prune()
    assert world.sql("SELECT COUNT(*) FROM blobs") == [(0,)]
    world.assert_healthy()


def test_many_uploads_go_in_bounded_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "BLOBS_PER_PRUNE", 10)
    for number in range(25):
        world.upload(str(number).encode())
    world.clock.now += UPLOAD_GRACE
    assert world.prune() == 3
    assert world.sql("SELECT COUNT(*) FROM blobs") == [(0,)]
    world.assert_healthy()


# Who prunes


def old_things(world: World) -> None:
    """A tombstone, a journal and an upload that are all past their time."""
    world.upload(b"left")
    world.attach(MINE)
    world.unregister(MINE)
    world.clock.now += 91 * DAY


def is_pruned(world: World) -> bool:
    left = dump_of(world.place)
    return not (left["owners"] or left["events"] or left["blobs"])


def test_the_service_prunes_behind_its_sweep(world: World) -> None:
    old_things(world)

    async def sweep() -> None:
        async with Service(world.place, world.clock) as registry:
            await Sweeper(registry).sweep_once()

    asyncio.run(sweep())
    assert is_pruned(world)
    world.assert_healthy()


def test_a_service_with_much_to_prune_does_not_miss_its_next_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after a pause and goes on behind the next sweep, from where it was."""
    monkeypatch.setattr(prune, "EVENTS_PER_PRUNE", 1)
    monkeypatch.setattr(Sweeper, "pause_s", 0.0)
    old_things(world)
    count = len(event_ids(world))
    assert count > 3

    async def sweep() -> None:
        async with Service(world.place, world.clock) as registry:
            sweeper = Sweeper(registry)
            for left in range(count - 1, count - 4, -1):
                await sweeper.sweep_once()
                assert len(event_ids(world)) == left
                world.clock.now += MINUTE

    asyncio.run(sweep())
    world.prune()
    assert is_pruned(world)
    world.assert_healthy()


def test_the_command_prunes_as_well(world: World) -> None:
    """It goes by the real time, long after everything here."""
    old_things(world)
    before = {table: len(rows) for table, rows in dump_of(world.place).items()}
    code, out, err = run_cli("sweep", "--database-url", world.url)
    after = {table: len(rows) for table, rows in dump_of(world.place).items()}
    gone = {table: before[table] - after[table] for table in before}
    assert (code, err) == (0, "")
    ended, removed = out.splitlines()
    assert ended == "0 owners ended, 0 refs released."
    assert removed == (
        f"Removed: {counted(gone['blobs'], 'copy')}, {counted(gone['owners'], 'tombstone')}, "
        f"{counted(gone['events'], 'event')}."
    )
    assert is_pruned(world)
    world.assert_healthy()


def test_a_dry_run_prunes_nothing(world: World) -> None:
    old_things(world)
    before = dump_of(world.place)
    assert run_cli("sweep", "--dry-run", "--database-url", world.url)[0] == 0
    assert dump_of(world.place) == before
    world.prune()
    world.assert_healthy()
