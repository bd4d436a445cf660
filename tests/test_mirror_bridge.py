"""A mirror as a bridge: workers publish in one store, frontends read another, whose cards name the
registry."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.client import Worker
from registry.core.records import Owner
from registry.discovery import Kind, RawStore, RecordKey, open_discovery
from registry.mirror import Mirror, MirrorMode, MirrorSettings
from tests.etcds import Etcd
from tests.fileservers import Request
from tests.mirrors import (
    FleetWorker,
    MirrorProcess,
    folder_url,
    killed_at,
    owner_of,
    wait_until_held,
    wait_until_released,
)
from tests.models import make_model
from tests.support import Server, wait_for

CHANNEL = "v1/event_channels/namespace/dynamo/component/backend/topic/kv/1a"
OTHER_CHANNEL = "v1/event_channels/namespace/other/component/backend/topic/kv/1a"
INSTANCE = "v1/instances/dynamo/backend/generate/7"


@dataclass(frozen=True)
class Stores:
    """The store of the workers and the one of the frontends, with their URLs."""

    near: RawStore
    far: RawStore
    near_url: str
    far_url: str


def opened(url: str) -> RawStore:
    store = open_discovery(url)
    assert isinstance(store, RawStore)
    return store


@pytest.fixture(params=["files", "one etcd", "files to etcd"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    near, far = folder_url(tmp_path / "near"), folder_url(tmp_path / "far")
    if request.param == "files":
        made = Stores(opened(near), opened(far), near, far)
        yield made
    else:
        with Etcd(tmp_path / "etcd") as etcd:
            near = near if request.param == "files to etcd" else f"{etcd.url}/workers/"
            made = Stores(opened(near), opened(etcd.url), near, etcd.url)
            yield made
    made.near.close()
    made.far.close()


def bridging(stores: Stores, server: Server, **fields: object) -> MirrorSettings:
    given = {"linger_s": 0.5, "mode": MirrorMode.BRIDGE, "to": stores.far_url, **fields}
    return MirrorSettings(stores.near_url, server.url, **given)  # type: ignore[arg-type]


def far_hosts(stores: Stores, owner: Owner) -> set[str]:
    """The hosts that the card of an owner names for frontends."""
    record = stores.far.find(RecordKey(Kind.MODEL, owner))
    return set() if record is None else {urlsplit(file.url).netloc for file in record.card.files}


def wait_until_passed(stores: Stores, owner: Owner, server: Server) -> None:
    wait_for(lambda: far_hosts(stores, owner) == {urlsplit(server.url).netloc})


def test_everything_is_passed_on_and_only_cards_are_changed(server: Server, stores: Stores) -> None:
    owner = owner_of(7)
    stores.near.publish_raw(CHANNEL, b'{"any": "thing"}')
    with FleetWorker(stores.near, owner) as worker, Mirror(bridging(stores, server)):
        wait_until_passed(stores, owner, server)
        wait_until_held(server, owner)
        stores.near.publish_raw(INSTANCE, b'{"type": "Endpoint"}')
        wait_for(lambda: INSTANCE in stores.far.list_raw())
        assert stores.far.list_raw()[CHANNEL] == b'{"any": "thing"}'
        stores.near.publish_raw(CHANNEL, b'{"another": "thing"}')
        wait_for(lambda: stores.far.list_raw()[CHANNEL] == b'{"another": "thing"}')
        assert {urlsplit(file.url).netloc for file in worker.live_card.files} == {
            urlsplit(worker.files.url).netloc
        }
        worker.leave()
        stores.near.withdraw_raw(CHANNEL)
        stores.near.withdraw_raw(INSTANCE)
        wait_for(lambda: stores.far.list_raw() == {})
        wait_until_released(server, owner)


def test_a_card_is_passed_on_when_its_files_are_held_and_not_before(
    server: Server, stores: Stores
) -> None:
    owner, other = owner_of(7), owner_of(8)

    def absent(request: Request) -> None:
        request.head(404, Content_Length=0)

    contents = {"only.json": b"only here"}
    with (
        FleetWorker(stores.near, owner, contents, {"only.json": absent}) as worker,
        FleetWorker(stores.near, other),
        Mirror(bridging(stores, server)) as mirror,
    ):
        wait_until_passed(stores, other, server)
        wait_for(lambda: mirror.problem_of(owner) is not None)
        assert far_hosts(stores, owner) == set()
        worker.files.manners.clear()
        wait_until_passed(stores, owner, server)


def test_a_card_of_a_worker_of_the_registry_is_passed_on_as_it_is(
    server: Server, stores: Stores, tmp_path: Path
) -> None:
    owner = owner_of(7)
    with (
        Worker(server.url, owner, discovery=stores.near) as worker,
        Mirror(bridging(stores, server)),
    ):
        card = worker.attach(make_model(tmp_path / "model"), name="Org/Tiny")
        wait_until_passed(stores, owner, server)
        record = stores.far.find(RecordKey(Kind.MODEL, owner))
        assert record is not None
        assert record.card == card
        worker.detach()
        wait_for(lambda: far_hosts(stores, owner) == set())


def test_what_a_bridge_passed_on_is_taken_over_by_the_next(server: Server, stores: Stores) -> None:
    """Within the time that records outlive their publisher nobody sees the change; what left
    meanwhile is gone when that is over."""
    owner = owner_of(7)
    stores.near.publish_raw(CHANNEL, b"{}")
    with FleetWorker(stores.near, owner):
        with Mirror(bridging(stores, server)):
            wait_until_passed(stores, owner, server)
        assert far_hosts(stores, owner) == {urlsplit(server.url).netloc}
        with Mirror(bridging(stores, server)):
            wait_until_passed(stores, owner, server)
            wait_for(lambda: CHANNEL in stores.far.list_raw())


@pytest.mark.parametrize("point", ["publish", "published", "withdrawn"])
def test_a_bridge_that_is_killed_is_made_good_by_the_next(
    server: Server, stores: Stores, point: str
) -> None:
    owner = owner_of(7)
    options = ("--mode", "bridge", "--to", stores.far_url, "--linger-s", 0)
    with FleetWorker(stores.near, owner) as worker:
        program = killed_at(point)
        with MirrorProcess(stores.near_url, server.url, *options, program=program) as killed:
            if point == "withdrawn":
                wait_until_passed(stores, owner, server)
                worker.leave()
            assert killed.process.wait(30) == -signal.SIGKILL
        worker.publish()
        with Mirror(bridging(stores, server)) as mirror:
            wait_for(lambda: mirror.report().counts.passed_on == 1)
            assert far_hosts(stores, owner) == {urlsplit(server.url).netloc}
            worker.leave()
            wait_for(lambda: far_hosts(stores, owner) == set())
            wait_until_released(server, owner)


def test_only_what_is_of_the_namespaces_is_passed_on(server: Server, stores: Stores) -> None:
    mine, other = owner_of(7), owner_of(8, namespace="other")
    for name in (CHANNEL, OTHER_CHANNEL, INSTANCE):
        stores.near.publish_raw(name, b"{}")
    settings = bridging(stores, server, namespaces=("dynamo",))
    with FleetWorker(stores.near, mine), FleetWorker(stores.near, other), Mirror(settings):
        wait_until_passed(stores, mine, server)
        wait_for(lambda: {CHANNEL, INSTANCE} <= stores.far.list_raw().keys())
        assert len(stores.far.list_raw()) == 3
