"""A holder that writes through `mmap` changes no time of its file while a page is dirty, and a disk
may give other bytes than it took: whatever is sent was hashed, and what was found wrong once is put
down and believed no more (S12)."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.content import file_memory
from registry.content.blocks import BLOCK_BYTES
from registry.content.streams import Stream
from registry.core.records import ArtifactKey, Offer
from registry.errors import Unserveable
from registry.service.registry import Registry
from tests.exchanges import (
    Line,
    journal,
    key_of,
    new_slug,
    problem_of,
    running,
    settle,
    worker,
)
from tests.fleet import Service, World
from tests.support import Server, in_place, sql, wait_for

SIZE = 5 * BLOCK_BYTES + 1000
GOOD = random.Random(1).randbytes(SIZE)
MIDDLE = 2 * BLOCK_BYTES + 17
AGED_FILES = 24


@dataclass
class Mapped:
    """A file that is registered, and a page table entry of it that is dirty, so that nothing shows
    what is written there."""

    path: Path
    good: bytes
    memory: mmap.mmap

    @classmethod
    def at(cls, path: Path) -> Mapped:
        good = path.name.encode() + GOOD[len(path.name) :]
        path.write_bytes(good)
        with path.open("r+b") as opened:
            memory = mmap.mmap(opened.fileno(), 0)
        for start in range(0, SIZE, mmap.PAGESIZE):
            memory[start] = good[start]
        return cls(path, good, memory)

    def write(self, at: int) -> None:
        """One byte becomes another, and the file looks as it did."""
        before = os.stat(self.path)
        self.memory[at] = self.good[at] ^ 1
        assert os.stat(self.path) == before

    def put_back(self, at: int) -> None:
        self.memory[at] = self.good[at]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory: on a disk a page is clean again after half a minute, and the next write shows."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK):
        memory = tmp_path_factory.mktemp("mapped")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def mapped_files(root: Path) -> Iterator[Iterator[Mapped]]:
    """Files that are so old that what they look like is trusted."""
    files = [Mapped.at(root / f"{number}.bin") for number in range(AGED_FILES)]
    changed_at = max(os.stat(each.path).st_ctime for each in files)
    wait_for(lambda: time.time() > changed_at + 2.1)
    yield iter(files)
    for each in files:
        each.memory.close()


@pytest.fixture
def mapped(mapped_files: Iterator[Mapped]) -> Mapped:
    return next(mapped_files)


@pytest.fixture(scope="module")
def tight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that has no room for large content, and streams it."""
    folder = tmp_path_factory.mktemp("tight")
    with running(folder, artifact_root=root, content_cache_bytes=64 << 10) as server:
        yield server


@pytest.fixture
def slug() -> str:
    return new_slug()


def held(server: Server, mapped: Mapped, slug: str) -> ArtifactKey:
    key = key_of(slug, "tokenizer.bin")
    answer = server.register(worker(slug), [in_place(key, mapped.path)])
    assert answer.status_code == 200, answer.text
    return key


def assert_noted(server: Server, key: ArtifactKey) -> None:
    """It is drifted wherever one may look."""
    settle(server)
    [holder] = server.client.get(f"/v1/artifacts/{key}").json()["holders"]
    assert holder["status"] == "drifted"
    models = server.client.get("/v1/models?limit=1000").json()["models"]
    assert [m["serveable"] for m in models if m["slug"] == key.slug] == [False]
    findings = server.client.get("/v1/audit").json()["findings"]
    about = {each["class"] for each in findings if each["entry"] == str(key)}
    assert {"drifted_ref", "unserveable_entry"} <= about
    kinds = [e["kind"] for e in journal(server.database, "drifted", "restored", slug=key.slug)]
    assert kinds == ["drifted"]


FIRST, LAST = 3, SIZE - 3
ASKED: dict[str, tuple[int, str | None, bool]] = {
    "the whole, wrong at its start": (FIRST, None, True),
    "the whole, wrong in its midst": (MIDDLE, None, False),
    "the whole, wrong at its end": (LAST, None, False),
    "the part that is wrong": (MIDDLE, f"bytes={MIDDLE}-{MIDDLE}", True),
    "a part with it": (MIDDLE, f"bytes={MIDDLE - 5}-{MIDDLE + 5}", True),
    "a part of the same block": (MIDDLE, f"bytes={MIDDLE + 5}-{MIDDLE + 15}", True),
    "a part that ends with it": (MIDDLE, f"bytes=0-{MIDDLE}", False),
    "the last bytes": (LAST, "bytes=-5", True),
    "several parts, the first wrong": (FIRST, f"bytes=0-9,{MIDDLE}-{MIDDLE}", True),
    "several parts, the last wrong": (MIDDLE, f"bytes=0-9,{MIDDLE}-{MIDDLE}", False),
}
"""Where the byte is, what is asked for, and whether that is found before anything is sent."""


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_no_byte_leaves_that_was_not_hashed(
    tight: Server, mapped: Mapped, slug: str, name: str, warm: bool
) -> None:
    at, asked_for, is_found_first = ASKED[name]
    key = held(tight, mapped, slug)
    if warm:
        assert tight.fetch(key, range="bytes=0-9").content == mapped.good[:10]
    mapped.write(at)
    headers = [f"Range: {asked_for}"] if asked_for else []
    url = f"/v1/metadata/{key}"
    with Line(tight) as line:
        line.ask(url, *headers)
        answer = line.read_answer()
    if is_found_first or not warm:
        # Cold, all of it is hashed before anything is sent.
        problem_of(answer, 503, "unserveable")
    else:
        assert not answer.complete
        if "multipart" not in answer.headers["content-type"]:
            assert mapped.good.startswith(answer.content)
    assert_noted(tight, key)
    for value in (None, asked_for, "bytes=0-0", f"bytes={SIZE // 2}-"):
        problem_of(tight.fetch(key, **({"range": value} if value else {})), 503, "unserveable")
    assert tight.client.head(url).status_code == 503
    assert_noted(tight, key)
    # Written anew, it looks otherwise, and is hashed.
    mapped.put_back(at)
    os.utime(mapped.path)
    assert tight.fetch(key).content == mapped.good
    settle(tight)
    [holder] = tight.client.get(f"/v1/artifacts/{key}").json()["holders"]
    assert holder["status"] == "ok"


