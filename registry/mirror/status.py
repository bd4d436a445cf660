"""How a mirror is doing: what it has seen and done, in the log, as metrics and as health."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass

from registry.core.records import Owner
from registry.core.text import shown
from registry.errors import RegistryError
from registry.mirror.ledger import LedgerCounts

SILENT_MAX_S = 45.0
"""How long store or registry may have been silent before the mirror is not well."""

SAID_EVERY_S = 60.0
LINES_AT_ONCE = 60
LINES_PER_S = 1.0
"""How many lines the log gets for cards, whatever is in the store."""

LINE_MAX = 4000

log = logging.getLogger("registry.mirror")


@dataclass(frozen=True, slots=True)
class MirrorReport:
    """What a mirror has seen and done. Ages in seconds; None: never."""

    counts: LedgerCounts
    held_back: int
    discovery_age_s: float | None
    registry_age_s: float | None
    listed: bool
    target_is_down: bool
    fetched_files: int
    fetched_bytes: int
    unsaid: int

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, beyond single cards."""
        found = []
        for name, age_s in (("discovery", self.discovery_age_s), ("registry", self.registry_age_s)):
            if age_s is None:
                found.append(f"{name} has not answered yet")
            elif age_s > SILENT_MAX_S:
                found.append(f"{name} has not answered for {age_s:.0f} s")
        if self.target_is_down:
            found.append("the second store cannot be used")
        if not self.listed and not found:
            found.append("the cards have not been listed yet")
        return found


class MirrorStatus:
    """Notes what happens. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._discovery_at: float | None = None
        self._registry_at: float | None = None
        self._down: dict[str, bool] = {}
        self._said_at: dict[str, float] = {}
        self._told: dict[Owner, str] = {}
        self._lines, self._lines_at = float(LINES_AT_ONCE), time.monotonic()
        self._unsaid = 0
        self._fetched_files = self._fetched_bytes = 0
        self._held_back = 0
        self.listed = False
        self.is_once = False
        self.is_over = False

    # What happens

    def looked(self) -> None:
        """The store answered."""
        self._discovery_at = time.monotonic()
        self._note_up("discovery")

    def answered(self) -> None:
        """The registry answered."""
        self._registry_at = time.monotonic()
        self._note_up("registry")

    def note_discovery(self, error: RegistryError) -> None:
        """The store cannot be used."""
        self._note_down("discovery", error)

    def note_registry(self, error: RegistryError) -> None:
        """The registry cannot be used."""
        self._note_down("registry", error)

    def reached_target(self) -> None:
        """The second store answered."""
        self._note_up("second store")

    def note_target(self, error: RegistryError) -> None:
        """The second store cannot be used."""
        self._note_down("second store", error)

    def fetched(self, size: int) -> None:
        """A file came in."""
        with self._lock:
            self._fetched_files += 1
            self._fetched_bytes += size

    def note_held_back(self, owners: int) -> None:
        """So many owners are kept although their cards are gone."""
        before, self._held_back = self._held_back, owners
        if owners and not before:
            log.warning(
                "the cards of %s are gone all at once, and nobody saw them go; their files "
                "are kept for now, as the store may have been emptied",
                owners_in_words(owners),
            )
        elif before and not owners:
            log.info("nothing is kept back any more")

    def tell(self, owner: Owner, what: str) -> None:
        """Log what is wrong with a card: once, until that is another thing or over. The log gets so
        many lines at most; the others are counted."""
        now = time.monotonic()
        with self._lock:
            if self.is_over or owner in self._told:
                return
            self._told[owner] = what
            since, self._lines_at = now - self._lines_at, now
            self._lines = min(LINES_AT_ONCE, self._lines + since * LINES_PER_S)
            if self._lines < 1:
                self._unsaid += 1
                return
            self._lines -= 1
        log.warning("the card of %s %s", owner, what if len(what) < LINE_MAX else shown(what))

    def untell(self, owner: Owner) -> None:
        """Nothing is wrong with a card any more, or it is gone."""
        with self._lock:
            self._told.pop(owner, None)

    # Looking

    def report(self, counts: LedgerCounts) -> MirrorReport:
        now = time.monotonic()
        with self._lock:
            return MirrorReport(
                counts,
                self._held_back,
                None if self._discovery_at is None else now - self._discovery_at,
                None if self._registry_at is None else now - self._registry_at,
                self.listed,
                "second store" in self._down,
                self._fetched_files,
                self._fetched_bytes,
                self._unsaid,
            )

    def problem_of(self, owner: Owner) -> str | None:
        """What is wrong with a card."""
        return self._told.get(owner)

    def _note_up(self, name: str) -> None:
        if self._down.pop(name, False):
            log.info("the %s answers again", name)

    def _note_down(self, name: str, error: RegistryError) -> None:
        """Say so, but not each time when it comes and goes."""
        now = time.monotonic()
        if name not in self._down and not self.is_over:
            is_said = now - self._said_at.get(name, -math.inf) > SAID_EVERY_S
            self._down[name] = is_said
            if is_said:
                self._said_at[name] = now
                again = "" if self.is_once else "; retrying"
                log.warning("the %s cannot be used%s: %s", name, again, error.detail)


def owners_in_words(owners: int) -> str:
    """`1 owner`, `2 owners`."""
    return "1 owner" if owners == 1 else f"{owners} owners"
