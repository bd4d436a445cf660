"""Incarnations (S11): a worker that comes back under its name takes the place of its older self."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from registry.core.records import (
    Artifact,
    ArtifactKey,
    Outcome,
    Owner,
    Receipt,
    Registered,
    Registration,
    Renewed,
)
from registry.errors import (
    ChecksumMismatch,
    Conflict,
    ContentMissing,
    LeaseGone,
    RegistryError,
    Superseded,
)
from registry.store.ops import register
from tests.fleet import DAY, GRACE, HOUR, LEASE, MINUTE, SECOND, World, key, worker
from tests.places import on_both
from tests.support import Server, checksum, copied, dump_of

pytestmark = on_both

OLD, NEW, OTHER = worker(1), worker(2), worker(3)
NAME = "rank-0"
CONFIG, TOKENIZER = key("config.json"), key("tokenizer.json")
FILES = {CONFIG: b"{}", TOKENIZER: b"[1]"}
LORA_FILE = {key("adapter_config.json", suffix="tuned"): b"{'r': 8}"}


@pytest.fixture
def old(world: World) -> World:
    """The older instance serves its model and a LoRA."""
    world.sweep()
    world.attach(OLD, FILES, worker_name=NAME)
    world.attach(worker(1, "tuned"), LORA_FILE, worker_name=NAME)
    world.clock.now += HOUR
    return world


def offer(world: World, owner: Owner, *artifacts: Artifact) -> Registered | RegistryError:
    """Register under the worker's name without uploading anything."""
    return world.do(register.register, Registration(owner, artifacts, LEASE, NAME))


def held(world: World) -> list[tuple[str, str, str]]:
    return world.sql("SELECT instance_id, suffix, filename FROM holders ORDER BY 1, 2, 3")


def changed(world: World, before: dict[str, list[tuple[object, ...]]]) -> set[str]:
    """The tables whose rows are not what they were."""
    return {table for table, rows in dump_of(world.place).items() if rows != before[table]}


# The newer takes the place of the older


def test_a_restart_with_the_same_files_takes_them_over(old: World) -> None:
    """Nothing is uploaded again, and no entry goes and comes back."""
    before = old.sql("SELECT id, filename, generation, created_at FROM entries")
    blobs = old.sql("SELECT checksum FROM blobs ORDER BY 1")
    old.sweep()
    lines = [Artifact(each, checksum(content)) for each, content in FILES.items()]
    outcome = offer(old, NEW, *lines)
    assert isinstance(outcome, Registered)
    assert [each.outcome for each in outcome.artifacts] == [Outcome.SHARED, Outcome.SHARED]
    assert held(old) == [("2", "_base", "config.json"), ("2", "_base", "tokenizer.json")]
    assert old.sql("SELECT id, filename, generation, created_at FROM entries") == before[:2]
    left = [(checksum(content),) for content in FILES.values()]
    assert old.sql("SELECT checksum FROM blobs ORDER BY 1") == sorted(left) != blobs
    assert old.states() == {OLD: "superseded", worker(1, "tuned"): "superseded", NEW: "active"}
    reasons = old.kinds("superseded", "removed")
    assert reasons == [
        ("superseded", f"superseded by {NEW}"),
        ("superseded", f"superseded by {NEW}"),
        ("removed", f"superseded by {NEW}"),  # The LoRA's file, which the newer does not hold.
    ]
    old.assert_healthy()


def test_changed_files_are_accepted_when_only_the_older_instance_held_them(old: World) -> None:
    old.sweep()
    old.sweeping_for(LEASE + GRACE + 15 * MINUTE, renewing=[OLD])  # The upload grace is over.
    outcome = old.attach(NEW, {CONFIG: b"{'new': 1}", TOKENIZER: b"[1]"}, worker_name=NAME)
    assert [each.outcome for each in outcome.artifacts] == [Outcome.REPLACED, Outcome.SHARED]
    assert old.sql("SELECT filename, checksum, generation FROM entries ORDER BY 1") == [
        ("config.json", checksum(b"{'new': 1}"), 2),
        ("tokenizer.json", checksum(b"[1]"), 1),
    ]
    assert old.sql("SELECT COUNT(*) FROM blobs WHERE checksum = ?", checksum(b"{}")) == [(0,)]
    rows = old.sql("SELECT previous_checksum, checksum FROM events WHERE kind = 'replaced'")
    assert rows == [(checksum(b"{}"), checksum(b"{'new': 1}"))]
    assert old.live() == {NEW}
    old.assert_healthy()


