"""Content on its way from the workers to the registry: each at most once at a time."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from registry.client.client import RegistryClient
from registry.mirror.ledger import Ledger
from registry.mirror.mirrored_card import MirroredFile
from registry.mirror.origins import NotFetched, Origins

AGAIN_FIRST_S = 0.5
AGAIN_MAX_S = 30.0
"""Less than a card waits that failed as often, so that its next attempt is one."""

REMEMBERED_MAX = 10_000


class UnderWay(Exception):
    """Somebody else is bringing this content in."""


@dataclass(slots=True)
class _Missed:
    """Content that could not be had: when it is tried again, and where it was looked for."""

    again_at: float
    pause_s: float
    tried: set[str]
    why: str


class Contents:
    """Brings content into the registry.

    Args:
        on_fetched: called with the size of each file that was fetched.
    """

    def __init__(
        self,
        client: RegistryClient,
        origins: Origins,
        ledger: Ledger,
        on_fetched: Callable[[int], None],
    ) -> None:
        self._client = client
        self._origins = origins
        self._ledger = ledger
        self._on_fetched = on_fetched
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._failed: dict[tuple[str, int | None], _Missed] = {}

    def bring(self, file: MirroredFile) -> None:
        """Fetch the content of a file, from wherever a live card says, and upload it.

        Raises:
            UnderWay: somebody else does that just now.
            NotFetched: nobody has it; it is not looked for again in the same places for a while.
            RegistryError: the registry does not take it.
        """
        checksum = file.checksum
        # Another card may say another size, and be right.
        wanted = (checksum, file.size)
        sources = self._ledger.sources_of(checksum, first=file.sources)
        with self._alone(checksum):
            failed = self._failed.get(wanted)
            if failed is not None and time.monotonic() < failed.again_at:
                sources = [each for each in sources if each not in failed.tried]
                if not sources:
                    raise NotFetched(failed.why)
            if self._client.has_blob(checksum):
                # Since somebody was told that it is missing, it was brought in.
                return
            # It has no name: whatever becomes of this process, nothing of it stays.
            with tempfile.TemporaryFile(prefix="registry-mirror-") as spooled:
                try:
                    size = self._origins.fetch(checksum, file.size, sources, spooled)
                except NotFetched as error:
                    self._remember(wanted, sources, str(error))
                    raise
                spooled.flush()
                self._on_fetched(size)
                self._failed.pop(wanted, None)
                self._client.upload(checksum, f"/dev/fd/{spooled.fileno()}")

    @contextmanager
    def _alone(self, checksum: str) -> Iterator[None]:
        with self._lock:
            if checksum in self._under_way:
                raise UnderWay
            self._under_way.add(checksum)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(checksum)

    def _remember(self, wanted: tuple[str, int | None], sources: list[str], why: str) -> None:
        failed = self._failed.pop(wanted, None) or _Missed(0.0, AGAIN_FIRST_S / 2, set(), "")
        if time.monotonic() >= failed.again_at:
            failed.tried.clear()
            failed.pause_s = min(AGAIN_MAX_S, 2 * failed.pause_s)
            failed.again_at = time.monotonic() + failed.pause_s
        failed.tried.update(sources)
        failed.why = why
        if len(self._failed) >= REMEMBERED_MAX:
            self._failed.pop(next(iter(self._failed)), None)
        self._failed[wanted] = failed
