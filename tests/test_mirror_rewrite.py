"""A mirror in rewrite mode: cards name the registry where they are, under their worker's lease."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry.client import Resolver
from registry.client.cache import BlobCache
from registry.core.model_revisions import revision_slug
from registry.core.records import Owner
from registry.discovery import Discovery, Kind, RecordKey, open_discovery
from registry.mirror import Mirror, MirrorMode, MirrorSettings
from registry.mirror.mirrored_card import HereUrls, pointed_here, read_card
from tests.etcds import Etcd
from tests.mirrors import (
    CONTENTS,
    FleetWorker,
    MirrorProcess,
    expected,
    folder_url,
    held_by,
    killed_at,
    owner_of,
    record_with,
    wait_until_held,
    wait_until_released,
)
from tests.support import Server, checksum, wait_for


@pytest.fixture(params=["file", "etcd"])
def discovery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store of each kind in which cards can be changed."""
    if request.param == "file":
        yield folder_url(tmp_path / "kv")
        return
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd.url


@pytest.fixture
def store(discovery: str) -> Iterator[Discovery]:
    """The store as a worker has it open."""
    opened = open_discovery(discovery)
    yield opened
    opened.close()


def rewriting(discovery: str, server: Server, **fields: object) -> MirrorSettings:
    given = {"linger_s": 0.5, "lease_ttl_s": 60.0, "mode": MirrorMode.REWRITE, **fields}
    return MirrorSettings(discovery, server.url, **given)  # type: ignore[arg-type]


def hosts_of(store: Discovery, owner: Owner) -> set[str]:
    """The hosts that the live card of an owner names."""
    record = store.find(RecordKey(Kind.MODEL, owner))
    return set() if record is None else {urlsplit(file.url).netloc for file in record.card.files}


def wait_until_rewritten(store: Discovery, owner: Owner, server: Server) -> None:
    wait_for(lambda: hosts_of(store, owner) == {urlsplit(server.url).netloc})


