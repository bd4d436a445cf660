"""Reading an etcd: all that a view has, at one revision, page by page, within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic

from registry.core.text import shown
from registry.discovery.etcd.failures import OUT_OF_RANGE, EtcdRefusal, TooMuchAnswered
from registry.discovery.etcd.gateway import EtcdGateway
from registry.discovery.etcd.messages import (
    EtcdHeader,
    RangeAnswer,
    StoredValue,
    base64_of,
    end_of,
)
from registry.discovery.etcd.views import K, V, View
from registry.discovery.record_io import LISTING_MAX_BYTES, LISTING_MAX_NAMES, RecordReader
from registry.errors import DiscoveryUnavailable
from registry.network.deadline import at_most

PAGE_KEYS = 2000
PAGE_MAX_BYTES = 16 << 20
"""A page that would be larger is asked for again with fewer keys. One record has its place."""

LISTING_MAX_S = 9.0
LISTING_TRIES = 3


@dataclass(slots=True)
class Snapshot(Generic[K, V]):
    """What was there at one revision: each value with the number of its bytes, by key."""

    header: EtcdHeader = field(default_factory=EtcdHeader)
    values: dict[K, tuple[V, int]] = field(default_factory=dict)


class _Compacted(Exception):
    """The revision that was being read is not there any more."""


class EtcdListing:
    """Reads an etcd.

    Args:
        reader: names in the log what is left out.
    """

    def __init__(self, gateway: EtcdGateway, reader: RecordReader) -> None:
        self._gateway = gateway
        self._reader = reader

    def find(self, stored: bytes) -> StoredValue | None:
        """What stands under a key."""
        try:
            answer = self._page({"key": base64_of(stored)})
        except TooMuchAnswered as error:
            self._reader.leave_out(stored.decode("utf-8", "backslashreplace"), str(error))
            return None
        return next((kv for kv in answer.kvs if kv.key == stored), None)

    def list(self, view: View[K, V]) -> Snapshot[K, V]:
        """Everything that a view takes, in the order of the keys.

        Raises:
            DiscoveryUnavailable: etcd cannot be used, or holds more than can be read.
        """
        with at_most(LISTING_MAX_S):
            for _ in range(LISTING_TRIES):
                try:
                    return self._list_once(view)
                except _Compacted:
                    continue
        raise DiscoveryUnavailable(
            f"{self._gateway} is compacted faster than it can be listed. Compact it less often."
        )

    def look(self, prefix: bytes) -> EtcdHeader:
        """How far etcd has come, which only one that has a leader can tell."""
        body = {"key": base64_of(prefix), "keys_only": True, "limit": 1}
        return self._gateway.call("kv/range", body, RangeAnswer).header

    def _list_once(self, view: View[K, V]) -> Snapshot[K, V]:
        snapshot: Snapshot[K, V] = Snapshot()
        names = size = 0
        for answer in self._pages(view.prefix):
            if not names:
                snapshot.header = answer.header
            names += len(answer.kvs)
            size += sum(len(kv.value) for kv in answer.kvs)
            self._check_bounds(max(names, answer.count if names == len(answer.kvs) else 0), size)
            for kv in answer.kvs:
                key = view.find_key(kv.key)
                value = None if key is None else view.find_value(key, kv.value)
                if key is not None and value is not None:
                    snapshot.values[key] = value, len(kv.value)
        return snapshot

    def _check_bounds(self, names: int, size: int) -> None:
        if names > LISTING_MAX_NAMES:
            too_much = f"more than {LISTING_MAX_NAMES} keys"
        elif size > LISTING_MAX_BYTES:
            too_much = f"more than {LISTING_MAX_BYTES >> 20} MiB of records"
        else:
            return
        raise DiscoveryUnavailable(f"{self._gateway} holds {too_much}. Remove what is no record.")

    def _pages(self, start: bytes) -> Iterator[RangeAnswer]:
        """Everything that begins with a prefix, at the revision of the first page."""
        end, limit, revision = base64_of(end_of(start)), PAGE_KEYS, 0
        while True:
            body = {"key": base64_of(start), "range_end": end, "revision": revision, "limit": limit}
            try:
                answer = self._page(body)
            except TooMuchAnswered as error:
                if limit > 1:
                    limit = max(1, limit // 16)
                    continue
                # One value alone is too large.
                answer = self._gateway.call("kv/range", body | {"keys_only": True}, RangeAnswer)
                for kv in answer.kvs:
                    self._reader.leave_out(kv.key.decode("utf-8", "backslashreplace"), str(error))
                answer = RangeAnswer(
                    answer.header,
                    [StoredValue(kv.key) for kv in answer.kvs],
                    answer.more,
                    answer.count,
                )
            yield answer
            if not answer.more or not answer.kvs:
                return
            if answer.kvs[-1].key < start:
                raise DiscoveryUnavailable(
                    f"{self._gateway} lists {shown(answer.kvs[-1].key)} twice. What answers there "
                    "is no etcd."
                )
            start, limit = answer.kvs[-1].key + b"\0", min(2 * limit, PAGE_KEYS)
            revision = revision or answer.header.revision

    def _page(self, body: dict[str, object]) -> RangeAnswer:
        try:
            return self._gateway.ask("kv/range", body, RangeAnswer, page_max_bytes=PAGE_MAX_BYTES)
        except EtcdRefusal as refusal:
            if refusal.grpc_code == OUT_OF_RANGE and body.get("revision"):
                raise _Compacted from None
            raise self._gateway.refused(refusal) from None
