"""Follows the cards of a discovery store, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from registry.discovery import Change, Discovery, Kind, Listed, RecordKey
from registry.errors import DiscoveryUnavailable
from registry.server.proxy.advertised import AdvertisedFiles

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
CLOSED_WITHIN_S = 2.0

log = logging.getLogger("registry.proxy")


class CardFollower:
    """Keeps what is known of cards up to date, from `start` to `close`.

    While the store cannot be used, what was known stays: a card that lapses meanwhile names files
    whose checksums are as right as before.
    """

    def __init__(self, store: Discovery, files: AdvertisedFiles, name: str) -> None:
        self._store = store
        self._files = files
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-cards", daemon=True)

    def start(self) -> None:
        """Begin, in the running event loop, which is told of everything."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End. A store that hangs is not waited for."""
        self._closing.set()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        closing = threading.Thread(target=self._store.close, daemon=True)
        closing.start()
        for thread in (closing, self._thread):
            thread.join(CLOSED_WITHIN_S)

    def _run(self) -> None:
        pause_s, is_told = RETRY_FIRST_S, False
        while not self._closing.is_set():
            try:
                self._follow()
                pause_s, is_told = RETRY_FIRST_S, False
            except DiscoveryUnavailable as error:
                if not is_told and not self._closing.is_set():
                    log.warning("%s cannot be followed; trying again: %s", self._name, error)
                is_told = True
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    def _follow(self) -> None:
        """Tell what a watch tells, until it ends."""
        told: set[RecordKey] | None = set()
        for change in self._store.watch(Kind.MODEL):
            if isinstance(change, Change):
                if told is not None and change.record is not None:
                    told.add(change.key)
                self._tell(self._files.apply, change)
            elif isinstance(change, Listed) and told is not None:
                self._tell(self._files.keep_only, frozenset(told))
                told = None

    def _tell(self, take: Callable[..., None], what: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(take, what)
        except RuntimeError:  # The loop is closed, and so will this be.
            self._closing.set()
