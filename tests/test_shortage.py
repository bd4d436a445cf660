"""Somebody's shortage is nobody's fault: what cannot be looked at now says nothing about a file."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.client.attach import hash_files
from registry.client.cache import BlobCache as Cache
from registry.client.lifecycle import Next, after_registration
from registry.client.model_files import harvest
from registry.client.upload import UploadBody
from registry.content.cache import Body
from registry.content.file_audit import check_files
from registry.content.roots import ArtifactRoots
from registry.core.hashing import find_identity, hash_file
from registry.core.records import Artifact, Offer, Owner, Registered, Registration
from registry.errors import Busy, FileUnreadable, RegistryError, StorageUnavailable, Unserveable
from registry.service.embedded import MetadataArtifactRegistry
from registry.service.registry import Registry
from registry.service.sweeper import Sweeper
from registry.store.engine import Connection
from registry.store.group_commit import Writer
from registry.store.ops import register
from registry.store.reads.verify import verify
from registry.store.sqlite.engine import Database
from tests.fleet import DAY, Hasty, Service, World, key, run_cli, worker
from tests.support import checksum

CONTENT = b'{"model_type": "llama"}'
KEY = key("config.json")
NAMES = (KEY.slug, KEY.suffix, KEY.filename)
ONE, TWO = worker(1), worker(2)

OF_THE_FILE = (
    *("ENOENT", "ENOTDIR", "ELOOP", "EACCES", "EPERM", "ENXIO", "ENODEV", "EISDIR"),
    *("ENAMETOOLONG", "EINVAL", "EFBIG", "EOVERFLOW"),
)
"""All that a look can fail with that is the file's own. Whatever else there is, is not."""

NOT_OF_THE_FILE = ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EAGAIN")


