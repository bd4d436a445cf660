"""Follows the cards of a discovery store, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from registry.discovery import Change, Discovery, Kind, Listed, RecordKey
from registry.errors import Invalid, RegistryError
from registry.server.proxy.advertised import FILES_MAX, AdvertisedFiles, Files, files_of

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
CLOSED_WITHIN_S = 2.0

KEPT_S = 900.0
"""How long a card stays known that nobody saw leave: the store may have been away, or emptied. What
it names has a checksum, which is as right as before."""

log = logging.getLogger("registry.proxy")


class CardFollower:
    """Keeps what is known of cards up to date, from `start` to `close`.

    While the store cannot be used, what was known stays known.
    """

    def __init__(self, store: Discovery, files: AdvertisedFiles, name: str) -> None:
        self._store = store
        self._files = files
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: dict[RecordKey, asyncio.TimerHandle] = {}
        self._is_full = False
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
        for timer in self._leaving.values():
            timer.cancel()

    def _close(self) -> None:
        closing = threading.Thread(target=self._store.close, daemon=True)
        closing.start()
        for thread in (closing, self._thread):
            thread.join(CLOSED_WITHIN_S)

    # In its own thread

    def _run(self) -> None:
        pause_s, is_told = RETRY_FIRST_S, False
        while not self._closing.is_set():
            try:
                self._follow()
                pause_s, is_told = RETRY_FIRST_S, False
            except RegistryError as error:  # Settings of the environment as well.
                if not is_told and not self._closing.is_set():
                    log.warning("%s cannot be followed; trying again: %s", self._name, error)
                is_told = True
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    def _follow(self) -> None:
        """Tell what a watch tells, until it ends."""
        told: set[RecordKey] = set()
        is_first = True
        for change in self._store.watch(Kind.MODEL):
            if isinstance(change, Change):
                told.add(change.key)
                self._take(change)
            elif isinstance(change, Listed) and is_first:
                is_first = False
                self._tell(self._listed, frozenset(told))
                told.clear()

    def _take(self, change: Change) -> None:
        try:
            files = files_of(change.record)
        except Invalid as error:
            log.warning("the files of %s are not served: %s", change.key, error)
            files = {}
        if change.record is None and change.relisted:
            self._tell(self._leave_later, change.key)
        else:
            self._tell(self._put, change.key, files)

    def _tell(self, take: Callable[..., None], *what: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(take, *what)
        except RuntimeError:  # The loop is closed, and so will this be.
            self._closing.set()

    # In the event loop

    def _put(self, key: RecordKey, files: Files) -> None:
        leaving = self._leaving.pop(key, None)
        if leaving is not None:
            leaving.cancel()
        has_room = self._files.put(key, files)
        if not has_room and not self._is_full:
            log.warning(
                "live cards name more than %d files; those of %s and others are not served",
                FILES_MAX,
                key,
            )
        self._is_full = not has_room

    def _listed(self, told: frozenset[RecordKey]) -> None:
        """All that is there was told of."""
        self._files.is_known = True
        for key in self._files.keys - told:
            self._leave_later(key)

    def _leave_later(self, key: RecordKey) -> None:
        assert self._loop is not None
        if key in self._files.keys and key not in self._leaving:
            self._leaving[key] = self._loop.call_later(KEPT_S, self._put, key, {})