def test_files_that_the_newer_does_not_name_go_with_the_older(old: World) -> None:
    old.sweep()
    old.attach(NEW, {key("other.json"): b"1"}, worker_name=NAME)
    assert held(old) == [("2", "_base", "other.json")]
    assert old.sql("SELECT filename FROM entries") == [("other.json",)]
    old.assert_healthy()


def test_the_older_loras_go_also_those_that_gave_no_name(old: World) -> None:
    old.sweep()
    nameless = worker(1, "nameless")
    old.attach(nameless, {key("a.json", suffix="nameless"): b"1"})
    old.attach(NEW, FILES, worker_name=NAME)
    assert old.live() == {NEW}
    assert old.states()[nameless] == "superseded"
    for zombie in (OLD, worker(1, "tuned"), nameless):
        assert isinstance(old.renew(zombie)[0], Superseded)
    old.assert_healthy()


def test_a_lora_that_comes_first_supersedes_the_older_base_model_as_well(old: World) -> None:
    old.sweep()
    old.attach(worker(2, "tuned"), LORA_FILE, worker_name=NAME)
    assert old.live() == {worker(2, "tuned")}
    assert old.states()[OLD] == "superseded"
    old.attach(NEW, FILES, worker_name=NAME)
    assert old.live() == {NEW, worker(2, "tuned")}
    assert isinstance(old.renew(OLD)[0], Superseded)
    old.assert_healthy()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (OLD, NAME),
        (worker(1, "more"), NAME),
        (NEW, "rank-1"),
        (NEW, None),
        (worker(2, endpoint="prefill"), NAME),
        (Owner("dynamo", "decoder", "generate", 2), NAME),
        (Owner("staging", "backend", "generate", 2), NAME),
    ],
    ids=str,
)
def test_only_another_instance_of_the_same_name_and_endpoint_is_superseded(
    old: World, owner: Owner, name: str | None
) -> None:
    old.sweep()
    before = old.live()
    old.attach(owner, {key("more.json", suffix="more"): b"1"}, worker_name=name)
    assert old.live() == before | {owner}
    assert old.kinds("superseded") == []
    old.renew(*before)
    old.assert_healthy()


def test_a_suspect_and_one_that_drains_are_superseded_like_any_other(old: World) -> None:
    old.drain(OLD, HOUR)
    old.sweep()
    old.attach(NEW, FILES, worker_name=NAME)
    assert old.live() == {NEW}
    rows = old.sql("SELECT state, drain_deadline_at, lease_ttl_ms FROM owners WHERE id = 1")
    assert rows == [("superseded", None, None)]
    old.assert_healthy()


def test_of_two_instances_in_one_list_the_last_stays(world: World) -> None:
    with world.database.write() as conn:
        items = [Registration(worker(n), (), LEASE, NAME) for n in (1, 2, 1, 3)]
        outcomes = register.register(conn, conn.now, items)
    assert [isinstance(each, Registered) for each in outcomes] == [True, True, False, True]
    assert world.states() == {
        worker(1): "superseded",
        worker(2): "superseded",
        worker(3): "active",
    }
    world.assert_healthy()


def test_bytes_are_served_from_the_newer_instance_s_place(world: World) -> None:
    world.attach(OLD, FILES, worker_name=NAME, path="/models/old")
    world.attach(NEW, FILES, worker_name=NAME, path="/models/new")
    assert world.sql("SELECT path FROM holders ORDER BY 1") == [
        (f"/models/new/{CONFIG}",),
        (f"/models/new/{TOKENIZER}",),
    ]
    world.assert_healthy()


# A refusal supersedes nobody


def test_changed_files_are_refused_and_nobody_is_superseded_when_another_holds_them(
    old: World,
) -> None:
    """The refusal is journalled, once, and nothing else is written."""
    old.sweep()
    old.attach(OTHER, {CONFIG: b"{}"})
    old.upload(b"{'new': 1}")
    before = dump_of(old.place)
    lines = [Artifact(CONFIG, checksum(b"{'new': 1}")), Artifact(TOKENIZER, checksum(b"[1]"))]
    for _ in range(2):
        outcome = offer(old, NEW, *lines)
        assert isinstance(outcome, Conflict)
        (conflict,) = outcome.conflicts
        assert [each.owner for each in conflict.holders] == [OTHER]  # Not its own older self.
        assert changed(old, before) == {"events", "ids"}
        new = dump_of(old.place)["events"][len(before["events"]) :]
        assert [row[2] for row in new] == ["refused"]
    old.renew(OLD, worker(1, "tuned"), OTHER)
    assert old.findings()["unresolved_conflict"] == 1
    old.unregister(OTHER)
    assert isinstance(offer(old, NEW, *lines), Registered)
    assert old.live() == {NEW}
    old.assert_healthy()