@pytest.mark.parametrize("other", ["copied", "in place"])
def test_another_holder_is_read_where_nothing_was_sent_yet(
    tight: Server, root: Path, mapped: Mapped, slug: str, other: str
) -> None:
    """S5."""
    key = held(tight, mapped, slug)
    assert tight.fetch(key).content == mapped.good
    if other == "copied":
        tight.register_copies(worker(slug, 2), {key: mapped.good})
    else:
        (root / slug).write_bytes(mapped.good)
        tight.register(worker(slug, 2), [in_place(key, root / slug)])
    mapped.write(MIDDLE)
    part = f"bytes={MIDDLE}-{MIDDLE + 9}"
    for _ in range(3):
        assert tight.fetch(key, range=part).content == mapped.good[MIDDLE : MIDDLE + 10]
        assert tight.fetch(key).content == mapped.good
    tight.unregister(worker(slug, 2))
    problem_of(tight.fetch(key), 503, "unserveable")
    settle(tight)
    mapped.put_back(MIDDLE)
    os.utime(mapped.path)
    assert tight.fetch(key).content == mapped.good


def test_what_was_put_right_without_a_trace_is_served_again_after_a_while(
    world: World, root: Path, mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of("tiny", "tokenizer.bin")
    names = (key.slug, key.suffix, key.filename)

    async def scenario(registry: Registry) -> None:
        offers = [Offer(key, str(mapped.path))]
        await registry.register(worker("tiny"), offers, lease_ttl_ms=None)
        assert await part_of(registry, names, MIDDLE) is True
        mapped.write(MIDDLE)
        for _ in range(3):
            assert await part_of(registry, names, MIDDLE) is False
        mapped.put_back(MIDDLE)
        assert await part_of(registry, names, MIDDLE) is False
        monkeypatch.setattr(file_memory, "WRONG_FOR_S", 0.0)
        assert await part_of(registry, names, MIDDLE) is True

    async def run() -> None:
        settings = {"artifact_roots": (str(root),), "content_cache_bytes": 1000}
        async with Service(world.path, world.clock, **settings) as registry:
            await scenario(registry)

    asyncio.run(run())
    assert [kind for kind, _ in world.kinds("drifted", "restored")] == ["drifted", "restored"]
    world.assert_healthy()


async def part_of(registry: Registry, names: tuple[str, ...], at: int) -> bool:
    """Whether a block can be had, once what is known was written down."""
    await registry.writer.submit(_nothing, None)
    location = await registry.keys.find(names)
    assert location is not None
    try:
        stream = await registry.open(names, location, at)
    except Unserveable:
        return False
    assert isinstance(stream, Stream)
    assert await stream.read(at, at + 1) == GOOD[at : at + 1]
    stream.close()
    return True


def _nothing(conn: object, now: int, items: object) -> list[None]:
    return [None]


# Copies


def wrong(database: Path, key: ArtifactKey, at: int) -> Callable[[], None]:
    """A byte of a copy becomes another, as by a disk that fails. Answers what puts it back."""

    def flip() -> None:
        with sql(database) as connection:
            query = "SELECT b.rowid FROM blobs b JOIN entries e USING (checksum) WHERE e.slug = ?"
            [(rowid,)] = connection.execute(query, [key.slug]).fetchall()
            with connection.blobopen("blobs", "content", rowid) as content:
                content.seek(at)
                byte = content.read(1)[0]
                content.seek(at)
                content.write(bytes([byte ^ 1]))

    flip()
    return flip


@pytest.mark.parametrize("at", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_copy_that_is_not_what_it_was_is_not_served_and_can_be_uploaded_again(
    tight: Server, slug: str, at: int, warm: bool
) -> None:
    key = key_of(slug, "tokenizer.bin")
    content = GOOD + slug.encode()
    tight.register_copies(worker(slug), {key: content})
    if warm:
        assert tight.fetch(key).content == content
    wrong(tight.database, key, at)
    answer = tight.fetch(key, range=f"bytes={at}-{at}")
    problem_of(answer, 503, "unserveable")
    for _ in range(2):
        problem_of(tight.fetch(key), 503, "unserveable")
    assert_noted(tight, key)
    [finding] = [
        each
        for each in tight.client.get("/v1/audit").json()["findings"]
        if each["class"] == "drifted_ref" and each["entry"] == str(key)
    ]
    assert "upload it again" in finding["detail"]
    assert tight.upload(content).status_code == 200
    assert tight.fetch(key).content == content
    settle(tight)
    [holder] = tight.client.get(f"/v1/artifacts/{key}").json()["holders"]
    assert holder["status"] == "ok"


def test_a_small_copy_that_is_wrong_is_put_down_as_well(
    serve: Callable[..., Server], slug: str
) -> None:
    server = serve()
    key = key_of(slug)
    server.register_copies(worker(slug), {key: b"{}" + slug.encode()})
    put_back = wrong(server.database, key, 0)
    problem_of(server.fetch(key), 503, "unserveable")
    assert_noted(server, key)
    put_back()
    assert server.upload(b"{}" + slug.encode()).status_code == 200
    assert server.fetch(key).content == b"{}" + slug.encode()
