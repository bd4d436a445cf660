"""What tests of the comparison with discovery share: stores whose dead are soon gone, processes
that look often, and cards."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import registry.discovery.etcd as etcd_store
import registry.discovery.file as file_store
from registry.core.records import ArtifactKey, Owner
from registry.discovery import Discovery, Kind, Record, RecordKey, model_record, open_discovery
from registry.discovery.cards import CardFile, make_card
from registry.service import discovery_audit
from tests.support import Server, checksum

CONFIG = ArtifactKey("org_tiny", "_base", "config.json")
CONTENT = b"{}"

LIVENESS_S = 2.0
LOOK_EVERY_S = 0.2

_HURRY = f"""
import registry.discovery.etcd, registry.discovery.file
from registry.service import discovery_audit, discovery_watch

for store in (registry.discovery.file.FileDiscovery, registry.discovery.etcd.EtcdDiscovery):
    store.__init__.__kwdefaults__["ttl_s"] = {LIVENESS_S}
discovery_watch.LOOK_EVERY_S = discovery_watch.LEADS_EVERY_S = {LOOK_EVERY_S}
discovery_watch.PART_OF_TIME = 2
registry.discovery.etcd.gateway.ATTEMPT_MAX_S = 0.5
registry.discovery.etcd.gateway.CALL_MAX_S = 1.0
discovery_audit.ADOPTED_WITHIN_S = {LIVENESS_S}
discovery_audit.LINGER_S = {2 * LIVENESS_S}
"""


def hurrying(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process, until the test is over, and those that it starts, take the dead for gone
    soon and look often."""
    for store in (file_store.FileDiscovery, etcd_store.EtcdDiscovery):
        monkeypatch.setitem(store.__init__.__kwdefaults__ or {}, "ttl_s", LIVENESS_S)
    monkeypatch.setattr(discovery_audit, "ADOPTED_WITHIN_S", LIVENESS_S)
    monkeypatch.setattr(discovery_audit, "LINGER_S", 2 * LIVENESS_S)
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HURRY)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def url_of(base: str, key: ArtifactKey, owner: Owner | None = None) -> str:
    """Where a registry serves a file, for an endpoint or for all."""
    endpoint = "" if owner is None else f"{owner.namespace}/{owner.component}/{owner.endpoint}/"
    return f"{base}/v1/metadata/{endpoint}{key}"


def card_record(
    owner: Owner, name: str, files: Sequence[tuple[str, bytes | str]], **fields: Any
) -> Record:
    """The record of a model whose files are at URLs: each with its content or its checksum."""
    named = [
        CardFile(url, content if isinstance(content, str) else checksum(content), 1)
        for url, content in files
    ]
    return model_record(owner, make_card(name, named, fields=fields))


def counts(server: Server, **parameters: str) -> dict[str, int] | None:
    """What the service says of its comparison, by class; None: it has none yet."""
    answer = server.client.get("/v1/audit", params={"discovery": "true", **parameters})
    if answer.status_code == 503:
        assert answer.json()["code"] == "discovery_unavailable"
        return None
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["counts"])


def worker(number: int, namespace: str = "dynamo") -> Owner:
    return Owner(namespace, "backend", "generate", number)


def attached(server: Server, store: Discovery, owner: Owner, **terms: Any) -> None:
    """A worker as it should be: it registers, then it publishes."""
    answer = server.register_copies(owner, {CONFIG: CONTENT}, **terms)
    assert answer.status_code == 200, answer.text
    store.publish(card_record(owner, "Org/Tiny", [(url_of(server.url, CONFIG, owner), CONTENT)]))


class ComingAndGoing:
    """Workers that attach and detach at random for some seconds, in the order that they should
    (S8)."""

    THREADS = 4

    def __init__(self, server: Server, url: str, *, workers: int, seconds: float) -> None:
        self.errors: list[BaseException] = []
        self.attached = 0
        self._server = server
        self._url = url
        self._workers = workers
        self._until = time.monotonic() + seconds
        self._threads = [
            threading.Thread(target=self._work, args=(first,)) for first in range(self.THREADS)
        ]

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._until and not self.errors

    def __enter__(self) -> ComingAndGoing:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._until = 0.0 if self.errors else self._until
        for each in self._threads:
            each.join()

    def _work(self, first: int) -> None:
        rng, store = random.Random(first), open_discovery(self._url)
        live: set[Owner] = set()
        try:
            while self.is_on:
                owner = worker(rng.randrange(first, self._workers, self.THREADS) + 1)
                if owner in live:
                    self._detach(store, owner)
                    live.discard(owner)
                else:
                    attached(self._server, store, owner)
                    live.add(owner)
                    self.attached += 1
                time.sleep(rng.random() * 0.02)
            for owner in live:
                self._detach(store, owner)
        except BaseException as error:
            self.errors.append(error)
        finally:
            store.close()

    def _detach(self, store: Discovery, owner: Owner) -> None:
        store.withdraw(RecordKey(Kind.MODEL, owner))
        assert self._server.unregister(owner).status_code == 200
