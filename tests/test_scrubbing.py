"""The scrub: files in place are hashed again within a period, at a bounded rate, and what is
found is put down."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from registry.core import hashing
from registry.core.records import Artifact, ArtifactKey, Owner, Registered, Registration
from registry.service import sweeper
from registry.service.registry import Registry
from registry.service.sweeper import Sweeper
from registry.store.ops import register
from registry.store.reads.lookup import Location
from tests.fleet import DAY, INTERVAL, MINUTE, SECOND, Service, World, key, worker
from tests.support import wait_for

PERIOD = DAY
MINE = worker(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


def hold_file(
    world: World, path: Path, content: bytes, owner: Owner = MINE, each: ArtifactKey | None = None
) -> None:
    """Register a file in place, as it is now."""
    path.write_bytes(content)
    found = hashing.hash_file(str(path), max_bytes=1 << 30)
    artifact = Artifact(
        each or key(path.name), found.checksum, found.size, str(path), found.identity
    )
    outcome = world.do(register.register, Registration(owner, (artifact,)))
    assert isinstance(outcome, Registered)


def scrub(world: World, root: Path | None, rounds: int = 1, **settings: Any) -> list[str]:
    """Rounds of a service that scrubs; the paths that it looked at, in order."""
    looked: list[str] = []

    async def run() -> None:
        roots = () if root is None else (str(root),)
        async with Service(world.path, world.clock, artifact_roots=roots, **settings) as registry:
            noting(registry, looked)
            runner = Sweeper(registry)
            await runner.sweep_once()
            for _ in range(rounds):
                await runner.scrub_once()

    asyncio.run(run())
    return looked


def noting(registry: Registry, looked: list[str]) -> None:
    scrub_one = registry.scrub

    async def scrub(location: Location) -> None:
        looked.append(os.path.basename(location.path or ""))
        await scrub_one(location)

    registry.scrub = scrub  # type: ignore[method-assign]


def statuses(world: World) -> dict[str, tuple[str, int]]:
    rows = world.sql(
        "SELECT filename, status, verified_at FROM owner_refs JOIN entries ON id = entry_id"
    )
    return {name: (status, verified_at) for name, status, verified_at in rows}


def test_a_file_is_due_when_half_of_the_period_is_over(world: World, root: Path) -> None:
    """So that all were hashed when the whole is."""
    hold_file(world, root / "a.json", b"1")
    world.clock.now += PERIOD // 2 - 1
    assert scrub(world, root) == []
    world.clock.now += 1
    assert scrub(world, root) == ["a.json"]
    assert statuses(world) == {"a.json": ("ok", world.clock.now)}
    world.clock.now += INTERVAL
    assert scrub(world, root) == []
    world.assert_healthy()


def test_what_is_wrong_is_put_down_journalled_and_reported_and_so_is_its_return(
    world: World, root: Path
) -> None:
    for name in ("changed", "gone", "same"):
        hold_file(world, root / name, name.encode())
    world.clock.now += PERIOD
    (root / "changed").write_bytes(b"other")
    (root / "gone").unlink()
    (root / "same").write_bytes(b"same")  # Another identity, the same bytes.
    assert sorted(scrub(world, root)) == ["changed", "gone", "same"]
    assert {name: status for name, (status, _) in statuses(world).items()} == {
        "changed": "drifted",
        "gone": "missing",
        "same": "ok",
    }
    assert world.findings() == {
        "drifted_ref": 1,
        "missing_file": 1,
        "unserveable_entry": 2,
        "immortal_owner": 1,
    }
    assert {kind for kind, _ in world.kinds("drifted", "missing", "restored")} == {
        "drifted",
        "missing",
    }
    assert len(world.sql("SELECT * FROM owner_refs")) == 3  # Nothing is unregistered for it.
    for name in ("changed", "gone"):
        (root / name).write_bytes(name.encode())
    world.clock.now += PERIOD
    scrub(world, root)
    assert [kind for kind, _ in world.kinds("restored")] == ["restored"] * 2
    world.assert_healthy()


def test_everything_is_hashed_within_the_period_the_oldest_first(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of files in each pause; a round goes on where the last one stopped."""
    monkeypatch.setattr(sweeper, "SCRUB_FILES_PER_S", 0.3)
    names = [f"{number:02}.json" for number in range(10)]
    for name in names:
        hold_file(world, root / name, name.encode())
        world.clock.now += 1
    world.clock.now += PERIOD
    assert scrub(world, root) == names[:3]
    assert scrub(world, root, rounds=2) == names[3:9]
    assert scrub(world, root, rounds=2) == names[9:]
    assert "unverified_ref" not in world.findings()
    world.assert_healthy()


