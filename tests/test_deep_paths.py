"""What long paths cost: as much as they are long, and nothing of it holds up others.

Costs are counted in calls of functions, so no clock decides.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from registry.content.blocks import BlockDigests
from registry.content.file_looks import FOLLOWED_AT_ONCE, FileLooks
from registry.content.file_pools import FilePools, Patience
from registry.content.manifest import prepare_in
from registry.content.places import Places
from registry.content.roots import ArtifactRoots, Walk
from registry.content.single_flight import SingleFlight
from registry.core.checks import PATH_COMPONENTS_MAX
from registry.core.records import ArtifactKey, Offer
from registry.core.work_progress import step
from registry.errors import Busy, FileUnreadable, Invalid
from tests.test_mounts import table

LIMIT_S = 60.0
SHORT, LONG = 60, 240
CALLS_MAX = 100
"""For each component."""
TURN_CALLS_MAX = 5_000
"""Calls that the event loop may be kept by at a time: a few milliseconds of them."""


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions are called meanwhile, in this thread and in those that begin."""
    calls = [0]

    def note(_frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            calls[0] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def absent(root: Path, components: int) -> str:
    return f"{root}/gone{'/d' * (components - 1)}"


def there(root: Path, components: int) -> str:
    path = f"{root}/there{'/d' * (components - 1)}"
    os.makedirs(path, exist_ok=True)
    return path


def through_links(root: Path, components: int) -> str:
    (root / "a").mkdir(exist_ok=True)
    link = root / f"link{components}"
    link.symlink_to("a/../" * (components // 2) + "a")
    return f"{link}/x"


def up_and_down(root: Path, components: int) -> str:
    return f"{root}/gone{'/d/..' * (components // 2)}/x"


MAKERS = [absent, there, through_links, up_and_down]


def cost_of_places(path: str, root: Path) -> int:
    places = Places([str(root)], LIMIT_S)
    try:
        with counted_calls() as calls:
            [walk] = asyncio.run(places.resolve([path]))
    finally:
        places.close()
    assert walk.at == os.path.realpath(path)
    return calls[0]


def cost_of_remote_places(path: str, root: Path) -> int:
    """With a root on a mount that others answer for."""
    places = Places([str(root)], LIMIT_S)
    places._table.mounts = table("/ ext4", "/proc proc", f"{root} nfs")
    try:
        with counted_calls() as calls:
            [walk] = asyncio.run(places.resolve([path]))
    finally:
        places.close()
    assert walk.at == os.path.realpath(path)
    return calls[0]


def cost_of_embedded(path: str, root: Path) -> int:
    roots = ArtifactRoots([str(root)])
    with counted_calls() as calls:
        found = roots.resolve(path)
    assert found == os.path.realpath(path)
    return calls[0]


def cost_of_audit(path: str, root: Path) -> int:
    mounts = table("/ ext4", "/proc proc", f"{root} nfs")
    patience = Patience(mounts.point_of, LIMIT_S)
    with counted_calls() as calls:
        found = patience.follow(path)
    assert found == os.path.realpath(path)
    return calls[0]


@pytest.mark.parametrize(
    "cost_of", [cost_of_places, cost_of_remote_places, cost_of_embedded, cost_of_audit]
)
@pytest.mark.parametrize("path_of", MAKERS)
def test_a_path_costs_as_much_as_it_is_long(
    path_of: Callable[[Path, int], str], cost_of: Callable[[str, Path], int], tmp_path: Path
) -> None:
    short, long = path_of(tmp_path, SHORT), path_of(tmp_path, LONG)
    cost_of(short, tmp_path)  # What is only done once is done.
    more = cost_of(long, tmp_path) - cost_of(short, tmp_path)
    assert more < CALLS_MAX * (LONG - SHORT)


def test_a_mount_is_found_without_a_look_at_the_rest_of_the_path() -> None:
    mounts = table("/ ext4", "/models xfs", "/models/remote nfs", "/models/deep/down/here nfs")
    for path, point in {
        "/models/remote": "/models/remote",
        "/models/remotely": "/models",
        "/models/deep/down": "/models",
        "/models/deep/down/here/a": "/models/deep/down/here",
        "/models/": "/models",
        "/models//remote": "/models",
        "/model": "/",
        "/": "/",
        "models": "/",
        "": "/",
    }.items():
        with counted_calls() as short:
            assert mounts.point_of(path) == point
        with counted_calls() as long:
            found = mounts.point_of(path + "/d" * 2000)
        assert found == point or path in ("", "models", "/")
        assert long[0] <= short[0] + 2


def test_below_what_is_not_there_nothing_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("../b")
    looked_at: list[str] = []

    def may_look(path: str) -> bool:
        looked_at.append(path.removeprefix(f"{tmp_path}/"))
        return True

    walk = Walk(f"{tmp_path}/a/gone/x/y/../../../../a/link/c/../d")
    walk.go(may_look)
    assert walk.at == f"{tmp_path}/b/d"
    assert looked_at[-5:] == ["a", "a/gone", "a", "a/link", "b"]


async def longest_turn(work: Awaitable[object]) -> int:
    """How many calls at most kept the event loop from others while some work was done."""
    calls = longest = 0

    def note(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    task = asyncio.ensure_future(work)
    sys.setprofile(note)
    try:
        while not task.done():
            calls = 0
            await asyncio.sleep(0)
            longest = max(longest, calls)
    finally:
        sys.setprofile(None)
    with pytest.raises(FileUnreadable):
        await task
    return longest


@pytest.mark.parametrize(
    ("components", "many"), [(PATH_COMPONENTS_MAX, 1000), (2000, 100)], ids=["offered", "kept"]
)
def test_a_manifest_of_long_paths_does_not_hold_up_the_event_loop(
    components: int, many: int, tmp_path: Path
) -> None:
    paths = [f"{absent(tmp_path, components - 10)}/{number}" for number in range(many)]
    places = Places([str(tmp_path)], LIMIT_S)
    if components > PATH_COMPONENTS_MAX:  # As an older version may have kept them.
        work: Awaitable[object] = resolved_and_refused(places, paths)
    else:
        offers = [Offer(ArtifactKey("m", "_base", p.rsplit("/", 1)[1]), p) for p in paths]
        work = prepare_in(
            places,
            offers,
            lambda path, found: None,
            max_blob_bytes=1,
            max_manifest_bytes=1,
        )

    async def scenario() -> int:
        return await longest_turn(work)

    try:
        assert asyncio.run(scenario()) < TURN_CALLS_MAX
    finally:
        places.close()


async def resolved_and_refused(places: Places, paths: list[str]) -> None:
    walks = await places.resolve(paths)
    assert [walk.at for walk in walks] == paths
    raise FileUnreadable("None is there.")


def test_a_path_of_too_many_components_is_refused() -> None:
    key = ArtifactKey("m", "_base", "a.json")
    assert Offer(key, "/d" * PATH_COMPONENTS_MAX).path
    with pytest.raises(Invalid, match="256 components; at most 255 are taken"):
        Offer(key, "/d" * (PATH_COMPONENTS_MAX + 1))


def test_work_that_nobody_waits_for_ends_at_its_next_step() -> None:
    begun, going_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        going_on.wait()
        try:
            step()
            pytest.fail("it went on")
        finally:
            ended.set()

    async def scenario() -> None:
        pools = FilePools(lambda path: path, LIMIT_S)
        task = asyncio.create_task(pools.run("/a", work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait([task])
        going_on.set()
        await asyncio.to_thread(ended.wait)
        assert await pools.run("/a", lambda: True)

    asyncio.run(scenario())


def test_the_ways_of_many_holders_are_looked_for_together() -> None:
    """So that where all of them hang, one limit of time goes by and not one for each."""
    under_way = most = 0

    class Hung(Places):
        async def resolve(self, paths: Iterable[str]) -> list[Walk]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            raise Busy("it hangs")

    places = Hung(None, LIMIT_S)
    looks = FileLooks(places, BlockDigests(), SingleFlight(), lambda *_: None)
    try:
        assert asyncio.run(looks.find_ways([f"/{number}" for number in range(100)])) == {}
    finally:
        places.close()
    assert most == FOLLOWED_AT_ONCE
