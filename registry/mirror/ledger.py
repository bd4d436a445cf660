"""All that a mirror knows of each owner: its card, what is registered for it, what failed.

Used by several threads. Nothing in it needs to be saved: what a new mirror cannot see in the store
and in the registry, it does again.
"""

from __future__ import annotations

import math
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from registry.core.records import Owner
from registry.mirror.mirrored_card import MirroredCard
from registry.mirror.plan import Standing, Step, find_step
from registry.mirror.settings import MirrorMode

RETRY_MAX_S = 300.0
RETRY_SOONEST_S = 1.0
"""A card that changes all the time is tried once in so long, while it fails."""

REWRITES_AT_ONCE = 3
"""After so many changes of a card, each waits twice as long as the one before: somebody else
changes it as well."""

SOURCES_MAX = 5


@dataclass(slots=True)
class _Known:
    """What is known of one owner; see `Standing`."""

    is_live: bool = False
    version: str = ""
    card: MirroredCard | None = None
    wanted: str | None = None
    refusal: str = ""
    held: str | None = None
    urls: dict[str, str] = field(default_factory=dict)
    passed: str | None = None
    gone_at: float = 0.0
    by_listing: bool = False
    retry_at: float = 0.0
    failures: int = 0
    rewrites: int = 0
    is_revision: bool = False
    is_busy: bool = False

    @property
    def points_here(self) -> bool:
        card = self.card
        return card is not None and all(
            self.urls.get(file.filename) == file.url for file in card.files
        )

    def standing(self) -> Standing:
        return Standing(
            self.is_live,
            self.wanted,
            self.is_live and self.card is None and not self.refusal and bool(self.version),
            self.held,
            self.points_here,
            self.version,
            self.passed,
            self.gone_at,
            self.by_listing,
            self.retry_at,
            self.failures,
            self.is_busy,
        )


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """How many owners there are, of which kind."""

    cards: int = 0
    left_alone: int = 0
    mirrored: int = 0
    failed: int = 0
    lingering: int = 0
    passed_on: int = 0
    revisions: int = 0


