"""Discovery by etcd, with the keys of NVIDIA Dynamo, over etcd's JSON gateway.

What one store publishes hangs on one lease, which a thread renews every third of its time. Nothing
that is read is believed: values, keys, how many and how large they are, and how long it takes, are
bounded as they are in a directory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from registry.discovery import Change, Kind, Record, RecordKey
from registry.discovery.etcd.follower import Follower
from registry.discovery.etcd.gateway import EtcdGateway
from registry.discovery.etcd.listing import EtcdListing
from registry.discovery.etcd.publications import Publications
from registry.discovery.etcd.settings import EtcdSettings
from registry.discovery.etcd.watch_stream import WatchStream
from registry.discovery.keeper import Keeper
from registry.discovery.record_io import encode_record, name_of
from registry.errors import DiscoveryUnavailable

TTL_S = 30.0
"""How long records outlive their publisher, as with Dynamo."""

PATIENCE_S = 60.0
"""How long a watch waits for an etcd that is away."""


class EtcdDiscovery:
    """The records of an etcd. For the methods see `Discovery`.

    Args:
        ttl_s: how long what is published here outlives this process; etcd may make it longer.
        patience_s: how long a watch waits for an etcd that is away before it fails.
    """

    def __init__(
        self, settings: EtcdSettings, *, ttl_s: float = TTL_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._gateway = EtcdGateway(settings)
        self._listing = EtcdListing(self._gateway, settings.prefix)
        self._publications = Publications(self._gateway, ttl_s)
        self._keeper = Keeper(
            str(settings), self._publications.renew, ttl_s / 3, "Check that it runs, and the URL."
        )
        self._patience_s = patience_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[WatchStream] = set()

    def publish(self, record: Record) -> None:
        key, content = self._listing.key_of(record.key), encode_record(record)

        def write() -> None:
            if self._closed.is_set():
                raise DiscoveryUnavailable(
                    f"{self._gateway} was closed; {record.key} is not there."
                )
            self._publications.put(key, content)

        self._keeper.do(write)

    def withdraw(self, key: RecordKey) -> None:
        self._keeper.do(partial(self._publications.delete, self._listing.key_of(key)))

    def find(self, key: RecordKey) -> Record | None:
        return self._listing.find(key)

    def list(self, kind: Kind) -> list[Record]:
        return sorted((each for each, _ in self._listing.list(kind).records.values()), key=name_of)

    def watch(self, kind: Kind) -> Iterator[Change]:
        """As of every store. An etcd that is away is waited for, for a minute."""
        follower = Follower(kind, self._listing, self._watch, self._closed, self._patience_s)
        return follower.changes()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.interrupt()
        self._keeper.close()
        self._gateway.close()

    @contextmanager
    def _watch(self, request: dict[str, object]) -> Iterator[WatchStream]:
        with self._gateway.stream("watch", request) as response:
            stream = WatchStream(response)
            with self._lock:
                self._streams.add(stream)
            try:
                if self._closed.is_set():
                    stream.interrupt()
                yield stream
            finally:
                with self._lock:
                    self._streams.discard(stream)