@contextmanager
def failing(call: str, folder: Path, error: BaseException) -> Iterator[None]:
    """A system call on paths of a folder, or on descriptors, fails in a way."""
    real: Callable[..., Any] = getattr(os, call)

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        is_ours = isinstance(path, int) or str(folder) in os.fspath(path) or "/proc/self" in path
        if is_ours:
            raise error
        return real(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        yield


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """What is open stays so; nothing else can be opened by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    (directory / KEY.filename).write_bytes(CONTENT)
    return directory


def hold(world: World, path: Path, owner: Owner = ONE) -> None:
    artifact = Artifact(KEY, checksum(CONTENT), len(CONTENT), str(path))
    assert isinstance(world.do(register.register, Registration(owner, (artifact,))), Registered)


def kinds(world: World) -> set[str]:
    return {kind for (kind,) in world.sql("SELECT DISTINCT kind FROM events")}


def assert_nobody_is_accused(world: World) -> None:
    assert kinds(world) & {"drifted", "missing"} == set()
    assert world.sql("SELECT DISTINCT status FROM owner_refs") == [("ok",)]


# The table


@pytest.mark.parametrize("call", ["lstat", "open", "fstat", "readlink", "read"])
def test_what_an_error_says_is_of_the_file_or_of_the_moment(root: Path, call: str) -> None:
    path = root / KEY.filename
    for code, name in errno.errorcode.items():
        of_the_file = name in OF_THE_FILE or code in {getattr(errno, each) for each in OF_THE_FILE}
        if call == "readlink" and of_the_file:
            continue  # There is another way to learn where a descriptor leads.
        with failing(call, root, OSError(code, os.strerror(code))):
            with pytest.raises(FileUnreadable if of_the_file else Busy) as raised:
                hash_file(str(path), max_bytes=100)
            assert os.strerror(code) in raised.value.detail, name
            assert ("says nothing about the file" in raised.value.detail) == (not of_the_file)
            if call == "lstat" and of_the_file:
                assert find_identity(str(path)) is None
            elif call == "lstat":
                with pytest.raises(Busy):
                    find_identity(str(path))


@pytest.mark.parametrize("name", NOT_OF_THE_FILE)
def test_a_path_that_cannot_be_resolved_now_is_neither_allowed_nor_refused(
    root: Path, name: str
) -> None:
    """A symlink that could not be looked at would otherwise pass for a directory below the root."""
    roots = ArtifactRoots([root])
    with failing("lstat", root, OSError(getattr(errno, name), name)), pytest.raises(Busy):
        roots.resolve(str(root / KEY.filename))
    assert roots.resolve(str(root / KEY.filename)) == str(root / KEY.filename)


def test_whether_a_file_is_there_outside_of_the_roots_is_not_told(root: Path) -> None:
    roots = ArtifactRoots([root])
    answers = set()
    for path in ("/etc/passwd", "/etc/no-such-file", "/no/such/folder", "/etc/passwd/below"):
        with pytest.raises(RegistryError) as raised:
            roots.resolve(path)
        answers.add((type(raised.value), raised.value.detail.replace(path, "PATH")))
    assert len(answers) == 1, answers


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("no number"), InterruptedError(errno.EINTR, "interrupted")]
)
def test_errors_without_a_number_and_a_lack_of_memory_are_of_the_moment(
    root: Path, error: BaseException
) -> None:
    with failing("read", root, error), pytest.raises(Busy):
        hash_file(str(root / KEY.filename), max_bytes=100, keep=True)


# The service


async def read(registry: Registry) -> bytes:
    location = await registry.keys.find(NAMES)
    assert location is not None
    body = registry.ready(location) or await registry.open(NAMES, location)
    assert isinstance(body, Body)
    return bytes(body.content)


def serving(world: World, root: Path, scenario: Callable[[Registry], Any], **settings: Any) -> None:
    async def run() -> None:
        settings_of = {"artifact_roots": (str(root),), **settings}
        async with Service(world.path, world.clock, **settings_of) as registry:
            await read_nothing(registry)
            await scenario(registry)

    asyncio.run(run())


async def read_nothing(registry: Registry) -> None:
    """Connections and threads are there before anything is short."""
    await registry.read(lambda conn: None)
    await registry.keys.find(("no", "such", "key"))


SHORTAGES = [(call, name) for name in NOT_OF_THE_FILE for call in ("lstat", "open", "read")]


@pytest.mark.parametrize(("call", "name"), SHORTAGES)
def test_a_read_during_a_shortage_is_busy_and_the_holder_is_not_accused(
    world: World, root: Path, call: str, name: str
) -> None:
    """S12: what is put down is what was found, and nothing was."""
    hold(world, root / KEY.filename)

    async def scenario(registry: Registry) -> None:
        with failing(call, root, OSError(getattr(errno, name), name)):
            for _ in range(3):
                with pytest.raises(Busy):
                    await read(registry)
        assert await read(registry) == CONTENT

    serving(world, root, scenario)
    assert_nobody_is_accused(world)


def test_another_holder_is_read_while_one_cannot_be_looked_at(
    world: World, root: Path, tmp_path: Path
) -> None:
    """S5."""
    hold(world, root / KEY.filename)
    world.attach(TWO, {KEY: CONTENT}, lease=None)

    async def scenario(registry: Registry) -> None:
        with failing("lstat", root, OSError(errno.EIO, "EIO")):
            assert await read(registry) == CONTENT

    serving(world, root, scenario)
    assert_nobody_is_accused(world)


def test_what_is_gone_is_unserveable_only_when_everybody_was_looked_at(
    world: World, root: Path
) -> None:
    other = root / "other"
    other.mkdir()
    (other / "config.json").write_bytes(CONTENT)
    hold(world, root / KEY.filename)
    hold(world, other / KEY.filename, TWO)
    (root / KEY.filename).unlink()

    async def scenario(registry: Registry) -> None:
        with failing("lstat", other, OSError(errno.ESTALE, "ESTALE")), pytest.raises(Busy):
            await read(registry)
        assert await read(registry) == CONTENT
        (other / KEY.filename).unlink()
        with pytest.raises(Unserveable):
            await read(registry)

    serving(world, root, scenario)


@pytest.mark.parametrize(("call", "name"), SHORTAGES)
def test_registering_in_place_during_a_shortage_is_busy(
    world: World, root: Path, call: str, name: str
) -> None:
    """S8, S10: a worker that is told 422 withdraws the card of a live model; one that is told 503
    comes back."""
    offers = [Offer(KEY, str(root / KEY.filename))]

    async def scenario(registry: Registry) -> None:
        shortage = failing(call, root, OSError(getattr(errno, name), name))
        with shortage, pytest.raises(Busy) as raised:
            await registry.register(ONE, offers, lease_ttl_ms=None)
        assert after_registration(raised.value) is Next.WAIT
        await registry.register(ONE, offers, lease_ttl_ms=None)

    serving(world, root, scenario)
    assert_nobody_is_accused(world)


@pytest.mark.parametrize("name", NOT_OF_THE_FILE)
def test_the_scrub_passes_over_what_it_cannot_look_at(
    world: World, root: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sick = root / "sick"
    sick.mkdir()
    hold(world, sick / KEY.filename)
    fine = root / "fine.json"
    fine.write_bytes(b"other")
    artifact = Artifact(key("fine.json"), checksum(CONTENT), len(CONTENT), str(fine))
    world.do(register.register, Registration(TWO, (artifact,)))
    world.clock.now += DAY

    async def scenario(registry: Registry) -> None:
        sweeper = Sweeper(registry)
        await sweeper.sweep_once()
        with failing("lstat", sick, OSError(getattr(errno, name), name)):
            await sweeper.scrub_once()

    serving(world, root, scenario)
    rows = world.sql(
        "SELECT filename, status FROM owner_refs JOIN entries ON id = entry_id ORDER BY 1"
    )
    assert rows == [("config.json", "ok"), ("fine.json", "drifted")]
    assert "1 files were not looked at" in caplog.text


# In-process, and the audit


def test_the_registry_in_process_says_what_it_is_short_of(world: World, root: Path) -> None:
    path = root / KEY.filename
    registry = MetadataArtifactRegistry(world.url)
    registry.register(ONE, *NAMES, path)
    assert registry.read(*NAMES) == CONTENT
    with no_more_descriptors():
        for call in (
            lambda: registry.read(*NAMES),
            lambda: registry.register(ONE, *NAMES, path),
        ):
            with pytest.raises(Busy, match="ulimit -n"):
                call()
    assert registry.read(*NAMES) == CONTENT
    registry.close()
    assert_nobody_is_accused(world)


@pytest.mark.parametrize("name", NOT_OF_THE_FILE)
def test_the_audit_of_files_reports_what_it_found_and_that_it_is_not_complete(
    world: World, root: Path, name: str
) -> None:
    sick = root / "sick"
    sick.mkdir()
    hold(world, sick / KEY.filename)
    hold(world, root / "gone.json", TWO)
    with failing("lstat", sick, OSError(getattr(errno, name), name)):
        findings = check_files(world.database, None)
        assert next(findings).kind == "missing_file"
        with pytest.raises(Busy, match="1 files were not checked"):
            next(findings)
        code, out, err = run_cli("audit", "--check-files", "--database-url", world.url)
    assert code == 2
    assert "missing_file" in out
    assert "1 files were not checked" in err
    assert_nobody_is_accused(world)


def test_verify_takes_a_lack_of_descriptors_for_no_damage(world: World) -> None:
    world.attach(ONE)
    world.database.close()
    fresh = Hasty(world.url, clock=world.clock)
    with no_more_descriptors(), pytest.raises(StorageUnavailable):
        list(verify(fresh))
    fresh.close()
    assert list(verify(world.database)) == []


# A worker's own process

LOOKS: dict[str, Callable[[Path], object]] = {
    "list": harvest,
    "upload": lambda folder: list(UploadBody(folder / KEY.filename, None).chunks()),
    "hash": lambda folder: hash_files(
        [file for file in _harvested if file.path.parent == folder] or harvest(folder).files
    ),
}
_harvested: list[Any] = []


@pytest.mark.parametrize("look", LOOKS)
def test_a_worker_that_is_short_itself_says_so_and_tries_again(root: Path, look: str) -> None:
    _harvested[:] = harvest(root).files
    with no_more_descriptors(), pytest.raises(Busy, match="ulimit -n") as raised:
        LOOKS[look](root)
    assert after_registration(raised.value) is Next.WAIT
    LOOKS[look](root)


@pytest.mark.parametrize("name", NOT_OF_THE_FILE)
def test_a_file_that_cannot_be_looked_at_is_not_a_broken_link(root: Path, name: str) -> None:
    """It would be left out of the model in silence."""
    failure = failing("stat", root, OSError(getattr(errno, name), name))
    with failure, pytest.raises(Busy):
        harvest(root)


def test_a_cache_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=1 << 20)
    claim = cache.try_claim(checksum(CONTENT))
    assert claim is not None
    claim.file.write(CONTENT)
    claim.keep()
    claim.close()
    with no_more_descriptors(), pytest.raises(Busy):
        cache.find(checksum(CONTENT), 100)
    found = cache.find(checksum(CONTENT), 100)
    assert found is not None
    assert found.checksum == checksum(CONTENT)


# Memory


def _lacking(conn: Connection, now: int, items: Sequence[str]) -> list[str]:
    """An operation that runs out of memory for one of its items."""
    if "large" in items:
        raise MemoryError
    return [f"done {item}" for item in items]


def test_a_write_that_runs_out_of_memory_is_busy_and_hurts_nobody_else(database: Database) -> None:
    """S16: nobody is told that it was written, and nobody waits for ever."""

    async def run() -> list[Any]:
        writer = Writer(database)
        writer.start()
        try:
            items = ["small", "large", "other"]
            calls = [writer.submit(_lacking, item) for item in items]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert await writer.submit(_lacking, "after") == "done after"
            return outcomes
        finally:
            writer.close()

    small, large, other = asyncio.run(asyncio.wait_for(run(), 30))
    assert (small, other) == ("done small", "done other")
    assert isinstance(large, Busy)
    assert "out of memory" in large.detail


@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_writer_answers_when_there_is_memory_for_that_again(
    database: Database, times: int
) -> None:
    """Whatever it lacks, and however often: between taking an item and waking who waits for it."""

    async def run() -> str:
        writer = Writer(database)
        writer.start()
        loop = asyncio.get_running_loop()
        real, lacking = loop.call_soon_threadsafe, [MemoryError()] * times

        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread().name == "registry-writer" and lacking:
                raise lacking.pop()
            return real(*arguments, **options)

        loop.call_soon_threadsafe = call  # type: ignore[method-assign, assignment]
        try:
            outcome = await writer.submit(_lacking, "small")
            assert writer.alive
            return outcome
        finally:
            writer.close()

    assert asyncio.run(asyncio.wait_for(run(), 30)) == "done small"


def test_the_threads_of_the_service_are_there_from_its_start(world: World, root: Path) -> None:
    """Later, there may be none to be had."""

    async def scenario(registry: Registry) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            await asyncio.gather(*(registry.read(_slow) for _ in range(20)))

    serving(world, root, scenario)


def _no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def _slow(conn: Connection) -> None:
    conn.run_text("SELECT 1")
