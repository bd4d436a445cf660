"""A store in which anybody publishes whatever they like: each card that cannot be mirrored is
refused by itself, at a bounded price, and the others are served."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from registry.core.records import Owner
from registry.discovery.file import FileDiscovery
from registry.mirror import Mirror, MirrorSettings
from tests.fileservers import FileServer, Request
from tests.mirrors import (
    CONTENTS,
    FleetWorker,
    folder_url,
    held_by,
    owner_of,
    record_with,
    wait_until_held,
)
from tests.support import Server, checksum, wait_for

CONTENT = b"{}"
SUM = checksum(CONTENT)
FILE_MAX_BYTES = 1 << 20
DEEP = 60


def endless(request: Request) -> None:
    """A body that never ends, as fast as it is taken."""
    request.head(200)
    while True:
        request.send(bytes(64 << 10))
        SENT[0] += 64 << 10


SENT = [0]


def dripping(request: Request) -> None:
    """A byte now and then."""
    request.head(200, Content_Length=100)
    for _ in range(100):
        request.send(b"a")
        time.sleep(0.5)


def silent(request: Request) -> None:
    time.sleep(8)


def squeezed(request: Request) -> None:
    request.head(200, Content_Encoding="gzip", Content_Length=len(request.content))
    request.send(request.content)


def short(request: Request) -> None:
    request.head(200, Content_Length=1)
    request.send(request.content[:1])


def in_a_circle(request: Request) -> None:
    request.head(302, Location=request.handler.path, Content_Length=0)


def elsewhere(where: str) -> Callable[[Request], None]:
    def manner(request: Request) -> None:
        request.head(302, Location=where, Content_Length=0)

    return manner


@dataclass(frozen=True)
class Hostile:
    """A card, given the URL of a file server, and what is said of it."""

    files: Callable[[str], list[Any]]
    says: str
    card: dict[str, Any] = field(default_factory=dict)
    manner: Callable[[Request], None] | None = None


def at(path: object, **fields: object) -> Callable[[str], list[Any]]:
    return lambda base: [{"path": path, "checksum": SUM, "size": 2, **fields}]


def below(path: str, **fields: object) -> Callable[[str], list[Any]]:
    return lambda base: [{"path": base + path, "checksum": SUM, "size": 2, **fields}]


GOOD_PATH = "/v1/metadata/a/b/c/tiny/_base/config.json"


def served(manner: Callable[[Request], None], says: str, **fields: object) -> Hostile:
    return Hostile(below(GOOD_PATH, **fields), says, manner=manner)


TABLE: dict[str, Hostile] = {
    "no files": Hostile(lambda base: [], "names no files"),
    "a path of some host": Hostile(at("/etc/passwd"), "no --local-root"),
    "a file URL": Hostile(at("file:///etc/passwd"), "no --local-root"),
    "another scheme": Hostile(at("ftp://h/v1/metadata/a/_base/b.json"), "no --local-root"),
    "no text": Hostile(at(7), "no path and no URL"),
    "nothing": Hostile(at(""), "no path and no URL"),
    "a line break": Hostile(at("http://h/v1/metadata/s/_base/a\nb"), "no path and no URL"),
    "a long URL": Hostile(at("http://h/v1/metadata/" + "a" * 9000), "no path and no URL"),
    "another path": Hostile(below("/latest/config.json"), "not one of /v1/metadata/"),
    "a way up": Hostile(below("/v1/metadata/../../config.json"), "not one of /v1/metadata/"),
    "a hidden way up": Hostile(below("/v1/metadata/%2e%2e/%2e%2e/a.json"), "/v1/metadata/"),
    "a user": Hostile(at("http://me:pw@127.0.0.1:9" + GOOD_PATH), "a user in it"),
    "no host": Hostile(at("http:///v1/metadata/s/_base/a.json"), "not the URL of a file"),
    "a bad port": Hostile(at("http://h:99999/v1/metadata/s/_base/a.json"), "no URL"),
    "a bad address": Hostile(at("http://[::1/v1/metadata/s/_base/a.json"), "no URL"),
    "nobody there": Hostile(at("http://127.0.0.1:9" + GOOD_PATH), "does not answer"),
    "a slash in the name": Hostile(below("/v1/metadata/s/_base/a%2Fb"), "filename"),
    "a name of dots": Hostile(below("/v1/metadata/s/_base/.."), "filename"),
    "no name": Hostile(below("/v1/metadata/s/_base/"), "filename"),
    "a NUL in the name": Hostile(below("/v1/metadata/s/_base/a%00"), "filename"),
    "a name that is no text": Hostile(below("/v1/metadata/s/_base/%ff"), "no URL"),
    "another checksum": Hostile(below(GOOD_PATH, checksum="sha256:" + "0" * 64), "checksum"),
    "a checksum that is none": Hostile(below(GOOD_PATH, checksum=["x"]), "checksum"),
    "a size below 0": Hostile(below(GOOD_PATH, size=-1), "the size of"),
    "a size of half a byte": Hostile(below(GOOD_PATH, size=0.5), "the size of"),
    "a size of truth": Hostile(below(GOOD_PATH, size=True), "the size of"),
    "a size beyond all": Hostile(below(GOOD_PATH, size=2**64), "the size of"),
    "too large": Hostile(below(GOOD_PATH, size=FILE_MAX_BYTES + 1), "bytes, and at most"),
    "a slug of dots": Hostile(below("/v1/metadata/../config.json"), "slug", {"slug": "../x"}),
    "a slug that is long": Hostile(at("/a/config.json"), "slug", {"slug": "a" * 256}),
    "no name at all": Hostile(at("/a/config.json"), "no letter", {"slug": 7, "display_name": ""}),
    "two of one name": Hostile(
        lambda base: [
            {"path": f"{base}{GOOD_PATH}", "checksum": checksum(bytes([number])), "size": 1}
            for number in range(2)
        ],
        "two files",
    ),
    "too many files": Hostile(
        lambda base: [
            {"path": f"{base}/v1/metadata/s/_base/{number}", "checksum": SUM, "size": 2}
            for number in range(1001)
        ],
        "more than 1000 files",
    ),
    # With more, the store leaves the record out.
    "ninety thousand keys": Hostile(
        lambda base: [], "names no files", {str(number): number for number in range(90_000)}
    ),
    "an endless body": served(endless, "more than", size=None),
    "a longer body": served(endless, "more than 2 bytes"),
    "a shorter body": served(short, "other bytes"),
    "a dripping body": served(dripping, "in time", size=100),
    "a silent host": served(silent, "in time"),
    "a compressed body": served(squeezed, "gzip"),
    "a circle": served(in_a_circle, "sends on and on"),
    "another host behind it": served(
        elsewhere("http://localhost.localdomain" + GOOD_PATH),
        "another host",
    ),
    "another path behind it": served(elsewhere("/latest/meta-data"), "/v1/metadata/"),
    "another scheme behind it": served(elsewhere("file:///etc/passwd"), "not the URL of a file"),
}


@dataclass(frozen=True)
class World:
    server: Server
    mirror: Mirror
    store: FileDiscovery
    hosts: dict[str, FileServer]


def owner_named(name: str) -> Owner:
    return owner_of(1 + list(TABLE).index(name), namespace="hostile")


def _own(file: dict[str, Any], name: str) -> dict[str, Any]:
    """The same with content that no other card names: it could be had from there."""
    return {**file, "checksum": checksum(name.encode())} if file["checksum"] == SUM else file


@pytest.fixture(scope="module")
def world(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A store that has every card of the table in it before a mirror comes."""
    folder = tmp_path_factory.mktemp("hostile") / "kv"
    store = FileDiscovery(folder)
    settings = MirrorSettings(
        folder_url(folder), shared_server.url, file_max_bytes=FILE_MAX_BYTES, linger_s=0.5
    )
    with ExitStack() as stack:
        stack.callback(store.close)
        hosts = {}
        for name, hostile in TABLE.items():
            manners = {} if hostile.manner is None else {"config.json": hostile.manner}
            host = stack.enter_context(FileServer({"config.json": CONTENT}, manners))
            hosts[name] = host
            files = [_own(file, name) for file in hostile.files(host.url)]
            card = {"slug": "tiny", "extra_files": files, **hostile.card}
            store.publish(record_with(owner_named(name), card))
        mirror = stack.enter_context(Mirror(settings))
        yield World(shared_server, mirror, store, hosts)


