"""A large fleet on one etcd: followed soon, fetched once, released as one, and held when the store
was emptied."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.discovery import Discovery, model_record, open_discovery
from registry.discovery.record_io import encode_record
from registry.mirror import Mirror, MirrorMode, MirrorSettings
from tests.etcds import Etcd, base64_of
from tests.fileservers import FileServer
from tests.mirrors import CONTENTS, SLUG, card_of, owner_of
from tests.support import Server, wait_for

CARDS = 1000
FOLLOWED_S = 10.0


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as started:
        yield started


@pytest.fixture
def store(etcd: Etcd) -> Iterator[Discovery]:
    opened = open_discovery(etcd.url)
    yield opened
    opened.close()


OWNERS = [owner_of(number) for number in range(1, CARDS + 1)]


def publish_all(etcd: Etcd, files: FileServer) -> None:
    for owner in OWNERS:
        record = model_record(owner, card_of(owner, files.url, CONTENTS))
        etcd.put(str(record.key), encode_record(record))


def withdraw_all(etcd: Etcd) -> None:
    everything = {"key": base64_of("v1/mdc/"), "range_end": base64_of("v1/mdc0")}
    etcd.ask("kv/deleterange", everything)


def active(server: Server) -> int:
    """How many owners hold something."""
    models = server.client.get("/v1/models").json()["models"]
    return sum(each["holders"] for each in models if each["slug"] == SLUG)


@pytest.mark.parametrize("mode", [MirrorMode.COPY, MirrorMode.REWRITE])
def test_a_thousand_cards_are_followed_and_released(
    server: Server, etcd: Etcd, mode: MirrorMode
) -> None:
    with FileServer(CONTENTS) as files:
        publish_all(etcd, files)
        started, worked = time.monotonic(), time.process_time()
        with Mirror(MirrorSettings(etcd.url, server.url, mode=mode, linger_s=1.0)) as mirror:
            wait_for(lambda: mirror.report().counts.mirrored == CARDS, 60)
            # Where others have the machine, what counts is how long this process worked.
            took_s = min(time.monotonic() - started, time.process_time() - worked)
            assert active(server) == CARDS
            assert all(files.times(name) == 1 for name in CONTENTS)
            withdraw_all(etcd)
            wait_for(lambda: mirror.report().counts.cards == 0)
            wait_for(lambda: active(server) == 0, 60)
            assert mirror.report().held_back == 0
        assert took_s < FOLLOWED_S


def test_an_emptied_etcd_releases_nobody(
    server: Server, etcd: Etcd, store: Discovery, tmp_path: Path
) -> None:
    owners = OWNERS[:10]
    with FileServer(CONTENTS) as files:
        for owner in owners:
            store.publish(model_record(owner, card_of(owner, files.url, CONTENTS)))
        settings = MirrorSettings(etcd.url, server.url, linger_s=0.2)
        with Mirror(settings) as mirror:
            wait_for(lambda: mirror.report().counts.mirrored == len(owners))
            store.close()
            etcd.kill()
            etcd.data = tmp_path / "empty"
            etcd.start()
            wait_for(lambda: mirror.report().held_back == len(owners), 60)
            assert active(server) == len(owners)
        with Mirror(settings) as next_one:
            wait_for(lambda: next_one.report().held_back == len(owners))
            assert active(server) == len(owners)
