"""A long random life of a small fleet, beside a model of a few lines.

Owners register, renew, drain, restart under their names, leave and die; administrators remove
models; the clock is moved; the sweeper comes or does not. After every step the tables hold what the
model says. Nobody is ever ended before its time; and when all have fallen silent, what had a lease
is gone within a bounded time and the audit finds nothing above a note.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from registry.core.records import ArtifactKey, Drained, Owner, OwnerState, Registered, Renewed
from registry.errors import Conflict, LeaseGone, Superseded
from tests.fleet import (
    DAY,
    GRACE,
    HOUR,
    LEASE,
    MINUTE,
    NOTES,
    OF_TIME,
    SECOND,
    World,
    key,
    worker,
)
from tests.support import assert_sound, checksum

INSTANCES = range(1, 5)
OWNERS = [worker(number, lora) for number in INSTANCES for lora in (None, "tuned")]
KEYS = [key("config.json"), key("tokenizer.json"), key("config.json", suffix="tuned")]
CONTENTS = [b"1", b"2"]
BRAKE_MAX = 15 * MINUTE

owners = st.sampled_from(OWNERS)
files = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(CONTENTS), max_size=2)


@dataclass
class Life:
    """An owner that lives: what it holds, and when it was last heard of, in real time."""

    lease: int | None
    heard_at: int
    held: dict[ArtifactKey, bytes] = field(default_factory=dict)
    leaves_at: int | None = None
    """When it is past its drain deadline."""


class LongRun(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="metadata-registry-tests-"))
        self.world = World(self.folder / "registry.db")
        # Tombstones stay, so that who was replaced is refused to the end.
        self.world.adopt(tombstone_retention_ms=3650 * DAY, journal_max_rows=20)
        self.time = 0
        self.swept_at = 0
        self.longest_gap = 0
        """Between two sweeps. Who drains stays longer by that: none of it counts, nor does what it
        had of it before it said that it would leave."""
        self.alive: dict[Owner, Life] = {}
        self.named: set[int] = set()
        """The instances that gave the worker's name, and were not replaced."""
        self.replaced: set[int] = set()
        self.world.sweep()

    def teardown(self) -> None:
        try:
            self.fall_silent()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    # What owners do

    @rule(
        owner=owners,
        lines=files,
        lease=st.sampled_from([LEASE, LEASE, SECOND, 10 * MINUTE, None]),
        named=st.booleans(),
        in_place=st.booleans(),
    )
    def register(
        self,
        owner: Owner,
        lines: dict[ArtifactKey, bytes],
        lease: int | None,
        named: bool,
        in_place: bool,
    ) -> None:
        outcome = self.world.hold(
            owner,
            lines,
            lease=lease,
            worker_name="rank-0" if named else None,
            path="/models" if in_place else None,
        )
        if owner.instance_id in self.replaced:
            assert type(outcome) is Superseded
            return
        older = self.named - {owner.instance_id} if named else set()
        others = {
            each: life
            for each, life in self.alive.items()
            if each != owner and each.instance_id not in older
        }
        if any(
            life.held.get(each, content) != content
            for life in others.values()
            for each, content in lines.items()
        ):
            assert type(outcome) is Conflict
            return
        assert isinstance(outcome, Registered)
        mine = self.alive.get(owner) or Life(lease, self.time)
        mine.lease, mine.heard_at, mine.leaves_at = lease, self.time, None
        mine.held.update(lines)
        self.alive = others | {owner: mine}
        self.replaced |= older
        if named:
            self.named = {owner.instance_id}

    @rule(owner=owners)
    def renew(self, owner: Owner) -> None:
        (outcome,) = self.world.renew(owner)
        life = self.alive.get(owner)
        if life is not None:
            assert isinstance(outcome, Renewed)
            assert outcome.refs == len(life.held)
            life.heard_at = self.time
        else:
            assert type(outcome) is self.refusal(owner)

    @rule(owner=owners, deadline=st.sampled_from([SECOND, 5 * MINUTE, 20 * MINUTE]))
    def drain(self, owner: Owner, deadline: int) -> None:
        outcome = self.world.drain(owner, deadline)
        if owner in self.alive:
            assert isinstance(outcome, Drained)
            self.alive[owner].leaves_at = self.time + deadline
        else:
            assert type(outcome) is self.refusal(owner)

    def refusal(self, owner: Owner) -> type:
        return Superseded if owner.instance_id in self.replaced else LeaseGone

    @rule(owner=owners)
    def unregister(self, owner: Owner) -> None:
        receipt = self.world.unregister(owner)
        life = self.alive.pop(owner, None)
        assert receipt.released == (len(life.held) if life else 0)

    @rule(suffix=st.sampled_from(["_base", "tuned"]))
    def remove(self, suffix: str) -> None:
        self.world.remove("tiny", suffix)
        for life in self.alive.values():
            life.held = {each: life.held[each] for each in life.held if each.suffix != suffix}

    @rule(content=st.sampled_from([*CONTENTS, b"never registered"]))
    def upload(self, content: bytes) -> None:
        self.world.upload(content)

    # What the time does

    @rule(passed=st.sampled_from([SECOND, 20 * SECOND, 95 * SECOND, 6 * MINUTE, HOUR]))
    def nobody_sweeps(self, passed: int) -> None:
        """Until 100 s that is a pause, and from then on an outage."""
        self.pass_time(passed)

    @rule(
        passed=st.sampled_from([MINUTE, 3 * MINUTE, 8 * MINUTE]),
        renewing=st.sets(owners),
    )
    def live_on(self, passed: int, renewing: set[Owner]) -> None:
        """Some renew, some are silent, and a sweep comes every minute."""
        for _ in range(passed // MINUTE):
            self.pass_time(MINUTE)
            for owner in sorted(renewing & self.alive.keys(), key=str):
                self.renew(owner)
            self.sweep()

    @rule(jump=st.sampled_from([HOUR, -HOUR, 10 * MINUTE, -10 * MINUTE, DAY]))
    def move_the_clock(self, jump: int) -> None:
        self.world.clock.now += jump
        self.sweep()

    @rule(by_command=st.booleans())
    def sweep(self, by_command: bool = False) -> None:
        """Nobody is ended before its lease and the grace are over in real time, nor who drains
        before its deadline."""
        self.longest_gap = max(self.longest_gap, self.time - self.swept_at)
        self.swept_at = self.time
        for each in self.world.sweep(release_brake=by_command).ended:
            life = self.alive.pop(each.owner)
            if each.state is OwnerState.EXPIRED:
                assert life.lease is not None
                assert self.time >= life.heard_at + life.lease + GRACE
            else:
                assert life.leaves_at is not None
                assert self.time >= life.leaves_at

    @rule()
    def prune(self) -> None:
        self.world.prune()

    def pass_time(self, passed: int) -> None:
        self.time += passed
        self.world.clock.now += passed

    # What must hold

    @invariant()
    def the_tables_agree_with_the_model(self) -> None:
        assert self.world.live() == self.alive.keys()
        rows = self.world.sql(
            "SELECT instance_id, lora_slug, slug, suffix, filename, checksum FROM holders"
        )
        assert sorted(rows) == sorted(
            (str(owner.instance_id), owner.lora_slug or "", *self.names(each), checksum(content))
            for owner, life in self.alive.items()
            for each, content in life.held.items()
        )
        held = {self.names(each) for life in self.alive.values() for each in life.held}
        assert set(self.world.sql("SELECT slug, suffix, filename FROM entries")) == held

    @staticmethod
    def names(each: ArtifactKey) -> tuple[str, str, str]:
        return (each.slug, each.suffix, each.filename)

    @invariant()
    def nothing_is_wrong_but_what_the_next_sweep_will_see_to(self) -> None:
        assert_sound(self.world.path)
        assert self.world.findings().keys() <= NOTES | OF_TIME

    def fall_silent(self) -> None:
        """What had a lease, or said that it would leave, is gone within a bounded time."""
        until = self.time + max([LEASE, *(life.lease or 0 for life in self.alive.values())])
        gap = max(self.longest_gap, self.time - self.swept_at)
        until += GRACE + BRAKE_MAX + 20 * MINUTE + gap
        while self.time < until:
            self.pass_time(90 * SECOND)
            self.sweep()
        assert all(life.lease is None for life in self.alive.values())
        assert all(life.leaves_at is None for life in self.alive.values())
        for _ in range(2):
            self.pass_time(HOUR)
            self.sweep()
            self.prune()
        self.the_tables_agree_with_the_model()
        kept = self.world.sql("SELECT DISTINCT blob_checksum FROM owner_refs WHERE path IS NULL")
        assert sorted(self.world.sql("SELECT checksum FROM blobs")) == sorted(kept)
        self.world.assert_healthy()


def test_a_long_random_life_leaks_nothing_and_ends_nobody_before_its_time() -> None:
    few = settings(max_examples=max(1, settings().max_examples // 4))
    run_state_machine_as_test(LongRun, settings=few)
