"""From one store into another: everything but cards as it is, byte for byte.

What is to be there is compared with what was passed on, so that a second store that was away gets
what it lacks when it is back. Cards are told of, and passed on by the steps of a plan.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from registry.core import background
from registry.core.hashing import checksum_of
from registry.discovery import Change, Kind, Listed, RawStore, Record, RecordKey
from registry.discovery.record_io import RecordReader
from registry.errors import DiscoveryUnavailable, Invalid
from registry.mirror.settings import MirrorSettings
from registry.mirror.status import MirrorStatus

CARDS = f"{Kind.MODEL}/"
AGAIN_S = 1.0

log = logging.getLogger("registry.mirror")


class Relay:
    """Copies what is no card, in a thread, until it is closed."""

    def __init__(
        self, settings: MirrorSettings, source: RawStore, target: RawStore, status: MirrorStatus
    ) -> None:
        self._settings = settings
        self._source = source
        self._target = target
        self._status = status
        self._reader = RecordReader("the store")
        self._changed = threading.Condition()
        self._closed = False
        self.threads: list[Future[None]] = []
        self._pending: dict[str, bytes | None] = {}
        self._passed: dict[str, str] = {}

    def start(self) -> None:
        self.threads = [background.begin(self._run, "registry-mirror-relay")]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cards(self) -> Iterator[Change | Listed]:
        """A watch of the source: cards are told of as `watch` does, all else is passed on."""
        told: set[str] | None = set()
        for change in self._source.watch_raw():
            if isinstance(change, Listed):
                if told is not None:
                    self._keep_only(told)
                told = None
                yield change
            elif change.name.startswith(CARDS):
                card = self._card_of(change.name, change.content)
                if card is not None:
                    yield Change(card[0], card[1], change.relisted)
            elif self._looks_at(change.name):
                if told is not None:
                    told.add(change.name)
                self._note(change.name, change.content)

    def _card_of(self, name: str, content: bytes | None) -> tuple[RecordKey, Record | None] | None:
        try:
            key = RecordKey.parse(Kind.MODEL, name.removeprefix(CARDS))
        except Invalid:
            self._reader.leave_out(name, "its name is not that of a record")
            return None
        return key, None if content is None else self._reader.find_record(key, name, content)

    def _looks_at(self, name: str) -> bool:
        """Names are `v1/instances/NS/...` and `v1/event_channels/namespace/NS/...`."""
        parts = name.split("/")[2:]
        namespaces = self._settings.namespaces
        return not namespaces or any(
            part in namespaces for part in (parts[1:2] if parts[:1] == ["namespace"] else parts[:1])
        )

    def _note(self, name: str, content: bytes | None) -> None:
        with self._changed:
            self._pending[name] = content
            self._changed.notify_all()

    def _keep_only(self, told: set[str]) -> None:
        with self._changed:
            gone = (self._passed.keys() | self._pending.keys()) - told
            self._pending |= dict.fromkeys(gone)
            self._changed.notify_all()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._pass_on(*item)
                self._status.reached_target()
            except Invalid as error:
                self._reader.leave_out(item[0], error.detail)
            except DiscoveryUnavailable as error:
                self._status.note_target(error)
                with self._changed:
                    self._pending.setdefault(*item)
                    self._changed.wait_for(lambda: self._closed, AGAIN_S)
            except Exception:
                log.exception("%s could not be passed on", item[0])

    def _next(self) -> tuple[str, bytes | None] | None:
        """What is to be passed on next; None: nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._pending))
            if self._closed:
                return None
            name = next(iter(self._pending))
            return name, self._pending.pop(name)

    def _pass_on(self, name: str, content: bytes | None) -> None:
        if content is None:
            if name in self._passed:
                self._target.withdraw_raw(name)
                del self._passed[name]
            return
        digest = checksum_of(content)
        if self._passed.get(name) != digest:
            self._passed[name] = ""  # From now on it may be there.
            self._target.publish_raw(name, content)
            self._passed[name] = digest