def missing(world: World) -> tuple[Artifact, ...]:
    return (Artifact(CONFIG, checksum(b"{}")), Artifact(TOKENIZER, checksum(b"not uploaded")))


def wrong_size(world: World) -> tuple[Artifact, ...]:
    return (Artifact(CONFIG, checksum(b"{}"), 99),)


@pytest.mark.parametrize(
    ("lines", "refusal"), [(missing, ContentMissing), (wrong_size, ChecksumMismatch)]
)
def test_a_registration_that_is_refused_for_its_content_changes_nothing(
    old: World,
    lines: Callable[[World], tuple[Artifact, ...]],
    refusal: type[RegistryError],
) -> None:
    old.sweep()
    before = dump_of(old.place)
    assert isinstance(offer(old, NEW, *lines(old)), refusal)
    assert dump_of(old.place) == before
    old.renew(OLD, worker(1, "tuned"))
    old.assert_healthy()


# The zombie


def calls(world: World, owner: Owner) -> list[object]:
    """What a worker that was replaced may try, each with its outcome."""
    return [
        *world.renew(owner, worker(1, "unheard-of")),
        world.drain(owner),
        world.hold(owner, FILES, worker_name=NAME),
        world.hold(owner, FILES),
        world.hold(worker(1, "brand-new"), {key("x.json", suffix="brand-new"): b"1"}),
    ]


def test_a_zombie_is_told_that_it_was_replaced_whatever_it_calls(old: World) -> None:
    """Also for a LoRA that it never had. To leave is fine, and changes nothing."""
    old.sweep()
    old.attach(NEW, FILES, worker_name=NAME)
    before = dump_of(old.place)
    for outcome in calls(old, OLD):
        assert type(outcome) is Superseded
    assert old.unregister(OLD) == Receipt(OLD)
    assert changed(old, before) <= {"blobs", "events", "ids"}  # It may upload.
    since = [each for each in old.place.ask("SELECT * FROM events") if each not in before["events"]]
    assert {each[2] for each in since} <= {"uploaded"}
    assert old.live() == {NEW}
    old.clock.now += HOUR
    old.prune()
    old.renew(NEW)
    old.sweep()
    old.assert_healthy()


@pytest.mark.parametrize("lives_as", ["base", "lora", "draining"])
def test_a_zombie_is_refused_for_as_long_as_its_successor_lives(old: World, lives_as: str) -> None:
    """The tombstone outlives its retention. After the successor is gone and pruned, it may come."""
    old.sweep()
    old.attach(NEW, FILES, worker_name=NAME)
    successor = NEW
    if lives_as == "lora":
        successor = worker(2, "tuned")
        old.attach(successor, LORA_FILE, lease=None)
        old.unregister(NEW)
    old.attach(successor, FILES if successor == NEW else LORA_FILE, lease=None)
    if lives_as == "draining":
        old.drain(NEW, 7 * DAY)
    old.clock.now += DAY - SECOND
    old.prune()
    assert type(old.renew(OLD)[0]) is Superseded
    for _ in range(2):
        old.clock.now += 2 * SECOND
        old.prune()
    for outcome in calls(old, OLD):
        assert type(outcome) is Superseded
    old.unregister(successor)
    old.clock.now += DAY + SECOND
    old.prune()
    assert old.states() == {}
    assert type(old.renew(OLD)[0]) is LeaseGone
    old.attach(OLD, FILES, worker_name=NAME)
    assert isinstance(old.renew(OLD)[0], Renewed)
    old.sweep()
    old.assert_healthy()


