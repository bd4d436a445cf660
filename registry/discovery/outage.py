"""The time in which a store that is watched cannot be used."""

from __future__ import annotations

import logging
import math
import threading
import time

from registry.errors import DiscoveryUnavailable

PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 2.0
SAID_EVERY_S = 60.0

log = logging.getLogger("registry.discovery")


class Outage:
    """Whether there is one, and since when.

    Args:
        closed: set when nobody wants to know any more.
        patience_s: how long it may last.
    """

    def __init__(self, closed: threading.Event, patience_s: float) -> None:
        self._closed = closed
        self._patience_s = patience_s
        self._since: float | None = None
        self._said = -math.inf
        self._pause_s = PAUSE_MIN_S

    def note(self, error: DiscoveryUnavailable) -> None:
        """Wait before the next attempt. Raises the error when it lasts too long."""
        if self._closed.is_set():
            return
        now = time.monotonic()
        if self._since is None:
            self._since, self._pause_s = now, PAUSE_MIN_S
        if now - self._since > self._patience_s:
            raise error
        if now - self._said > SAID_EVERY_S:
            self._said = now
            log.warning("changes come late: %s", error)
        self._closed.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def end(self) -> None:
        """It can be used."""
        self._since = None