class Ledger:
    """What is known. `clock` is that of the plan; `wake` is called when something changed."""

    def __init__(self, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()
        self._known: dict[Owner, _Known] = {}
        self._naming: dict[str, set[Owner]] = defaultdict(set)

    # What the store tells

    def take_card(
        self, owner: Owner, version: str, card: MirroredCard | None, refusal: str = ""
    ) -> None:
        """A card is live. Without `card` it is left alone, or cannot be mirrored for a reason."""
        with self._lock:
            known = self._known.setdefault(owner, _Known())
            was_live, known.is_live = known.is_live, True
            if was_live and known.version == version:
                return
            self._index(owner, known.card, card)
            known.version, known.card, known.refusal = version, card, refusal
            known.wanted = None if card is None else card.digest
            if known.rewrites <= REWRITES_AT_ONCE:
                soonest = self._clock() + RETRY_SOONEST_S if known.failures else 0.0
                known.retry_at = min(known.retry_at, soonest)
        self._wake()

    def lose_card(self, owner: Owner, *, by_listing: bool) -> None:
        """No card of an owner is live any more."""
        with self._lock:
            self._lose(owner, by_listing)
        self._wake()

    def keep_only(self, told: Collection[Owner]) -> None:
        """A listing named all cards that are live."""
        with self._lock:
            for owner in [each for each in self._known if each not in told]:
                self._lose(owner, by_listing=True)
        self._wake()

    def adopt(self, owner: Owner) -> None:
        """An earlier mirror registered something for an owner. Whether its card is live, the first
        listing will tell."""
        with self._lock:
            known = self._known.setdefault(owner, _Known(is_live=True))
            if known.held is None:
                known.held = ""

    # What the jobs do

    def begin(self, owner: Owner, step: Step, mode: MirrorMode) -> MirroredCard | None:
        """Begin a step; the card that it is for, as it is now.

        Raises:
            NotWanted: something else is wanted by now.
        """
        with self._lock:
            known = self._known.get(owner)
            if known is None or known.is_busy or find_step(known.standing(), mode) is not step:
                raise NotWanted
            known.is_busy = True
            return known.card

    def end(self, owner: Owner, **found: object) -> None:
        """A step is done; `found` are the fields that it changed."""
        with self._lock:
            known = self._known[owner]
            known.is_busy, known.failures, known.retry_at = False, 0, 0.0
            for name, value in found.items():
                setattr(known, name, value)
            self._drop_if_empty(owner, known)
        self._wake()

    def note_rewrite(self, owner: Owner) -> None:
        """The card of an owner was changed."""
        with self._lock:
            known = self._known[owner]
            known.rewrites += 1
            known.failures = 0

    def fail(self, owner: Owner, pause_s: float | None = None) -> int:
        """A step failed; how often it has by now. Without `pause_s` it is tried later each time."""
        with self._lock:
            known = self._known[owner]
            known.is_busy = False
            known.failures += 1
            if pause_s is None:
                pause_s = min(RETRY_MAX_S, 2.0 ** min(known.failures - 1, 30))
                pause_s *= random.uniform(0.75, 1.0)
            known.retry_at = self._clock() + pause_s
            failures = known.failures
        self._wake()
        return failures

    def postpone(self, owner: Owner, pause_s: float) -> None:
        """A step waits for what somebody else is doing; longer each time, if somebody else changes
        the card as often as it is rewritten."""
        with self._lock:
            known = self._known[owner]
            late = known.rewrites - REWRITES_AT_ONCE
            if late > 0:
                pause_s = min(RETRY_MAX_S, pause_s * 2.0 ** min(late, 30))
            known.is_busy, known.retry_at = False, self._clock() + pause_s
        self._wake()

    def forget_held(self, owners: Iterable[Owner]) -> None:
        """The registry does not hold what was registered for these any more."""
        with self._lock:
            for owner in owners:
                known = self._known.get(owner)
                if known is not None:
                    known.held = None
                    self._drop_if_empty(owner, known)
        self._wake()

    # Looking

    def standings(self) -> dict[Owner, Standing]:
        with self._lock:
            return {owner: known.standing() for owner, known in self._known.items()}

    def held(self) -> dict[Owner, int]:
        """The owners for which something is registered, and how many files at least."""
        with self._lock:
            return {
                owner: len(known.urls)
                for owner, known in self._known.items()
                if known.held is not None
            }

    def is_held(self, owner: Owner) -> bool:
        """Whether something is registered for an owner."""
        with self._lock:
            known = self._known.get(owner)
            return known is not None and known.held is not None

    def adopted(self) -> list[Owner]:
        """The owners for which an earlier mirror registered something, nobody has looked what."""
        with self._lock:
            return sorted(owner for owner, known in self._known.items() if known.held == "")

    def card_of(self, owner: Owner) -> tuple[MirroredCard | None, str]:
        """The live card of an owner if it is to be mirrored, and else why it cannot be."""
        with self._lock:
            known = self._known.get(owner)
            return (None, "") if known is None else (known.card, known.refusal)

    def version_of(self, owner: Owner) -> str:
        """Which card of an owner is live, as far as is known."""
        with self._lock:
            known = self._known.get(owner)
            return "" if known is None else known.version

    def urls_of(self, owner: Owner) -> Mapping[str, str]:
        """Where the files of an owner are served, by filename."""
        with self._lock:
            known = self._known.get(owner)
            return {} if known is None else dict(known.urls)

    def sources_of(self, checksum: str, first: Iterable[str] = ()) -> list[str]:
        """Where content may be had: `first`, and what other live cards say, a few of them."""
        with self._lock:
            found = dict.fromkeys(first)
            owners = self._naming.get(checksum, ())
            for owner in random.sample(list(owners), min(len(owners), SOURCES_MAX)):
                card = self._known[owner].card
                for file in card.files if card is not None else ():
                    if file.checksum == checksum:
                        found |= dict.fromkeys(file.sources)
            return list(found)[:SOURCES_MAX]

    def counts(self) -> LedgerCounts:
        with self._lock:
            all_known = list(self._known.values())
            live = [each for each in all_known if each.is_live]
            return LedgerCounts(
                cards=len(live),
                left_alone=sum(not each.refusal and each.card is None for each in live),
                mirrored=sum(each.held == each.wanted is not None for each in live),
                failed=sum(bool(each.refusal or each.failures) for each in live),
                lingering=sum(not each.is_live and each.held is not None for each in all_known),
                passed_on=sum(each.passed is not None for each in all_known),
                revisions=sum(each.is_revision and each.held is not None for each in all_known),
            )

    # With the lock held

    def _lose(self, owner: Owner, by_listing: bool) -> None:
        known = self._known.get(owner)
        if known is None or not known.is_live:
            return
        self._index(owner, known.card, None)
        known.is_live, known.card, known.wanted, known.refusal = False, None, None, ""
        known.gone_at, known.by_listing = self._clock(), by_listing
        known.version, known.failures, known.retry_at = "", 0, -math.inf
        self._drop_if_empty(owner, known)

    def _drop_if_empty(self, owner: Owner, known: _Known) -> None:
        is_known = known.is_live or known.held is not None or known.passed is not None
        if not is_known and not known.is_busy:
            del self._known[owner]

    def _index(self, owner: Owner, old: MirroredCard | None, new: MirroredCard | None) -> None:
        for file in old.files if old is not None else ():
            owners = self._naming.get(file.checksum)
            if owners is not None:
                owners.discard(owner)
                if not owners:
                    del self._naming[file.checksum]
        for file in new.files if new is not None else ():
            self._naming[file.checksum].add(owner)


class NotWanted(Exception):
    """What was planned is not wanted any more."""