@pytest.mark.parametrize("name", TABLE)
def test_a_hostile_card_is_refused_for_what_is_wrong_with_it(world: World, name: str) -> None:
    owner = owner_named(name)
    wait_for(lambda: world.mirror.problem_of(owner) is not None, 60)
    problem = world.mirror.problem_of(owner)
    assert problem is not None
    assert TABLE[name].says in problem
    assert held_by(world.server, owner) == {}


def test_the_others_are_mirrored_meanwhile(world: World) -> None:
    owner = owner_of(7)
    with FleetWorker(world.store, owner) as worker:
        wait_until_held(world.server, owner)
        assert all(worker.files.times(name) == 1 for name in CONTENTS)
        worker.leave()


def test_no_more_is_taken_than_a_file_may_have(world: World) -> None:
    wait_for(lambda: world.mirror.problem_of(owner_named("an endless body")) is not None, 60)
    sockets = 16 << 20
    attempts = sum(len(world.hosts[name].asked) for name in ("an endless body", "a longer body"))
    assert SENT[0] <= attempts * (FILE_MAX_BYTES + sockets)


def test_a_host_gets_no_credentials(world: World) -> None:
    assert all(asked.token is None for host in world.hosts.values() for asked in host.asked)


def test_a_mirror_that_finds_nothing_but_hostile_cards_is_well(world: World) -> None:
    wait_for(lambda: world.mirror.report().counts.cards >= len(TABLE), 60)
    assert world.mirror.report().problems == []
    wait_for(lambda: world.mirror.report().counts.failed >= len(TABLE), 60)


