"""Keeping leases alive, and finding out soon when the registry has lost what it held.

All leases are renewed every third of their time, many in one call. In between, one owner after the
other is looked at: a registry whose database was replaced answers as if nothing were wrong.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from concurrent.futures import Future

from registry.client.client import RegistryClient
from registry.core import background
from registry.core.records import Owner, OwnerState, Renewed
from registry.errors import RegistryError, UnknownOwner
from registry.mirror.jobs import OF_THE_REGISTRY
from registry.mirror.ledger import Ledger
from registry.mirror.settings import MirrorSettings
from registry.mirror.status import MirrorStatus, owners_in_words

LOOK_EVERY_S = 3.0
NOTHING = "blake3:" + 64 * "0"

log = logging.getLogger("registry.mirror")


class Renewing:
    """Renews what the ledger says is held, in a thread, until it is closed."""

    def __init__(
        self,
        settings: MirrorSettings,
        client: RegistryClient,
        ledger: Ledger,
        status: MirrorStatus,
    ) -> None:
        self._settings = settings
        self._client = client
        self._ledger = ledger
        self._status = status
        self._closed = threading.Event()
        self.threads: list[Future[None]] = []
        self._due_at = 0.0
        self._turn = itertools.count()

    def start(self) -> None:
        self._due_at = self._next_due()
        self.threads = [background.begin(self._run, "registry-mirror-renew")]

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        every_s = min(LOOK_EVERY_S, self._settings.lease_ttl_s / 4)
        while not self._closed.wait(every_s):
            try:
                if time.monotonic() >= self._due_at or not self._look():
                    self.renew_all()
                    self._due_at = self._next_due()
                self._status.answered()
            except OF_THE_REGISTRY as error:
                self._status.note_registry(error)
            except Exception:
                log.exception("renewing the leases failed; retrying")

    def _next_due(self) -> float:
        return time.monotonic() + self._settings.lease_ttl_s / 3 * random.uniform(0.8, 1.0)

    def _look(self) -> bool:
        """Whether the registry still holds what it should, by one owner whose turn it is."""
        held = list(self._ledger.held())
        if not held:
            self._client.has_blob(NOTHING)
            return True
        owner = held[next(self._turn) % len(held)]
        try:
            record = self._client.owner(owner).record
        except UnknownOwner:
            return False
        return record.state in (OwnerState.ACTIVE, OwnerState.DRAINING)

    def renew_all(self) -> None:
        """Renew every lease. What the registry does not hold any more is registered again.

        Raises:
            RegistryError: it could not be asked.
        """
        held = self._ledger.held()
        lost: list[Owner] = []
        outcomes = self._client.renew_many(held)
        for (owner, files), outcome in zip(held.items(), outcomes, strict=True):
            if not _is_whole(outcome, files):
                lost.append(owner)
        if lost:
            log.warning(
                "the registry does not hold any more what was registered for %d of %s; it is "
                "registered again",
                len(lost),
                owners_in_words(len(held)),
            )
        self._ledger.forget_held(lost)


def _is_whole(outcome: Renewed | RegistryError, files: int) -> bool:
    return isinstance(outcome, Renewed) and outcome.refs >= files
