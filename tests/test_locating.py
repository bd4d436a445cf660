"""The service's reads when the registry changes between finding a holder and opening its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from registry import MetadataArtifactRegistry, Owner
from registry.config import Settings
from registry.content.cache import Body
from registry.core.records import Outcome, RefStatus
from registry.errors import NotRegistered, Unserveable
from registry.service.registry import Registry
from registry.store.engine import Engine
from registry.store.opening import open_database
from registry.store.ops.file_status import Observation, observe
from registry.store.reads.lookup import Location
from tests.places import Place, on_both, on_sqlite
from tests.support import checksum

pytestmark = on_both

ONE, TWO = (Owner("ns", "backend", "generate", number) for number in (1, 2))
KEY = ("model", "_base", "config.json")


@pytest.fixture
def other(place: Place, database: Engine) -> Iterator[MetadataArtifactRegistry]:
    """Somebody else on the same database."""
    with MetadataArtifactRegistry(place.url) as registry:
        yield registry


def serving(place: Place, root: Path, scenario: Callable[[Registry], Awaitable[None]]) -> None:
    settings = Settings(database_url=place.url, artifact_roots=(str(root),))

    async def run() -> None:
        registry = Registry(settings, open_database(place.url))
        await registry.start()
        try:
            await scenario(registry)
        finally:
            await registry.close()

    asyncio.run(run())


def file(folder: Path, name: str, content: bytes = b"{}") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


async def find(registry: Registry) -> Location:
    location = await registry.keys.find(KEY)
    assert location is not None
    return location


async def content(registry: Registry, location: Location) -> bytes:
    """What a reader gets who found an entry there: if it was replaced since, what it is now."""
    while (opened := await registry.open(KEY, location)) is None:
        location = await find(registry)
    assert isinstance(opened, Body)
    return bytes(opened.content)


def test_a_holder_that_moved_its_file_meanwhile_is_served_from_the_new_path(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """S3: register the new path, then delete the old file; no reader in between is refused."""
    old = file(tmp_path, "old.json")
    other.register(ONE, *KEY, old)

    async def scenario(registry: Registry) -> None:
        location = await find(registry)
        other.register(ONE, *KEY, file(tmp_path, "new.json"))
        old.unlink()
        assert await content(registry, location) == b"{}"

    serving(place, tmp_path, scenario)


def test_an_entry_that_was_replaced_meanwhile_is_served_with_its_new_content(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    old = file(tmp_path, "old.json")
    other.register(ONE, *KEY, old)

    async def scenario(registry: Registry) -> None:
        location = await find(registry)
        other.register(ONE, *KEY, file(tmp_path, "new.json", b"new"))
        old.unlink()
        assert await content(registry, location) == b"new"

    serving(place, tmp_path, scenario)


def test_an_entry_that_went_meanwhile_is_not_registered(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    path = file(tmp_path, "a.json")
    other.register(ONE, *KEY, path)

    async def scenario(registry: Registry) -> None:
        location = await find(registry)
        other.unregister_for_owner(ONE)
        path.unlink()
        with pytest.raises(NotRegistered):
            await content(registry, location)

    serving(place, tmp_path, scenario)


def test_a_file_that_is_gone_is_unserveable_until_it_is_back(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    path = file(tmp_path, "a.json")
    other.register(ONE, *KEY, path)

    async def scenario(registry: Registry) -> None:
        path.unlink()
        with pytest.raises(Unserveable):
            await content(registry, await find(registry))
        file(tmp_path, "a.json")
        assert await content(registry, await find(registry)) == b"{}"

    serving(place, tmp_path, scenario)


@on_sqlite
def test_a_holder_that_has_the_bytes_is_remembered_until_something_is_committed(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    first, second = file(tmp_path, "first.json"), file(tmp_path, "second.json")
    other.register(ONE, *KEY, first)
    other.register(TWO, *KEY, second)

    async def scenario(registry: Registry) -> None:
        location = await find(registry)
        assert location.path == str(first)
        better = location._replace(owner_id=2, path=str(second))
        registry.keys.prefer(KEY, location, better)
        assert await find(registry) == better
        other.unregister("nobodys", "_base")
        assert await find(registry) == better, "nothing was committed"
        other.unregister_for_owner(TWO)
        assert await find(registry) == location

    serving(place, tmp_path, scenario)


def test_a_holder_that_has_the_bytes_is_not_remembered_over_what_was_found_since(
    place: Place, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """What was removed while one request opened a file stays gone for the next request."""
    first, second = file(tmp_path, "first.json"), file(tmp_path, "second.json")
    other.register(ONE, *KEY, first)
    other.register(TWO, *KEY, second)
    first.unlink()

    async def scenario(registry: Registry) -> None:
        location = await find(registry)
        opening = registry._holdings.open

        async def open_slowly(holder: Location, start: int) -> object:
            opened = await opening(holder, start)
            if holder.path == str(second):
                other.unregister(*KEY[:2])
                assert await registry.keys.find(KEY) is None
            return opened

        registry._holdings.open = open_slowly  # type: ignore[method-assign, assignment]
        assert await content(registry, location) == b"{}", "it was there when it was asked for"
        assert await registry.keys.find(KEY) is None

    serving(place, tmp_path, scenario)


def test_a_look_at_content_that_was_replaced_since_is_not_noted(
    place: Place, database: Engine, other: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """Otherwise a holder that just registered again would stand there as drifted."""
    path = file(tmp_path, "a.json", b"old")
    other.register(ONE, *KEY, path)
    late = [
        Observation(1, 1, str(path), checksum(b"old"), RefStatus.DRIFTED),
        Observation(1, 1, str(path), checksum(b"old"), RefStatus.OK, "1:2:3:4:5"),
    ]
    path.write_bytes(b"new")
    assert other.register(ONE, *KEY, path) is Outcome.REPLACED
    before = place.dump()
    with database.write() as conn:
        observe(conn, conn.now, late)
    assert place.dump() == before