def without_paths(value: Any) -> Any:
    """A card as it is apart from where its files are."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items() if name != "path"}
    return [without_paths(each) for each in value] if isinstance(value, list) else value


def test_a_card_names_the_registry_and_is_otherwise_as_it_was(
    server: Server, discovery: str, store: Discovery, tmp_path: Path
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(rewriting(discovery, server)):
        wait_until_rewritten(store, owner, server)
        card = worker.live_card
        assert without_paths(dict(card.content)) == without_paths(dict(worker.card.content))
        origins = {file.url.partition("#origin=")[2] for file in card.files}
        assert all(origin.startswith(worker.files.url) for origin in origins)
        asked = len(worker.files.asked)
        resolver = Resolver(cache=BlobCache(tmp_path / "cache"))
        fetched = resolver.fetch_card(card, to=tmp_path / "model")
        assert {file.filename for file in fetched} == CONTENTS.keys()
        assert len(worker.files.asked) == asked == len(CONTENTS)


def test_a_card_that_is_gone_does_not_come_back(
    server: Server, discovery: str, store: Discovery
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(rewriting(discovery, server)):
        wait_until_rewritten(store, owner, server)
        worker.leave()
        wait_until_released(server, owner)
        assert store.find(RecordKey(Kind.MODEL, owner)) is None


def test_a_card_that_is_published_anew_is_rewritten_again(
    server: Server, discovery: str, store: Discovery
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(rewriting(discovery, server)):
        for _ in range(3):
            wait_until_rewritten(store, owner, server)
            worker.publish()
        wait_until_rewritten(store, owner, server)
        assert len(worker.files.asked) == len(CONTENTS)


def test_an_emptied_registry_is_filled_from_where_the_files_came(
    serve: Callable[..., Server], discovery: str, store: Discovery
) -> None:
    """Also by a mirror that has never seen the card as it was."""
    server = serve()
    owner = owner_of(7)
    with FleetWorker(store, owner):
        with Mirror(rewriting(discovery, server)):
            wait_until_rewritten(store, owner, server)
        port = server.address[1]
        server.kill()
        for path in server.database.parent.glob("registry.db*"):
            path.unlink()
        emptied = serve(port=port)
        with Mirror(rewriting(discovery, emptied)):
            wait_until_held(emptied, owner)
            assert hosts_of(store, owner) == {urlsplit(server.url).netloc}


def test_a_revision_is_registered_under_its_slug_again(
    serve: Callable[..., Server], discovery: str, store: Discovery
) -> None:
    """S17: the card names that slug, whoever comes first to the emptied registry."""
    server = serve()
    old, new = owner_of(1), owner_of(2)
    changed = {**CONTENTS, "config.json": b"{}"}
    slug = revision_slug("org_tiny", [(n, checksum(c)) for n, c in changed.items()])
    with FleetWorker(store, old) as first, FleetWorker(store, new, changed) as second:
        second.leave()
        with Mirror(rewriting(discovery, server)):
            wait_until_rewritten(store, old, server)
            second.publish()
            wait_until_held(server, new, changed, slug)
            wait_until_rewritten(store, new, server)
        port = server.address[1]
        first.leave()
        server.kill()
        for path in server.database.parent.glob("registry.db*"):
            path.unlink()
        emptied = serve(port=port)
        with Mirror(rewriting(discovery, emptied)):
            wait_until_held(emptied, new, changed, slug)


def test_two_mirrors_agree(server: Server, discovery: str, store: Discovery) -> None:
    owners = [owner_of(number) for number in range(1, 5)]
    with Mirror(rewriting(discovery, server)), Mirror(rewriting(discovery, server)):
        workers = [FleetWorker(store, owner) for owner in owners]
        for owner in owners:
            wait_until_rewritten(store, owner, server)
        cards = [worker.live_card for worker in workers]
        for worker in workers:
            worker.publish()
        for owner in owners:
            wait_until_rewritten(store, owner, server)
        assert [worker.live_card for worker in workers] == cards
        for worker in workers:
            worker.files.__exit__(None, None, None)


@pytest.mark.parametrize("point", ["registered", "rewrite", "rewritten"])
def test_a_mirror_that_is_killed_while_it_rewrites_is_made_good_by_the_next(
    server: Server, discovery: str, store: Discovery, point: str
) -> None:
    owner = owner_of(7)
    options = ("--mode", "rewrite")
    with FleetWorker(store, owner) as worker:
        with MirrorProcess(discovery, server.url, *options, program=killed_at(point)) as killed:
            assert killed.process.wait(30) == -signal.SIGKILL
        with Mirror(rewriting(discovery, server)):
            wait_until_rewritten(store, owner, server)
            assert held_by(server, owner) == expected()
            worker.leave()
            wait_until_released(server, owner)


# The card alone


HERE = HereUrls("http://registry:8090")


@pytest.mark.parametrize(
    "origin",
    [
        "http://10.0.0.7:9000/v1/metadata/dynamo/backend/generate/tiny/_base/odd%20name.json",
        "http://10.0.0.7:9000/v1/metadata/tiny/_base/100%25%23.json?a=b&c",
        "/models/tiny/config #1%.json",
    ],
)
def test_where_a_file_came_from_survives_every_rewriting(origin: str) -> None:
    owner = owner_of(7)
    place = {"path": origin, "checksum": checksum(b"{}"), "size": 2}
    record = record_with(owner, {"slug": "tiny", "extra_files": [place]})
    for _ in range(3):
        card = read_card(record, HERE)
        assert card is not None
        assert card.files[0].sources == (origin,)
        urls = {file.filename: HERE.url_of(card.key(file), owner) for file in card.files}
        record = pointed_here(record, urls)
        (url,) = (str(place["path"]) for place in record.card.places)
        assert url.startswith(
            "http://registry:8090/v1/metadata/dynamo/backend/generate/tiny/_base/"
        )
        assert " " not in url
