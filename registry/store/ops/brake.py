"""The brake: expiry pauses when many owners lapse together (S10)."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.policy import Policy
from registry.store.engine import Connection
from registry.store.journal import write_service_event
from registry.store.ops.sweep_state import LeaseCounts, SweepState


@dataclass(frozen=True, slots=True)
class Brake:
    """The brake as one sweep judges it. With `tells`, its changes are journalled."""

    conn: Connection
    now: int
    policy: Policy
    tells: bool

    def judge(
        self, state: SweepState, counts: LeaseCounts, most: int, *, release: bool
    ) -> tuple[int, str | None]:
        """How many owners this sweep may end, `most` at the most, and why not that many.

        Engages the brake in `state`, or lets go of it. `release` is an operator's command.
        """
        self._engage_or_let_go(state, counts, release=release)
        if state.brake_engaged_at is None:
            return most, None
        if self.now - state.brake_engaged_at < self.policy.brake_max_ms:
            return 0, (
                f"the brake is engaged: {counts.lapsed} of {counts.leased} leased owners lapsed "
                "together; it ends when renewals return, with `sweep --release-brake`, or "
                f"{self.policy.brake_max_ms / 1000:g} s after it engaged"
            )
        allowed = min(most, self._bounded_rate(state))
        return allowed, f"the brake lets {allowed} owners expire in this sweep"

    def _engage_or_let_go(self, state: SweepState, counts: LeaseCounts, *, release: bool) -> None:
        policy, lapsed, leased = self.policy, counts.lapsed, counts.leased
        many = lapsed >= policy.brake_min_owners
        together = many and lapsed * 100 > policy.brake_percent * leased
        engaged = state.brake_engaged_at is not None
        if release:
            if engaged:
                self._tell("expiry_resumed", "released by command")
            state.brake_engaged_at, state.brake_released = None, together
        elif not together:
            if engaged:
                self._tell("expiry_resumed", f"only {lapsed} of {leased} leased owners are lapsed")
                floor = self.now - policy.lease_grace_ms
                state.expiry_floor_at = max(state.expiry_floor_at, floor)
            state.brake_engaged_at, state.brake_released = None, False
        elif counts.expirable and not engaged and not state.brake_released:
            self._tell("expiry_paused", f"{lapsed} of {leased} leased owners lapsed")
            state.brake_engaged_at, state.brake_leased = self.now, leased

    def _bounded_rate(self, state: SweepState) -> int:
        """What may expire after the longest pause: the brake's part of the fleet in a minute."""
        since_ms = max(self.now - (state.last_sweep_at or self.now), 0)
        elapsed_ms = min(since_ms, self.policy.sweep_interval_ms * 2)
        share = int(state.brake_leased * self.policy.brake_percent * elapsed_ms / (100 * 60_000))
        return max(self.policy.brake_min_owners, share)

    def _tell(self, kind: str, reason: str) -> None:
        if self.tells:
            write_service_event(self.conn, self.now, kind, reason)
