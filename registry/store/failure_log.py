"""What storage does to reads and writes, in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from registry.errors import StorageUnavailable

CALM_S = 1.0

log = logging.getLogger("registry.db")


class FailureLog:
    """Says in the log when storage begins to fail in a way, and when it works again; not each
    time in between. `what` is what fails: a plural, like `writes`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._detail: str | None = None
        self._failed_at = float("-inf")

    def failed(self, error: StorageUnavailable) -> None:
        """It did not work."""
        self._failed_at = time.monotonic()
        if error.detail != self._detail:
            self._detail = error.detail
            log.error("%s fail: %s", self._what, error.detail)

    def worked(self) -> None:
        """It worked. Where some of it works and some does not, that is no change."""
        if self._detail is not None and time.monotonic() - self._failed_at >= CALM_S:
            self._detail = None
            log.warning("%s work again", self._what)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Say what storage does to the block."""
        try:
            yield
        except StorageUnavailable as error:
            self.failed(error)
            raise
        self.worked()
