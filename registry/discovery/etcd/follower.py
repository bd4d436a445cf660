"""Following what a view has: nothing is lost, and no silence is believed.

Everything is listed at one revision of etcd, and what changed after it is watched. A watch that
broke off goes on at the revision where it was. When etcd has forgotten that revision, or was
restored from older data, everything is listed again, and what differs is told.

A watch in which nothing happens looks like one whose etcd is frozen, has lost its leader, or is
behind a connection that nobody ended. So after each silence etcd is asked something else, which
only one with a leader answers, and then the watch is made anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from registry.discovery import Listed
from registry.discovery.etcd.failures import (
    UNAUTHENTICATED,
    UNAVAILABLE,
    EndpointFailed,
    EtcdRefusal,
    TooMuchAnswered,
)
from registry.discovery.etcd.listing import EtcdListing
from registry.discovery.etcd.messages import (
    EtcdHeader,
    GatewayError,
    WatchEvent,
    WatchResult,
    base64_of,
    end_of,
)
from registry.discovery.etcd.views import K, V, View
from registry.discovery.etcd.watch_stream import WatchStream
from registry.discovery.outage import PAUSE_MIN_S, Outage
from registry.discovery.record_io import LISTING_MAX_BYTES, LISTING_MAX_NAMES
from registry.errors import DiscoveryUnavailable

SILENCE_MAX_S = 10.0
CREATED_MAX_S = 4.0

log = logging.getLogger("registry.discovery")

C = TypeVar("C")
OpenWatch = Callable[[dict[str, object]], AbstractContextManager[WatchStream]]


class _ListAgain(Exception):
    """What was seen is no base for what comes."""


class Follower(Generic[K, V, C]):
    """Follows what a view has for one caller.

    Args:
        change: makes what the caller is told: of a key, the value that is there now or None, and
            whether that was found by listing again.
        open_watch: opens a watch for a request.
        closed: set when nobody wants to know any more.
        patience_s: how long etcd may be away before the caller is told.
    """

    def __init__(
        self,
        view: View[K, V],
        change: Callable[[K, V | None, bool], C],
        listing: EtcdListing,
        open_watch: OpenWatch,
        closed: threading.Event,
        patience_s: float,
    ) -> None:
        self._view = view
        self._change = change
        self._listing = listing
        self._open_watch = open_watch
        self._closed = closed
        self._outage = Outage(closed, patience_s)
        self._known: dict[K, tuple[V, int]] = {}
        self._size = 0
        self._seen = EtcdHeader()
        self._next_revision = 0
        self._event_revision = 0

    def changes(self) -> Iterator[C | Listed]:
        """What is there, then `Listed`, then each change, until the store is closed.

        Raises:
            DiscoveryUnavailable: etcd is away for longer than the patience.
        """
        try:
            yield from self._list(again=False)
        except DiscoveryUnavailable:
            if self._closed.is_set():
                return
            raise
        must_list = False
        while not self._closed.is_set():
            try:
                if must_list:
                    yield from self._list(again=True)
                    must_list = False
                yield from self._watch()
            except _ListAgain as reason:
                log.info("everything is listed again: %s", reason)
                must_list = True
                self._closed.wait(PAUSE_MIN_S)
            except DiscoveryUnavailable as error:
                self._outage.note(error)

    def _list(self, *, again: bool) -> list[C | Listed]:
        """What is there now and was not known, or was otherwise, or is there no more."""
        snapshot = self._listing.list(self._view)
        before, now = self._known, snapshot.values
        self._known, self._size = now, sum(size for _, size in now.values())
        self._seen = snapshot.header
        self._next_revision = snapshot.header.revision + 1
        self._event_revision = snapshot.header.revision
        gone = [self._change(key, None, again) for key in before if key not in now]
        news = [
            self._change(key, value, again)
            for key, (value, _) in now.items()
            if key not in before or before[key][0] != value
        ]
        return [*gone, *news, Listed()]

    def _watch(self) -> Iterator[C]:
        """Each change, until there is a silence.

        Raises:
            DiscoveryUnavailable: the watch broke off, or is not begun, because etcd has no leader.
        """
        prefix = self._view.prefix
        self._check_history(self._listing.look(prefix))
        request: dict[str, object] = {
            "key": base64_of(prefix),
            "range_end": base64_of(end_of(prefix)),
            "start_revision": str(self._next_revision),
            "fragment": True,
        }
        with self._open_watch({"create_request": request}) as stream:
            self._begin(_next(stream, CREATED_MAX_S))
            self._outage.end()
            while (message := _next(stream, SILENCE_MAX_S)) is not None:
                yield from self._take(message)

    def _begin(self, message: WatchResult | None) -> None:
        if message is None:
            raise EndpointFailed("it does not answer in time")
        _check(message)
        if not message.created:
            raise EndpointFailed("its watch tells what no etcd does")
        self._check_history(message.header)

    def _check_history(self, header: EtcdHeader) -> None:
        # A watch from a revision that is yet to come would be silent until it comes.
        if not header.follows(self._seen):
            raise _ListAgain("etcd was restored from older data")

    def _take(self, message: WatchResult) -> Iterator[C]:
        """What a message changes. What came before a watch broke off comes again."""
        _check(message)
        for event in message.events:
            if event.kv.mod_revision >= self._event_revision:
                self._event_revision = event.kv.mod_revision
                change = self._apply(event)
                if change is not None:
                    yield change
        if message.events and not message.fragment:
            self._next_revision = self._event_revision + 1
        if message.header.revision > self._seen.revision:
            self._seen = message.header
        # What was told before is known to the caller; the listing says what to do about it.
        if len(self._known) > LISTING_MAX_NAMES or self._size > LISTING_MAX_BYTES:
            raise _ListAgain("there are more than can be held")

    def _apply(self, event: WatchEvent) -> C | None:
        key = self._view.find_key(event.kv.key)
        if key is None:
            return None
        is_there = event.type != "DELETE"
        value = self._view.find_value(key, event.kv.value) if is_there else None
        before, size = self._known.pop(key, (None, 0))
        self._size -= size
        if value is not None:
            self._known[key] = value, len(event.kv.value)
            self._size += len(event.kv.value)
        return None if before == value else self._change(key, value, False)


def _next(stream: WatchStream, within_s: float) -> WatchResult | None:
    try:
        return stream.find_next(within_s)
    except TooMuchAnswered as error:
        raise _ListAgain(str(error)) from None


def _check(message: WatchResult) -> None:
    """Raise what it means when etcd ends a watch."""
    if message.compact_revision:
        raise _ListAgain("etcd has been compacted")
    if message.canceled:
        reason = message.cancel_reason
        # Some versions say that a token has expired, others that its user has no rights.
        is_denied = "ermission" in reason or "auth" in reason
        code = UNAUTHENTICATED if is_denied else UNAVAILABLE
        raise EtcdRefusal(GatewayError(code, message=reason or "the watch was ended"))
