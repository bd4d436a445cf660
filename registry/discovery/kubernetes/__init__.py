"""Discovery by Kubernetes, as NVIDIA Dynamo does it: only read.

A worker writes its records into an object of its own, a `DynamoWorkerMetadata`; they are live while
its pod is in an EndpointSlice as ready. Workers write their whole object anew whenever something
changes, so whatever another wrote there would not stay.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue

from registry.discovery import Change, Kind, Listed, Record, RecordKey
from registry.discovery.kubernetes.api import (
    ANSWER_MAX_S,
    SLICES,
    WORKERS,
    KubernetesApi,
    ObjectKind,
)
from registry.discovery.kubernetes.feed import AllObjects, Feed, News
from registry.discovery.kubernetes.joining import Join
from registry.discovery.kubernetes.settings import KubernetesSettings
from registry.discovery.record_io import RecordReader, name_of
from registry.errors import DiscoveryUnavailable

PATIENCE_S = 60.0
"""How long a watch waits for an API server that is away."""

NEWS_MAX = 64
"""How many changes wait for whoever follows; then the API server waits."""

CLOSED_WITHIN_S = 0.5

PROBE_S = 30.0
"""How long a pod that is dead stays ready: three readiness probes, of 10 s each as they come."""


class KubernetesDiscovery:
    """The records of a namespace. For the methods see `Discovery`; those that write raise
    DiscoveryUnavailable. It is no `Rewriting`: a worker would undo it."""

    def __init__(self, settings: KubernetesSettings, *, patience_s: float = PATIENCE_S) -> None:
        self.liveness_s = PROBE_S
        self._api = KubernetesApi(settings)
        self._reader = RecordReader(self._api)
        self._patience_s = patience_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._following: set[_Following] = set()

    def publish(self, record: Record) -> None:
        raise self._read_only(f"{record.key} is not published")

    def withdraw(self, key: RecordKey) -> None:
        raise self._read_only(f"{key} is not withdrawn")

    def find(self, key: RecordKey) -> Record | None:
        return next((each for each in self.list(key.kind) if each.key == key), None)

    def scan(self, kind: Kind) -> Iterator[Record]:
        """As of every store. Objects have several records each, and are read as a whole."""
        return iter(self.list(kind))

    def list(self, kind: Kind) -> list[Record]:
        join = Join(kind, self._reader)
        for objects in (SLICES, WORKERS):
            join.replace(objects, self._api.list(objects).objects)
        return sorted(join.live().values(), key=name_of)

    def watch(self, kind: Kind) -> Iterator[Change | Listed]:
        """As of every store. An API server that is away is waited for, for a minute."""
        following = _Following(self._api, Join(kind, self._reader), self._patience_s)
        with self._lock:
            self._following.add(following)
        try:
            if not self._closed.is_set():
                yield from following.changes()
        finally:
            following.close()
            with self._lock:
                self._following.discard(following)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            following = list(self._following)
        for each in following:
            each.close()
        self._api.close()

    def _read_only(self, what: str) -> DiscoveryUnavailable:
        return DiscoveryUnavailable(
            f"{what}: {self._api} is only read. Workers publish there themselves; a mirror copies "
            "(--mode copy)."
        )


class _Following:
    """Two feeds and what follows from both, for one caller."""

    def __init__(self, api: KubernetesApi, join: Join, patience_s: float) -> None:
        self._join = join
        self._closed = threading.Event()
        self._news: Queue[News | None] = Queue(NEWS_MAX)
        self._feeds = [
            Feed(kind, api, self._tell, self._closed, patience_s) for kind in (SLICES, WORKERS)
        ]
        self._threads = [
            threading.Thread(target=feed.run, name="registry-kubernetes", daemon=True)
            for feed in self._feeds
        ]
        self._known: dict[RecordKey, Record] = {}

    def changes(self) -> Iterator[Change | Listed]:
        for thread in self._threads:
            thread.start()
        listed: set[ObjectKind] = set()
        is_behind = is_told = False
        while (news := self._next()) is not None:
            is_listing = isinstance(news, AllObjects)
            if is_listing and is_behind and is_told:
                yield from self._differences(relisted=False)
            self._apply(news)
            is_behind = True
            if isinstance(news, AllObjects):
                listed.add(news.kind)
            if len(listed) < len(self._feeds) or not (is_listing or self._news.empty()):
                continue
            yield from self._differences(relisted=is_listing and is_told)
            is_behind = False
            if is_listing:
                is_told = True
                yield Listed()

    def close(self) -> None:
        """Tell nothing any more, whoever waits. What is being asked is waited for, since the
        connections may be closed then."""
        self._closed.set()
        for feed in self._feeds:
            feed.interrupt()
        with suppress(Full):
            self._news.put_nowait(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(ANSWER_MAX_S)

    def _differences(self, *, relisted: bool) -> Iterator[Change]:
        before, self._known = self._known, self._join.live()
        now = self._known
        for key in before.keys() - now.keys():
            yield Change(key, None, relisted)
        for key, record in sorted(now.items(), key=lambda item: item[0].name):
            if before.get(key) != record:
                yield Change(key, record, relisted)

    def _apply(self, news: News) -> None:
        if isinstance(news, DiscoveryUnavailable):
            raise news
        if isinstance(news, AllObjects):
            self._join.replace(news.kind, news.objects)
        elif news.is_gone:
            self._join.remove(news.kind, news.content)
        else:
            self._join.put(news.kind, news.content)

    def _tell(self, news: News) -> None:
        while not self._closed.is_set():
            try:
                self._news.put(news, timeout=CLOSED_WITHIN_S)
                return
            except Full:
                continue

    def _next(self) -> News | None:
        while not self._closed.is_set():
            try:
                return self._news.get(timeout=CLOSED_WITHIN_S)
            except Empty:
                continue
        return None