# Paths


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONTENT)
    (tmp_path / "secret.json").write_bytes(CONTENT)
    (folder / "out.json").symlink_to(tmp_path / "secret.json")
    (folder / "in.json").symlink_to(folder / "config.json")
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "fifo.json")
    return folder


PATHS = {
    "config.json": None,
    "in.json": None,
    "../models/config.json": None,
    "out.json": "not below a --local-root",
    "../secret.json": "not below a --local-root",
    "folder.json": "cannot be read",
    "fifo.json": "cannot be read",
    "absent.json": "cannot be read",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_opened_only_below_a_local_root(
    shared_server: Server, tmp_path: Path, models: Path, path: str
) -> None:
    store = FileDiscovery(tmp_path / "kv")
    owner = owner_of(900 + list(PATHS).index(path))
    # The registry must not have it from another test.
    content = f"{path} {owner}".encode()
    for each in (models / "config.json", tmp_path / "secret.json"):
        each.write_bytes(content)
    file = {"path": f"{models}/{path}", "checksum": checksum(content), "size": len(content)}
    store.publish(record_with(owner, {"slug": f"paths{owner.instance_id}", "extra_files": [file]}))
    settings = MirrorSettings(
        folder_url(tmp_path / "kv"), shared_server.url, local_roots=(str(models),), linger_s=0.0
    )
    says = PATHS[path]
    with Mirror(settings) as mirror:
        if says is None:
            name = path.rpartition("/")[2]
            wait_for(lambda: f"paths{owner.instance_id}/{name}" in held_by(shared_server, owner))
        else:
            wait_for(lambda: mirror.problem_of(owner) is not None)
            assert says in (mirror.problem_of(owner) or "")
    store.close()
