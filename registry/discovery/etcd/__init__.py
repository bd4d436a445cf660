"""Discovery by etcd, with the keys of NVIDIA Dynamo, over etcd's JSON gateway.

What one store publishes hangs on one lease, which a thread renews every third of its time. Nothing
that is read is believed: values, keys, how many and how large they are, and how long it takes, are
bounded as they are in a directory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from registry.discovery import Change, Kind, Listed, RawChange, Record, RecordKey
from registry.discovery.etcd.follower import C, Follower
from registry.discovery.etcd.gateway import EtcdGateway
from registry.discovery.etcd.listing import EtcdListing
from registry.discovery.etcd.publications import JOB_MAX_S, Publications
from registry.discovery.etcd.settings import EtcdSettings
from registry.discovery.etcd.views import K, RawView, RecordView, UnreadView, V, View
from registry.discovery.etcd.watch_stream import WatchStream
from registry.discovery.keeper import Keeper
from registry.discovery.raw_names import split_name
from registry.discovery.record_io import (
    RecordReader,
    check_size,
    encode_record,
    encode_replacement,
)
from registry.errors import DiscoveryUnavailable
from registry.network.deadline import at_most

TTL_S = 30.0
"""How long records outlive their publisher, as with Dynamo."""

PATIENCE_S = 60.0
"""How long a watch waits for an etcd that is away."""


class EtcdDiscovery:
    """The records of an etcd. For the methods see `Discovery`, `Rewriting` and `RawStore`.

    Args:
        ttl_s: how long what is published here outlives this process; etcd may make it longer.
        patience_s: how long a watch waits for an etcd that is away before it fails.
    """

    def __init__(
        self, settings: EtcdSettings, *, ttl_s: float = TTL_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.liveness_s = ttl_s
        self._gateway = EtcdGateway(settings)
        self._root = settings.prefix.encode()
        self._reader = RecordReader(self._gateway)
        self._listing = EtcdListing(self._gateway, self._reader)
        self._publications = Publications(self._gateway, ttl_s)
        self._keeper = Keeper(
            str(settings), self._publications.renew, ttl_s / 3, "Check that it runs, and the URL."
        )
        self._patience_s = patience_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[WatchStream] = set()

    def publish(self, record: Record) -> None:
        self._publish(str(record.key), encode_record(record))

    def withdraw(self, key: RecordKey) -> None:
        self._withdraw(str(key))

    def find(self, key: RecordKey) -> Record | None:
        return self._find(key)[0]

    def list(self, kind: Kind) -> list[Record]:
        return list(self.scan(kind))

    def scan(self, kind: Kind) -> Iterator[Record]:
        listed = self._listing.list(UnreadView(kind, self._root, self._reader)).values
        for key in sorted(listed, key=lambda key: key.name):
            record = self._reader.find_record(key, str(key), listed.pop(key)[0])
            if record is not None:
                yield record

    def watch(self, kind: Kind) -> Iterator[Change | Listed]:
        """As of every store. An etcd that is away is waited for, for a minute."""
        return self._follow(self._records(kind), Change)

    def replace(self, old: Record, new: Record) -> bool:
        content = encode_replacement(old, new)
        key = self._key_of(str(old.key))

        def swap() -> bool:
            with at_most(JOB_MAX_S):
                found, revision = self._find(old.key)
                if found is None or found.content != old.content:
                    return False
                if self._publications.replace(key, revision, content):
                    return True
                # It may have been done by an attempt whose answer was lost.
                stored = self._listing.find(key)
                return stored is not None and stored.value == content

        return self._keeper.do(swap)

    def list_raw(self) -> dict[str, bytes]:
        listed = self._listing.list(RawView(self._root, self._reader)).values
        return {name: content for name, (content, _) in sorted(listed.items())}

    def watch_raw(self) -> Iterator[RawChange | Listed]:
        return self._follow(RawView(self._root, self._reader), RawChange)

    def publish_raw(self, name: str, content: bytes) -> None:
        split_name(name)
        check_size(name, content)
        self._publish(name, content)

    def withdraw_raw(self, name: str) -> None:
        split_name(name)
        self._withdraw(name)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.interrupt()
        self._keeper.close()
        self._gateway.close()

    def _key_of(self, name: str) -> bytes:
        return self._root + name.encode()

    def _records(self, kind: Kind) -> RecordView:
        return RecordView(kind, self._root, self._reader)

    def _publish(self, name: str, content: bytes) -> None:
        def write() -> None:
            if self._closed.is_set():
                raise DiscoveryUnavailable(f"{self._gateway} was closed; {name} is not there.")
            self._publications.put(self._key_of(name), content)

        self._keeper.do(write)

    def _withdraw(self, name: str) -> None:
        self._keeper.do(partial(self._publications.delete, self._key_of(name)))

    def _find(self, key: RecordKey) -> tuple[Record | None, int]:
        """The record that stands there, and since which revision."""
        stored = self._listing.find(self._key_of(str(key)))
        if stored is None:
            return None, 0
        return self._reader.find_record(key, str(key), stored.value), stored.mod_revision

    def _follow(
        self, view: View[K, V], change: Callable[[K, V | None, bool], C]
    ) -> Iterator[C | Listed]:
        follower = Follower(
            view, change, self._listing, self._watch, self._closed, self._patience_s
        )
        return follower.changes()

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
