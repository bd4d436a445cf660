"""The plan of a mirror is a function of what is known: it converges, repeats nothing, and lets
nobody go too early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.core.records import Owner
from registry.mirror.plan import (
    UNREGISTERED_AT_ONCE,
    MirrorPolicy,
    Standing,
    Step,
    find_step,
    make_plan,
)
from registry.mirror.settings import MirrorMode

NOW = 10_000.0
DIGESTS = st.sampled_from(["a", "b"])
OWNERS = [Owner("n", "c", "e", number) for number in range(12)]

modes = st.sampled_from(list(MirrorMode))
policies = st.builds(MirrorPolicy, modes, st.sampled_from([0.0, 5.0, 60.0]))


@st.composite
def standing(draw: st.DrawFn) -> Standing:
    is_live = draw(st.booleans())
    wanted = draw(st.none() | DIGESTS) if is_live else None
    return Standing(
        is_live=is_live,
        wanted=wanted,
        as_it_is=is_live and wanted is None and draw(st.booleans()),
        held=draw(st.none() | st.just("") | DIGESTS),
        points_here=draw(st.booleans()) and is_live,
        version=draw(DIGESTS) if is_live else "",
        passed=draw(st.none() | DIGESTS),
        gone_at=NOW - draw(st.sampled_from([0.0, 4.0, 59.0, 100.0, 899.0, 901.0])),
        by_listing=draw(st.booleans()),
        retry_at=draw(st.sampled_from([0.0, NOW - 1, NOW + 1])),
        failures=draw(st.integers(0, 3)),
        is_busy=draw(st.booleans()),
    )


fleets = st.dictionaries(st.sampled_from(OWNERS), standing(), max_size=len(OWNERS))


def done(step: Step, before: Standing) -> Standing:
    """What is known when a step has succeeded."""
    after = replace(before, retry_at=0.0, failures=0)
    match step:
        case Step.REGISTER:
            return replace(after, held=before.wanted)
        case Step.REWRITE:
            return replace(after, points_here=True)
        case Step.PUBLISH:
            return replace(after, passed=before.version)
        case Step.WITHDRAW:
            return replace(after, passed=None)
        case Step.UNREGISTER:
            return replace(after, held=None)


@given(fleets, policies)
def test_doing_what_is_planned_ends_in_a_plan_of_nothing(
    fleet: dict[Owner, Standing], policy: MirrorPolicy
) -> None:
    now, steps = NOW, 0
    fleet = {owner: replace(each, is_busy=False) for owner, each in fleet.items()}
    while True:
        plan = make_plan(fleet, now, policy)
        for step, owner in plan.steps:
            fleet[owner] = done(step, fleet[owner])
        steps += len(plan.steps)
        assert steps <= 4 * len(OWNERS)
        if not plan.steps:
            if plan.next_at == math.inf:
                break
            assert plan.next_at > now
            now = plan.next_at
    assert plan.settled
    for each in fleet.values():
        if each.is_live:
            assert each.wanted is None or each.held == each.wanted
        else:
            assert each.held is None
            assert each.passed is None


@given(fleets, policies)
def test_a_plan_names_each_owner_once_and_none_that_is_busy_or_waits(
    fleet: dict[Owner, Standing], policy: MirrorPolicy
) -> None:
    plan = make_plan(fleet, NOW, policy)
    named = [owner for _, owner in plan.steps]
    assert len(named) == len(set(named))
    for step, owner in plan.steps:
        assert not fleet[owner].is_busy
        assert fleet[owner].retry_at <= NOW
        assert step is find_step(fleet[owner], policy.mode)
    assert make_plan(fleet, NOW, policy) == plan


@given(fleets, policies)
def test_nobody_with_a_live_card_is_unregistered_and_nobody_before_the_linger_is_over(
    fleet: dict[Owner, Standing], policy: MirrorPolicy
) -> None:
    for step, owner in make_plan(fleet, NOW, policy).steps:
        if step is Step.UNREGISTER:
            assert not fleet[owner].is_live
            assert fleet[owner].gone_at + policy.linger_s <= NOW
            assert fleet[owner].passed is None


@given(fleets, policies)
def test_only_a_bridge_touches_a_second_store_and_only_a_rewriting_mirror_a_card(
    fleet: dict[Owner, Standing], policy: MirrorPolicy
) -> None:
    fleet = {owner: replace(each, passed=None) for owner, each in fleet.items()}
    steps = {step for step, _ in make_plan(fleet, NOW, policy).steps}
    if policy.mode is not MirrorMode.REWRITE:
        assert Step.REWRITE not in steps
    if policy.mode is not MirrorMode.BRIDGE:
        assert not steps & {Step.PUBLISH, Step.WITHDRAW}


@given(fleets, policies)
def test_many_that_nobody_saw_leaving_are_kept_until_the_brake_ends(
    fleet: dict[Owner, Standing], policy: MirrorPolicy
) -> None:
    known = [each for each in fleet.values() if each.is_live or each.held is not None]
    unseen = [each for each in known if not each.is_live and each.by_listing]
    is_braked = len(unseen) >= 3 and len(unseen) > 0.3 * len(known)
    for step, owner in make_plan(fleet, NOW, policy).steps:
        if step is Step.UNREGISTER and is_braked and fleet[owner].by_listing:
            assert fleet[owner].gone_at + 900 <= NOW


LIVE = Standing(is_live=True, wanted="a", held="a", points_here=True, version="v", passed="v")
GONE = Standing(held="a", gone_at=NOW - 61)


def fleet_of(*standings: Standing) -> dict[Owner, Standing]:
    return {Owner("n", "c", "e", number): each for number, each in enumerate(standings)}


UNSEEN = replace(GONE, by_listing=True)
KEPT: dict[str, tuple[Mapping[Owner, Standing], int, int]] = {
    "all seen leaving": (fleet_of(*[GONE] * 10), 10, 0),
    "an emptied store": (fleet_of(*[UNSEEN] * 10), 0, 10),
    "two of two": (fleet_of(UNSEEN, UNSEEN), 2, 0),
    "three of nine": (fleet_of(*[UNSEEN] * 3, *[LIVE] * 6), 0, 3),
    "three of ten": (fleet_of(*[UNSEEN] * 3, *[LIVE] * 7), 3, 0),
    "most came back": (fleet_of(*[UNSEEN] * 3, *[LIVE] * 27), 3, 0),
    "some seen, some not": (fleet_of(*[UNSEEN] * 4, *[GONE] * 2, *[LIVE] * 4), 2, 4),
    "not yet due": (fleet_of(*[replace(UNSEEN, gone_at=NOW - 5)] * 10), 0, 0),
    "braked for long enough": (fleet_of(*[replace(UNSEEN, gone_at=NOW - 900)] * 10), 10, 0),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_brake_holds_what_may_not_be_true(name: str) -> None:
    fleet, unregistered, held_back = KEPT[name]
    plan = make_plan(fleet, NOW, MirrorPolicy(MirrorMode.COPY, 60.0))
    assert [step for step, _ in plan.steps] == [Step.UNREGISTER] * unregistered
    assert plan.held_back == held_back


def test_a_card_that_fails_waits_behind_those_that_do_not() -> None:
    fresh = Standing(is_live=True, wanted="a", version="v")
    fleet = fleet_of(replace(fresh, failures=2), fresh, replace(fresh, failures=1), GONE)
    steps = make_plan(fleet, NOW, MirrorPolicy(MirrorMode.COPY, 60.0)).steps
    assert [(step, owner.instance_id) for step, owner in steps] == [
        (Step.REGISTER, 1),
        (Step.REGISTER, 2),
        (Step.REGISTER, 0),
        (Step.UNREGISTER, 3),
    ]


def test_what_ends_after_a_mass_disappearance_ends_at_a_bounded_rate() -> None:
    fleet = fleet_of(*[GONE] * (UNREGISTERED_AT_ONCE + 5))
    plan = make_plan(fleet, NOW, MirrorPolicy(MirrorMode.COPY, 60.0))
    assert len(plan.steps) == UNREGISTERED_AT_ONCE
    assert plan.next_at == NOW
    assert not plan.settled
