"""A hard link, `chmod`, a touch and a rename of the same bytes over a file change what it looks
like and not what is in it. Whoever holds it is not accused for that, and nobody is cut off (S12).

Each happens while the file is opened, hashed or sent: not by chance, but between two parts of it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from registry.client.attach import hash_files
from registry.client.lifecycle import Next, after_registration
from registry.client.model_files import harvest
from registry.content.blocks import BLOCK_BYTES
from registry.content.cache import Body
from registry.content.streams import Stream
from registry.core import hashing
from registry.core.hashing import checksum_of, hash_file, is_changing
from registry.core.records import ArtifactKey, Offer
from registry.errors import Busy, FileUnreadable, Unserveable
from registry.service.embedded import MetadataArtifactRegistry
from registry.service.registry import Registry
from tests.fleet import Service, World, worker

MIB = 1 << 20
SMALL = b'{"model_type": "llama"}'
LARGE = random.Random(5).randbytes(3 * MIB + 1000)
KEY = ArtifactKey("tiny", "_base", "config.json")
NAMES = (KEY.slug, KEY.suffix, KEY.filename)
STREAMED = {"content_cache_bytes": 1000}

Change = Callable[[Path], None]


def linked(path: Path) -> None:
    """As `fetch --to` does with the blobs of a cache."""
    other = path.with_name("link")
    os.link(path, other)
    other.unlink()


def mode_changed(path: Path) -> None:
    path.chmod(path.stat().st_mode ^ 0o040)


def touched(path: Path) -> None:
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 1_000_000_000))


def renamed_over(path: Path) -> None:
    replaced_by(path, path.read_bytes())


def replaced_by(path: Path, content: bytes) -> None:
    other = path.with_name("new")
    other.write_bytes(content)
    other.rename(path)


SAME_BYTES = [linked, mode_changed, touched, renamed_over]


def other_bytes(path: Path) -> None:
    """Never twice the same, and as many as before."""
    size = path.stat().st_size
    with path.open("r+b") as opened:
        opened.write(os.urandom(8))
    assert path.stat().st_size == size


@contextmanager
def at_each_part(path: Path, change: Change, times: int = 1000) -> Iterator[list[None]]:
    """A change is made after each part that is read of a file; lists how often."""
    made: list[None] = []

    def step() -> None:
        if len(made) < times:
            made.append(None)
            change(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "step", step)
        yield made


@contextmanager
def at_each_opening(path: Path, change: Change, times: int = 1000) -> Iterator[list[None]]:
    """A change is made between the opening of a file and the look at where it was opened."""
    made: list[None] = []
    real: Callable[..., int] = os.open

    def opening(at: Any, *arguments: Any, **options: Any) -> int:
        descriptor = real(at, *arguments, **options)
        if os.fspath(at) == str(path) and len(made) < times and not arguments[0] & os.O_CREAT:
            made.append(None)
            change(path)
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opening)
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path.resolve() / "root"
    root.mkdir()
    return root


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def content(request: pytest.FixtureRequest) -> bytes:
    content: bytes = request.param
    return content


@pytest.fixture
def path(root: Path, content: bytes) -> Path:
    path = root / KEY.filename
    path.write_bytes(content)
    return path


# A look


@pytest.mark.parametrize("change", SAME_BYTES)
def test_bytes_that_stay_as_they_are_are_hashed_whatever_becomes_of_their_file(
    path: Path, content: bytes, change: Change
) -> None:
    """Though it does not look the same for as long as that takes; its looks are not trusted."""
    with at_each_part(path, change) as made:
        found = hash_file(str(path), max_bytes=1 << 30, keep=True)
    assert made
    assert (found.checksum, found.content) == (checksum_of(content), content)
    assert found.identity is None


@pytest.mark.parametrize("change", SAME_BYTES)
def test_bytes_that_are_expected_are_read_once(path: Path, content: bytes, change: Change) -> None:
    with at_each_part(path, change) as made:
        found = hash_file(str(path), max_bytes=1 << 30, expected=checksum_of(content))
    assert len(made) == -(-len(content) // MIB)
    assert found.checksum == checksum_of(content)


def test_wrong_bytes_are_found_though_their_file_is_linked_all_the_time(path: Path) -> None:
    right = checksum_of(path.read_bytes())
    other_bytes(path)
    with at_each_part(path, linked):
        found = hash_file(str(path), max_bytes=1 << 30, expected=right)
    assert found.checksum == checksum_of(path.read_bytes()) != right


def test_a_file_that_is_written_once_meanwhile_is_read_again(path: Path) -> None:
    with at_each_part(path, other_bytes, times=1):
        found = hash_file(str(path), max_bytes=1 << 30)
    assert found.checksum == checksum_of(path.read_bytes())


def test_of_a_file_that_never_holds_still_nothing_is_said(path: Path) -> None:
    with at_each_part(path, other_bytes), pytest.raises(Busy, match="changes while") as raised:
        hash_file(str(path), max_bytes=1 << 30)
    assert is_changing(raised.value)


def test_a_file_that_grows_and_shrinks_is_not_taken_for_its_beginning(path: Path) -> None:
    size = path.stat().st_size

    def grown(path: Path) -> None:
        os.truncate(path, size + 9 * MIB)

    def looks_small(path: Path) -> None:
        os.truncate(path, size)

    with at_each_part(path, grown), at_each_opening(path, looks_small), pytest.raises(Busy):
        hash_file(str(path), max_bytes=1 << 30)


def test_a_file_that_is_replaced_as_it_is_opened_is_opened_again(
    path: Path, content: bytes
) -> None:
    with at_each_opening(path, renamed_over, times=1) as made:
        assert hash_file(str(path), max_bytes=1 << 30).checksum == checksum_of(content)
    assert made
    with at_each_opening(path, renamed_over), pytest.raises(Busy) as raised:
        hash_file(str(path), max_bytes=1 << 30)
    assert is_changing(raised.value)


def test_a_path_that_leads_elsewhere_as_it_is_opened_is_still_refused(root: Path) -> None:
    folder, aside = root / "folder", root / "aside"
    folder.mkdir()
    path = folder / "file"
    path.write_bytes(SMALL)

    def turned(_: Path) -> None:
        folder.rename(aside)
        folder.symlink_to(aside)

    with at_each_opening(path, turned, times=1), pytest.raises(FileUnreadable):
        hash_file(str(path), max_bytes=100)


def test_a_worker_leaves_out_a_file_that_never_holds_still(root: Path) -> None:
    for name in ("config.json", "notes.txt"):
        (root / name).write_bytes(b'{"model_type": "llama"}')
    files = harvest(root).files
    with at_each_part(root / "notes.txt", other_bytes):
        hashed, left_out = hash_files(files)
    assert [each.file.filename for each in hashed] == ["config.json"]
    assert [(each.filename, each.why) for each in left_out] == [
        ("notes.txt", "changes while it is read")
    ]
    with at_each_part(root / "config.json", other_bytes), pytest.raises(FileUnreadable):
        hash_files(files)


# The service


def serving(
    world: World, root: Path, scenario: Callable[[Registry], Any], **settings: Any
) -> list[str]:
    """What was put down of files while a scenario ran."""

    async def run() -> None:
        settings_of = {"artifact_roots": (str(root),), **settings}
        async with Service(world.path, world.clock, **settings_of) as registry:
            await scenario(registry)

    asyncio.run(run())
    return [kind for kind, _ in world.kinds("drifted", "missing", "restored")]


async def hold(registry: Registry, path: Path, checksum: str | None = None) -> None:
    offers = [Offer(KEY, str(path), checksum)]
    await registry.register(worker(1), offers, lease_ttl_ms=None)


async def read(registry: Registry) -> bytes:
    await registry.writer.submit(_nothing, None)
    location = await registry.keys.find(NAMES)
    assert location is not None
    opened = registry.ready(location) or await registry.open(NAMES, location)
    if isinstance(opened, Body):
        return bytes(opened.content)
    assert isinstance(opened, Stream)
    return await rest_of(opened)


async def rest_of(stream: Stream, change: Callable[[], None] = lambda: None) -> bytes:
    """What comes of a stream, with a change before each part."""
    received = b""
    while len(received) < stream.size:
        change()
        part = await stream.read(len(received), stream.size)
        if part is None:
            break
        received += part
    stream.close()
    return received


def _nothing(conn: object, now: int, items: object) -> list[None]:
    return [None]


@pytest.mark.parametrize("change", SAME_BYTES)
@pytest.mark.parametrize("settings", [{}, STREAMED], ids=["memory", "stream"])
def test_nobody_is_accused_for_right_bytes_whatever_becomes_of_their_file(
    world: World, root: Path, path: Path, content: bytes, change: Change, settings: dict[str, int]
) -> None:
    async def scenario(registry: Registry) -> None:
        with at_each_part(path, change):
            await hold(registry, path)
            await hold(registry, path, checksum_of(content))
            for _ in range(3):
                change(path)
                assert await read(registry) == content
        assert await read(registry) == content

    assert serving(world, root, scenario, **settings) == []


@pytest.mark.parametrize("settings", [{}, STREAMED], ids=["memory", "stream"])
def test_a_file_that_is_replaced_by_the_same_bytes_as_it_is_opened_is_served(
    world: World, root: Path, path: Path, content: bytes, settings: dict[str, int]
) -> None:
    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        for times in range(1, 6):
            with at_each_opening(path, renamed_over, times=times), suppress(Busy):
                assert await read(registry) == content
        assert await read(registry) == content

    assert serving(world, root, scenario, **settings) == []


@pytest.mark.parametrize("content", [LARGE], indirect=True)
@pytest.mark.parametrize("change", [*SAME_BYTES, Path.unlink])
def test_a_stream_goes_on_as_long_as_its_bytes_are_right(
    world: World, root: Path, path: Path, content: bytes, change: Change
) -> None:
    """Of what was opened, though another file has the name by now."""

    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        location = await registry.keys.find(NAMES)
        assert location is not None
        stream = await registry.open(NAMES, location)
        assert isinstance(stream, Stream)

        def change_once_more() -> None:
            if path.exists():
                change(path)

        assert await rest_of(stream, change_once_more) == content

    assert serving(world, root, scenario, **STREAMED) == []


@pytest.mark.parametrize("content", [LARGE], indirect=True)
def test_a_stream_ends_before_the_first_wrong_byte_and_the_next_look_says_so(
    world: World, root: Path, path: Path, content: bytes
) -> None:
    at = 5 * BLOCK_BYTES + 17

    def write_behind_a_link() -> None:
        linked(path)
        with path.open("r+b") as opened:
            opened.seek(at)
            opened.write(bytes([content[at] ^ 1]))

    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        location = await registry.keys.find(NAMES)
        assert location is not None
        stream = await registry.open(NAMES, location)
        assert isinstance(stream, Stream)
        received = await rest_of(stream, write_behind_a_link)
        assert received == content[: len(received)]
        assert len(received) <= at
        with pytest.raises(Unserveable):
            await read(registry)

    assert serving(world, root, scenario, **STREAMED) == ["drifted"]


@pytest.mark.parametrize("settings", [{}, STREAMED], ids=["memory", "stream"])
def test_wrong_bytes_are_drifted_though_their_file_is_linked_all_the_time(
    world: World, root: Path, path: Path, settings: dict[str, int]
) -> None:
    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        other_bytes(path)
        with at_each_part(path, linked), pytest.raises(Unserveable):
            await read(registry)

    assert serving(world, root, scenario, **settings) == ["drifted"]


@pytest.mark.parametrize("settings", [{}, STREAMED], ids=["memory", "stream"])
def test_what_never_holds_still_is_busy_and_nothing_is_put_down(
    world: World, root: Path, path: Path, content: bytes, settings: dict[str, int]
) -> None:
    """Reads, looks and registrations; a worker that registers again keeps its card meanwhile."""

    def put_back() -> None:
        path.write_bytes(content)

    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        location = await registry.keys.find(NAMES)
        assert location is not None
        other_bytes(path)
        with at_each_part(path, other_bytes):
            for look in (read(registry), registry.scrub(location), hold(registry, path)):
                with pytest.raises(Busy) as raised:
                    await look
                assert type(raised.value) is Busy  # It is 503.
                assert after_registration(raised.value) is Next.WAIT
        put_back()
        assert await read(registry) == content

    assert serving(world, root, scenario, **settings) == []


def test_a_file_that_comes_back_while_it_is_looked_at_is_not_drifted(
    world: World, root: Path, path: Path, content: bytes
) -> None:
    """It was removed and written again: nothing was there for the time of one look."""
    real: Callable[..., int] = os.open
    gone: list[None] = []

    def opening(at: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(at) == str(path) and len(gone) < 2:
            gone.append(None)
            raise FileNotFoundError(2, "gone", str(path))
        return real(at, *arguments, **options)

    async def scenario(registry: Registry) -> None:
        await hold(registry, path)
        linked(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", opening)
            with pytest.raises(Busy):
                await read(registry)
            gone.append(None)
            assert await read(registry) == content

    assert serving(world, root, scenario) == []


def test_the_registry_in_process_reads_what_is_linked_meanwhile(
    world: World, root: Path, path: Path, content: bytes
) -> None:
    with MetadataArtifactRegistry(world.url, artifact_roots=[root]) as registry:
        with at_each_part(path, linked):
            registry.register(worker(1), *NAMES, path)
            assert registry.read(*NAMES) == content
        other_bytes(path)
        with at_each_part(path, other_bytes), pytest.raises(Busy):
            registry.read(*NAMES)