def test_a_round_stops_at_its_bytes(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one file is hashed in each, however large it is."""
    monkeypatch.setattr(sweeper, "SCRUB_BYTES_PER_S", 10)
    for number, size in enumerate((60, 60, 500, 10)):
        hold_file(world, root / str(number), bytes(size))
    world.clock.now += PERIOD
    assert scrub(world, root) == ["0", "1"]
    assert scrub(world, root) == ["2"]
    assert scrub(world, root) == ["3"]
    world.assert_healthy()


def test_files_that_are_not_below_a_root_are_not_looked_at_and_noted_as_missing(
    world: World, root: Path, tmp_path: Path
) -> None:
    hold_file(world, tmp_path / "outside.json", b"1")
    hold_file(world, root / "inside.json", b"1")
    world.clock.now += PERIOD + 1
    scrub(world, root, rounds=3)
    assert statuses(world)["outside.json"] == ("missing", world.clock.now)
    assert statuses(world)["inside.json"] == ("ok", world.clock.now)
    assert world.findings() == {"root_missing": 1, "unserveable_entry": 1, "immortal_owner": 1}
    world.assert_healthy(but=["root_missing", "unserveable_entry"])


def test_a_period_of_zero_scrubs_nothing_and_notes_nothing(world: World, root: Path) -> None:
    hold_file(world, root / "a.json", b"1")
    world.clock.now += 365 * DAY
    assert scrub(world, root, scrub_period_h=0) == []
    assert world.findings() == {"immortal_owner": 1}
    world.assert_healthy()


def test_copies_and_what_was_released_are_not_scrubbed(world: World, root: Path) -> None:
    hold_file(world, root / "a.json", b"1")
    world.attach(worker(2), {key("copy.json"): b"2"}, lease=None)
    world.clock.now += PERIOD

    async def run() -> None:
        async with Service(world.path, world.clock, artifact_roots=(str(root),)) as registry:
            released = registry.scrub

            async def release_first(location: Location) -> None:
                world.unregister(MINE)
                await released(location)

            registry.scrub = release_first  # type: ignore[method-assign]
            await Sweeper(registry).scrub_once()

    (root / "a.json").unlink()
    asyncio.run(run())
    assert world.kinds("missing", "drifted") == []
    assert statuses(world).keys() == {"copy.json"}
    world.assert_healthy()


def test_a_slow_file_does_not_hold_up_the_next_sweep(world: World, root: Path) -> None:
    """A network file system may hang for minutes; sweeping goes on, or it would be an outage."""
    hold_file(world, root / "a.json", b"1")
    world.clock.now += PERIOD

    async def run() -> None:
        settings: dict[str, Any] = {"artifact_roots": (str(root),), "sweep_interval_s": 0.1}
        async with Service(world.path, world.clock, **settings) as registry:
            hangs, reads = asyncio.Event(), asyncio.Event()

            async def scrub(location: Location) -> None:
                hangs.set()
                await reads.wait()

            registry.scrub = scrub  # type: ignore[method-assign]
            runner = Sweeper(registry)
            runner.start()
            await hangs.wait()
            for _ in range(2):
                world.clock.now += MINUTE
                await asyncio.to_thread(
                    wait_for, lambda: world.variable("last_sweep_at") == str(world.clock.now)
                )
            reads.set()
            await runner.close()

    asyncio.run(run())
    world.assert_healthy()


def pass_time(world: World) -> bool:
    world.clock.now += SECOND
    return True


def test_a_scrub_that_fails_is_tried_again(
    world: World, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hold_file(world, root / "a.json", b"1")
    world.clock.now += PERIOD

    async def run() -> None:
        settings: dict[str, Any] = {"artifact_roots": (str(root),), "sweep_interval_s": 0.1}
        async with Service(world.path, world.clock, **settings) as registry:
            outcomes = iter([OSError("the disk is gone")])
            scrub_one, done = registry.scrub, asyncio.Event()

            async def scrub(location: Location) -> None:
                for error in outcomes:
                    raise error
                await scrub_one(location)
                done.set()

            registry.scrub = scrub  # type: ignore[method-assign]
            runner = Sweeper(registry)
            runner.start()
            await asyncio.to_thread(wait_for, lambda: pass_time(world) and done.is_set())
            await runner.close()

    asyncio.run(run())
    assert "the scrub failed and will be tried again" in caplog.text
    assert "the disk is gone" in caplog.text
    world.assert_healthy()