@pytest.mark.parametrize("left_by", ["expiry", "unregister"])
def test_a_worker_that_left_before_its_successor_came_is_replaced_all_the_same(
    old: World, left_by: str
) -> None:
    """It was stopped for so long that it expired; awake, it must not supersede its successor."""
    old.sweep()
    old.renew(OLD, worker(1, "tuned"))
    if left_by == "unregister":
        old.unregister(OLD)
        old.unregister(worker(1, "tuned"))
    old.sweeping_for(LEASE + GRACE)
    assert old.live() == set()
    assert type(old.renew(OLD)[0]) is LeaseGone
    old.attach(NEW, FILES, worker_name=NAME)
    for outcome in calls(old, OLD):
        assert type(outcome) is Superseded
    assert old.live() == {NEW}
    events = old.kinds("superseded")
    old.attach(NEW, FILES, worker_name=NAME)
    assert old.kinds("superseded") == events  # Once.
    old.assert_healthy()


def test_a_worker_that_restarts_again_and_again_leaves_one_that_lives(world: World) -> None:
    world.sweep()
    for number in range(1, 6):
        world.attach(worker(number), {CONFIG: str(number).encode()}, worker_name=NAME)
        world.attach(worker(number, "tuned"), LORA_FILE, worker_name=NAME)
    for number in range(1, 5):
        assert type(world.renew(worker(number))[0]) is Superseded
    assert world.live() == {worker(5), worker(5, "tuned")}
    world.clock.now += DAY
    world.prune()
    # Their successor lives: one tombstone of each instance stays, and that is enough.
    assert list(world.states().values()) == ["superseded"] * 4 + ["active"] * 2
    for number in range(1, 5):
        for owner in (worker(number), worker(number, "tuned"), worker(number, "unheard-of")):
            assert type(world.renew(owner)[0]) is Superseded
            assert type(world.hold(owner)) is Superseded
    for owner in world.live():
        world.unregister(owner)
    world.clock.now += DAY
    world.prune()
    assert world.states() == {}
    world.assert_healthy()


def test_of_a_worker_that_restarts_for_ever_the_last_ten_instances_are_remembered(
    world: World,
) -> None:
    """Each was replaced by one that was replaced in turn: only the last has a living successor."""
    for number in range(1, 31):
        world.attach(worker(number), {CONFIG: b"1"}, worker_name=NAME)
        world.clock.now += DAY
        world.prune()
        zombies = [type(world.renew(worker(each))[0]) is Superseded for each in range(1, number)]
        assert zombies == [False] * (number - 11) + [True] * min(number - 1, 10)
    assert len(world.states()) == 11
    world.attach(worker(30), {CONFIG: b"1"}, lease=None, worker_name=NAME)
    world.assert_healthy()


# Over HTTP


def test_a_zombie_gets_410_superseded_over_http(shared_server: Server) -> None:
    files: dict[ArtifactKey, bytes] = {CONFIG: b"{}"}
    for owner in (OLD, NEW):
        registered = shared_server.register_copies(owner, files, worker_name=NAME)
        assert registered.status_code == 200, registered.text
    lines = [copied(each, content) for each, content in files.items()]
    for answer in (
        shared_server.client.post(f"/v1/owners/{OLD}/renew"),
        shared_server.client.post(f"/v1/owners/{OLD}/drain"),
        shared_server.register(OLD, lines, worker_name=NAME),
        shared_server.register(OLD, lines),
        shared_server.register(worker(1, "brand-new"), []),
        shared_server.client.post(f"/v1/owners/{worker(1, 'brand-new')}/renew"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "superseded")
    shown = shared_server.client.get(f"/v1/owners/{OLD}").json()
    assert (shown["state"], shown["end_reason"]) == ("superseded", f"superseded by {NEW}")
    assert shown["entries"] == []
    assert shared_server.fetch(CONFIG).content == b"{}"
    assert shared_server.unregister(OLD).json()["released"] == 0
    assert shared_server.unregister(NEW).json()["released"] == 1


def test_a_refused_restart_over_http_leaves_the_older_one_as_it_was(shared_server: Server) -> None:
    mine = {key("shared.json", "taken"): b"1"}
    for owner in (worker(11), worker(13)):
        name = "rank-1" if owner == worker(11) else None
        assert shared_server.register_copies(owner, mine, worker_name=name).status_code == 200
    changed_file = {key("shared.json", "taken"): b"2"}
    refused = shared_server.register_copies(worker(12), changed_file, worker_name="rank-1")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    holders = refused.json()["conflicts"][0]["holders"]
    assert [each["instance_id"] for each in holders] == ["13"]
    assert shared_server.client.post(f"/v1/owners/{worker(11)}/renew").status_code == 200
    assert shared_server.client.get(f"/v1/owners/{worker(12)}").status_code == 404
