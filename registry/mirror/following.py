"""Following the cards of a store in a thread: what it tells goes into the ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future

import msgspec

from registry.core import background
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.discovery import Change, Discovery, Kind, Listed, Record, RecordKey
from registry.errors import DiscoveryUnavailable, Invalid
from registry.mirror.ledger import Ledger
from registry.mirror.mirrored_card import HereUrls, read_card
from registry.mirror.settings import MirrorSettings
from registry.mirror.status import MirrorStatus

AGAIN_MIN_S, AGAIN_MAX_S = 0.5, 10.0
LOOK_EVERY_S = 10.0
PROBE = RecordKey(Kind.MODEL, Owner("mirror", "mirror", "mirror", 0))
"""A record that is looked for to see whether the store answers."""

log = logging.getLogger("registry.mirror")


class CardReader:
    """Takes what a store tells of cards into a ledger."""

    def __init__(
        self, settings: MirrorSettings, ledger: Ledger, here: HereUrls, status: MirrorStatus
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._here = here
        self._is_warned = False
        self._status = status

    def take(self, record: Record) -> None:
        """A card is live."""
        owner = record.key.owner
        if not self._settings.looks_at(owner):
            return
        try:
            card, why = read_card(record, self._here), ""
        except (Invalid, RecursionError) as error:
            card, why = None, getattr(error, "detail", "it is nested too deep")
        if why:
            self._status.tell(owner, f"cannot be mirrored: {why}")
        elif card is None:
            self._status.untell(owner)
        self._ledger.take_card(owner, version_of(record), card, why)

    def note_listing(self, told: Collection[Owner]) -> None:
        """A listing named these. If none is this mirror's business, that is said, once."""
        if told and not self._is_warned and not any(map(self._settings.looks_at, told)):
            self._is_warned = True
            log.warning(
                "no card is of the namespaces that are looked at (%s); cards of others: %d",
                ", ".join(self._settings.namespaces),
                len(told),
            )

    def lose(self, owner: Owner, *, by_listing: bool) -> None:
        """A card is live no more."""
        self._status.untell(owner)
        self._ledger.lose_card(owner, by_listing=by_listing)


def version_of(record: Record) -> str:
    """What tells one content of a record from another."""
    return checksum_of(msgspec.json.encode(dict(record.content), order="sorted"))


class Following:
    """Follows a store until it is closed, and looks whether it answers.

    Args:
        changes: begins a watch of the store's cards.
    """

    def __init__(
        self,
        store: Discovery,
        changes: Callable[[], Iterator[Change | Listed]],
        reader: CardReader,
        ledger: Ledger,
        status: MirrorStatus,
    ) -> None:
        self._store = store
        self._changes = changes
        self._reader = reader
        self._ledger = ledger
        self._status = status
        self._closed = threading.Event()
        self.threads: list[Future[None]] = []

    def start(self) -> None:
        self.threads = [
            background.begin(self._follow, "registry-mirror-follow"),
            background.begin(self._look, "registry-mirror-look"),
        ]

    def list_once(self) -> None:
        """Take what is live now.

        Raises:
            DiscoveryUnavailable: nobody knows.
        """
        told = set()
        for record in self._store.list(Kind.MODEL):
            told.add(record.key.owner)
            self._reader.take(record)
        self._ledger.keep_only(told)
        self._reader.note_listing(told)
        self._status.looked()
        self._status.listed = True

    def close(self) -> None:
        """Follow no more. The store is closed by whoever opened it."""
        self._closed.set()

    def _follow(self) -> None:
        pause_s = AGAIN_MIN_S
        while not self._closed.is_set():
            try:
                self._follow_once()
                pause_s = AGAIN_MIN_S
            except DiscoveryUnavailable as error:
                self._status.note_discovery(error)
            except Exception:
                if not self._closed.is_set():
                    log.exception("following the store failed; retrying")
            self._closed.wait(pause_s)
            pause_s = min(AGAIN_MAX_S, 2 * pause_s)

    def _follow_once(self) -> None:
        """One watch, until it ends. What it has not told of when its listing ends is gone."""
        told: set[Owner] | None = set()
        for change in self._changes():
            if self._closed.is_set():
                return
            self._status.looked()
            if isinstance(change, Listed):
                if told is not None:
                    self._ledger.keep_only(told)
                    self._reader.note_listing(told)
                told = None
                self._status.listed = True
            elif change.record is None:
                self._reader.lose(change.key.owner, by_listing=change.relisted)
            else:
                if told is not None:
                    told.add(change.key.owner)
                self._reader.take(change.record)

    def _look(self) -> None:
        """A watch in which nothing happens tells nothing of the store."""
        while not self._closed.wait(LOOK_EVERY_S):
            try:
                self._store.find(PROBE)
                self._status.looked()
            except DiscoveryUnavailable as error:
                self._status.note_discovery(error)
            except Exception:
                log.exception("looking at the store failed; retrying")
