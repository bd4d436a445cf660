"""The registry compared with discovery: models that are advertised and not served, owners that are
served and not advertised, cards that name others, cards that contradict each other.

The two cannot be looked at in one moment, and workers come and go meanwhile. So the registry is
looked at before discovery and after it, and what does not fit then is only suspected (`compare`). A
finding is what is suspected again at least one liveness time later (`Suspicions`). All of it is
pure: looks and times come in as values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from registry.core.checks import BASE_SUFFIX
from registry.core.findings import Finding
from registry.core.identity import Identity
from registry.core.text import shown
from registry.core.times import format_time
from registry.service.advertised_cards import (
    AdvertisedCard,
    CardTarget,
    DiscoveryLook,
    shown_names,
)
from registry.store.reads.advertised import RegistryLook
from registry.store.reads.audit import OF_DISCOVERY

ADOPTED_WITHIN_S = 30.0
"""So long a card may name others before it is told of: whoever mirrors it needs a moment."""

LINGER_S = 90.0
"""So long a mirrored owner may be without a card: its mirror keeps it for a minute (`linger_s`)."""

MIRRORED = "mirror-"
"""What the worker names of mirrored owners begin with."""

SUSPECTS_MAX = 10_000
"""Of each class. What is beyond is found when these are gone."""


class SuspectKey(NamedTuple):
    """What makes two suspects the same one: their class, whom they are about, and what about it."""

    kind: str
    about: str
    what: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """Something that does not fit, and for how many seconds it has to be so to be a finding."""

    key: SuspectKey
    owner: str
    entry: str | None
    detail: str
    after_s: float


def compare(
    before: RegistryLook,
    discovery: DiscoveryLook,
    after: RegistryLook,
    *,
    liveness_s: float,
    namespaces: Collection[str] = (),
) -> list[Suspect]:
    """What does not fit.

    `after` must have been asked for all that the cards name. What `before` was not asked for counts
    as if it had not been there: it was known to nobody, and the next comparison asks for it.

    Args:
        namespaces: those that discovery was looked at for; empty: all.
    """
    kinds = (
        _not_served(before, discovery, after, liveness_s),
        _not_advertised(before, discovery, after, liveness_s, namespaces),
        _not_adopted(before, discovery, after, liveness_s),
        _incompatible(discovery, liveness_s),
    )
    return [
        suspect for kind in kinds for suspect, _ in zip(kind, range(SUSPECTS_MAX), strict=False)
    ]


# Each kind


def _not_served(
    before: RegistryLook, discovery: DiscoveryLook, after: RegistryLook, liveness_s: float
) -> Iterator[Suspect]:
    for card in discovery.cards:
        for target in card.files.here:
            problem = _problem_of(target, after)
            if problem is None or _was_served(target, before):
                continue
            owner = owner_text(card.identity)
            entry = target.url if target.key is None else "/".join(target.key[3:])
            yield Suspect(
                SuspectKey("advertised_not_served", owner, entry),
                owner,
                entry,
                f"its card names it here, and {problem}",
                liveness_s,
            )


def _problem_of(target: CardTarget, look: RegistryLook) -> str | None:
    """Why a frontend does not get a file, or None: it does."""
    key = target.key
    if key is None:
        return "no file can be registered under that path: publish a card with the right URL"
    held = look.files.get(key)
    if held is None:
        endpoint = "/".join(key[:3])
        whose = f"nobody of {endpoint}" if key.namespace else "nobody"
        return f"{whose} holds it: register it again, or withdraw the card"
    if held.checksum != target.checksum:
        return (
            f"says {target.checksum}, while {held.checksum} is registered: register the files that "
            "the worker serves, or have it publish its card again"
        )
    if not held.is_serveable:
        return "no holder has its bytes: put the file back, or register it again"
    return None


def _was_served(target: CardTarget, before: RegistryLook) -> bool:
    return target.key in before.files and _problem_of(target, before) is None


def _not_advertised(
    before: RegistryLook,
    discovery: DiscoveryLook,
    after: RegistryLook,
    liveness_s: float,
    namespaces: Collection[str],
) -> Iterator[Suspect]:
    if not discovery.listed:
        return  # An emptied store, or a wrong URL, says nothing of the owners.
    for identity, owner in after.owners.items():
        was = before.owners.get(identity)
        if was is None or was.registered_at != owner.registered_at:
            continue
        if identity in discovery.listed or (namespaces and identity.namespace not in namespaces):
            continue
        is_mirrored = (owner.worker_name or "").startswith(MIRRORED)
        name = owner_text(identity)
        yield Suspect(
            # One that was detached and is registered again is another one.
            SuspectKey("served_not_advertised", name, str(owner.registered_at)),
            name,
            None,
            "it holds files, and discovery lists no card of it: its worker serves no more, or it "
            "was attached without discovery or into another store; unregister it if nobody needs "
            "it, not before its lease and the grace are over if it has one",
            max(liveness_s, LINGER_S) if is_mirrored else liveness_s,
        )


def _not_adopted(
    before: RegistryLook, discovery: DiscoveryLook, after: RegistryLook, liveness_s: float
) -> Iterator[Suspect]:
    for card in discovery.cards:
        url = card.files.elsewhere
        # Where its owner holds files here, a mirror copies them and leaves the card as it is.
        if url is None or card.identity in before.owners or card.identity in after.owners:
            continue
        name = owner_text(card.identity)
        yield Suspect(
            SuspectKey("not_adopted", name, ""),
            name,
            None,
            f"its card names {url}, which is not here: mirror it, or give the "
            "URL as a public URL if it leads here",
            max(liveness_s, ADOPTED_WITHIN_S),
        )


def _incompatible(discovery: DiscoveryLook, liveness_s: float) -> Iterator[Suspect]:
    sets: defaultdict[tuple[str, ...], list[AdvertisedCard]] = defaultdict(list)
    for card in discovery.cards:
        if card.name and card.files.contents is not None:
            sets[(*card.identity[:3], card.name)].append(card)
    for worker_set, cards in sets.items():
        variants: defaultdict[tuple[object, ...], list[AdvertisedCard]] = defaultdict(list)
        for card in cards:
            variants[card.files.contents, card.source_path].append(card)
        if len(variants) > 1:
            yield _of_variants(worker_set, list(variants.values()), liveness_s)


def _of_variants(
    worker_set: tuple[str, ...], variants: list[list[AdvertisedCard]], liveness_s: float
) -> Suspect:
    """A worker set whose cards are not all alike. It is one suspect whoever of it comes and goes;
    named is the first of those that are fewest."""
    variants.sort(key=lambda cards: (-len(cards), cards[0].identity))
    common, odd = variants[0][0], variants[-1][0]
    ours, theirs = dict(odd.files.contents or ()), dict(common.files.contents or ())
    differing = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if odd.source_path != common.source_path:
        differing.append("source_path")
    *endpoint, name = worker_set
    return Suspect(
        SuspectKey("incompatible_cards", "/".join(endpoint), name),
        owner_text(odd.identity),
        None,
        f"the cards of {shown(name)} at {'/'.join(endpoint)} are of {len(variants)} kinds; this "
        f"one, of {len(variants[-1])}, and that of {owner_text(common.identity)}, of "
        f"{len(variants[0])}, differ in {shown_names(differing)}. Frontends take the first and "
        "reject the others: have all workers serve the same files, or give each kind a namespace",
        liveness_s,
    )


def owner_text(identity: Identity) -> str:
    """As `str` of the owner."""
    return "/".join((*identity[:4], identity.lora_slug or BASE_SUFFIX))


# From suspects to findings


@dataclass(frozen=True, slots=True)
class Looked:
    """When a comparison looked: the seconds of a clock that only goes on, and the time of day in
    milliseconds of the registry."""

    began_s: float
    ended_s: float
    at: int


class Suspicions:
    """What is suspected since when, from one comparison to the next.

    Args:
        classes: those that are wanted; empty: all.
    """

    def __init__(self, classes: Collection[str] = ()) -> None:
        self._classes = frozenset(classes)
        self._since: dict[SuspectKey, Looked] = {}
        self._first: Looked | None = None
        self._waits_s: list[float] = []

    def note(self, suspects: Iterable[Suspect], looked: Looked) -> list[Finding]:
        """What has been suspected in every comparison for long enough. What is not suspected any
        more is forgotten."""
        self._first = self._first or looked
        since: dict[SuspectKey, Looked] = {}
        confirmed, self._waits_s = [], []
        for suspect in suspects:
            if self._classes and suspect.key.kind not in self._classes:
                continue
            first = since[suspect.key] = self._since.get(suspect.key, looked)
            wait_s = suspect.after_s - (looked.began_s - first.ended_s)
            if first is not looked and wait_s <= 0:
                confirmed.append(_finding_of(suspect, first))
            elif first is self._first:
                self._waits_s.append(wait_s if first is not looked else suspect.after_s)
        self._since = since
        return confirmed

    @property
    def is_decided(self) -> bool:
        """Whether all that was suspected in the first comparison is a finding or is forgotten."""
        return not self._waits_s

    @property
    def undecided(self) -> int:
        """How much of that is neither."""
        return len(self._waits_s)

    @property
    def wait_s(self) -> float:
        """How long it takes until a comparison decides something of that."""
        return min(self._waits_s, default=0.0)


def _finding_of(suspect: Suspect, first: Looked) -> Finding:
    kind = suspect.key.kind
    return Finding(
        kind,
        OF_DISCOVERY[kind],
        suspect.owner,
        suspect.entry,
        format_time(first.at),
        suspect.detail,
    )
