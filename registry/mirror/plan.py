"""What a mirror does next, given all that is known. No I/O and no clock.

What is known of an owner is its `Standing`; what it asks for is one step, after which the next is
planned from its new standing:

    its card is live    register its files -> as the mode says: rewrite or publish the card
    its card is gone    withdraw it from the second store -> after a while, unregister the files

Nothing is unregistered before its card is gone for `linger_s`. Many cards that a listing finds gone
together may mean that the store was emptied, and not that the workers left: they are kept for
`brake_max_s`, unless so many come back that they are few. Those that were seen leaving, one by one,
are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from registry.core.records import Owner
from registry.mirror.settings import MirrorMode, MirrorSettings

UNREGISTERED_AT_ONCE = 200
"""How many owners a plan unregisters at most; the next one goes on."""


class Step(StrEnum):
    """What is done for an owner."""

    WITHDRAW = "withdraw"
    REGISTER = "register"
    REWRITE = "rewrite"
    PUBLISH = "publish"
    UNREGISTER = "unregister"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an owner.

    Args:
        is_live: whether it has a live card.
        wanted: the digest of the files that the card names; None: there is no card, or none that
            is mirrored.
        as_it_is: it is the card of a worker that registered its files itself.
        held: the digest of the files that were registered; "" for what an earlier mirror did; None:
            nothing is registered.
        points_here: whether the live card names the URLs under which the files were registered.
        version: which card is live, and `passed` which one is published in the second store.
        gone_at: since when there is no live card, and `by_listing`: nobody saw it leave.
        retry_at: nothing is done before, after `failures` in a row.
        is_busy: a step is under way.
    """

    is_live: bool = False
    wanted: str | None = None
    as_it_is: bool = False
    held: str | None = None
    points_here: bool = False
    version: str = ""
    passed: str | None = None
    gone_at: float = 0.0
    by_listing: bool = False
    retry_at: float = 0.0
    failures: int = 0
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What is due, the most urgent first.

    `next_at` is when something else falls due if nothing changes. `held_back` counts owners that
    only the brake keeps. It is `settled` when nothing is left to do or to wait for, except for what
    failed and for the brake.
    """

    steps: tuple[tuple[Step, Owner], ...]
    next_at: float
    held_back: int
    settled: bool


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What a plan depends on besides the standings."""

    mode: MirrorMode
    linger_s: float
    brake_share: float = 0.3
    brake_min: int = 3
    brake_max_s: float = 900.0

    @classmethod
    def of(cls, settings: MirrorSettings) -> MirrorPolicy:
        return cls(
            settings.mode,
            settings.linger_s,
            settings.brake_share,
            settings.brake_min,
            settings.brake_max_s,
        )


def make_plan(standings: Mapping[Owner, Standing], now: float, policy: MirrorPolicy) -> MirrorPlan:
    """What is due now."""
    is_braked = _is_braked(standings, policy)
    due: list[tuple[Step, Owner]] = []
    next_at, held_back, settled = math.inf, 0, True
    for owner, standing in standings.items():
        if standing.is_busy:
            settled = False
            continue
        step = find_step(standing, policy.mode)
        if step is None:
            continue
        at, is_held = standing.retry_at, False
        if step is Step.UNREGISTER:
            is_braked_here = is_braked and standing.by_listing
            stay_s = max(policy.linger_s, policy.brake_max_s if is_braked_here else 0)
            is_held = is_braked_here and standing.gone_at + policy.linger_s <= now < (
                standing.gone_at + stay_s
            )
            at = max(at, standing.gone_at + stay_s)
        held_back += is_held
        settled = settled and at > now and (is_held or standing.failures > 0)
        if at <= now:
            due.append((step, owner))
        else:
            next_at = min(next_at, at)
    due.sort(key=lambda item: (_ORDER[item[0]], standings[item[1]].failures))
    kept = [item for item in due if item[0] is not Step.UNREGISTER]
    ended = [item for item in due if item[0] is Step.UNREGISTER]
    if len(ended) > UNREGISTERED_AT_ONCE:
        next_at = now
    steps = tuple(kept + ended[:UNREGISTERED_AT_ONCE])
    return MirrorPlan(steps, next_at, held_back, settled)


def find_step(standing: Standing, mode: MirrorMode) -> Step | None:
    """What an owner asks for, whenever that is."""
    if not standing.is_live:
        if standing.passed is not None:
            return Step.WITHDRAW
        return None if standing.held is None else Step.UNREGISTER
    if standing.wanted is not None and standing.held != standing.wanted:
        return Step.REGISTER
    is_settled = standing.wanted is not None or standing.as_it_is
    if mode is MirrorMode.BRIDGE and is_settled and standing.passed != standing.version:
        return Step.PUBLISH
    if mode is MirrorMode.REWRITE and standing.wanted is not None and not standing.points_here:
        return Step.REWRITE
    return None


_ORDER = {step: number for number, step in enumerate(Step)}


def _is_braked(standings: Mapping[Owner, Standing], policy: MirrorPolicy) -> bool:
    """Whether so many owners are gone without anybody having seen it that it may not be true."""
    known = [each for each in standings.values() if each.is_live or each.held is not None]
    unseen = sum(not each.is_live and each.by_listing for each in known)
    return unseen >= policy.brake_min and unseen > policy.brake_share * len(known)
