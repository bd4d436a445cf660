"""Following the objects of one kind, in a thread: nothing is lost, and no silence is believed.

All objects are listed, and what changed since that version is watched. A watch that ended goes on
at the version where it was, which bookmarks keep young. When the server has forgotten that version,
everything is listed again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from registry.discovery.kubernetes.api import (
    WATCH_S,
    KubernetesApi,
    ObjectKind,
    VersionGone,
)
from registry.discovery.kubernetes.messages import AnyObject, ApiStatus, ObjectEvent
from registry.discovery.line_stream import LineStream, LineTooLong, StreamEnded
from registry.discovery.outage import PAUSE_MIN_S, Outage
from registry.errors import DiscoveryUnavailable

SILENCE_MAX_S = WATCH_S + 10.0
"""The server ends a watch before that."""

log = logging.getLogger("registry.discovery")


@dataclass(frozen=True, slots=True)
class AllObjects:
    """Everything of a kind: at first, and after each gap."""

    kind: ObjectKind
    objects: list[bytes]


@dataclass(frozen=True, slots=True)
class OneObject:
    """An object of a kind that changed, or is gone."""

    kind: ObjectKind
    content: bytes
    is_gone: bool


News = AllObjects | OneObject | DiscoveryUnavailable
"""What comes: the last is an error, after which nothing does."""


class Feed:
    """Follows one kind of objects.

    Args:
        tell: takes what comes; it may wait.
        closed: set when nobody wants to know any more.
        patience_s: how long the server may be away before that is an error.
    """

    def __init__(
        self,
        kind: ObjectKind,
        api: KubernetesApi,
        tell: Callable[[News], None],
        closed: threading.Event,
        patience_s: float,
    ) -> None:
        self._kind = kind
        self._api = api
        self._tell = tell
        self._closed = closed
        self._outage = Outage(closed, patience_s)
        self._version = ""
        self._stream: LineStream | None = None

    def run(self) -> None:
        """Tell everything until it is closed, or the server is away for too long."""
        try:
            self._list()
            while not self._closed.is_set():
                try:
                    self._follow()
                except VersionGone as reason:
                    log.info("%s are listed again: %s", self._kind.plural, reason)
                    self._version = ""
                except DiscoveryUnavailable as error:
                    self._outage.note(error)
        except DiscoveryUnavailable as error:
            if not self._closed.is_set():
                self._tell(error)

    def interrupt(self) -> None:
        """Wait for nothing any more. `closed` is set before."""
        stream = self._stream
        if stream is not None:
            stream.interrupt()

    def _follow(self) -> None:
        if not self._version:
            self._list()
        self._watch()
        self._closed.wait(PAUSE_MIN_S)

    def _list(self) -> None:
        listing = self._api.list(self._kind)
        self._version = listing.version
        self._tell(AllObjects(self._kind, listing.objects))

    def _watch(self) -> None:
        """Tell each change until the watch ends, as it does after a while."""
        with self._api.watch(self._kind, self._version) as stream:
            self._stream = stream
            try:
                self._outage.end()
                while not self._closed.is_set():
                    line = stream.find_line(SILENCE_MAX_S)
                    if line is None:
                        return
                    self._take(line)
            except StreamEnded:
                return
            except LineTooLong as error:
                raise VersionGone(str(error)) from None
            finally:
                self._stream = None

    def _take(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=ObjectEvent)
            content = bytes(event.object)
            if event.type == "ERROR":
                status = msgspec.json.decode(content, type=ApiStatus)
                raise self._api.refused(self._kind, status)
            version = msgspec.json.decode(content, type=AnyObject).metadata.resource_version
        except (ValueError, RecursionError):
            raise VersionGone("the watch told what no API server does") from None
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            self._tell(OneObject(self._kind, content, is_gone=event.type == "DELETED"))
        self._version = version or self._version
