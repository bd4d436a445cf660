"""Whether a history of calls that overlapped could have come from one model that was asked one call
after another (Wing and Gong)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

OPEN = math.inf
"""The end of what may have happened at any time since, or not at all."""


@dataclass(frozen=True, slots=True)
class Call:
    """What an instance asked for between two moments, and what it was told."""

    began: float
    ended: float
    kind: str
    instance: int = 0
    worker: str = ""
    told: object = None


class Model(NamedTuple):
    """One model's holders, and the instances whose places newer ones have taken."""

    held: frozenset[tuple[int, str]] = frozenset()
    superseded: frozenset[int] = frozenset()

    def after(self, call: Call) -> tuple[Model, object]:
        """What a call makes of it, and what it answers."""
        one = (call.instance, call.worker)
        if call.kind == "get":
            return self, bool(self.held)
        if call.kind == "renew":
            return self, one in self.held
        if call.kind == "detach":
            return self._replace(held=self.held - {one}), True
        if call.instance in self.superseded:
            return self, False
        older = {each for each in self.held if each[1] == call.worker and each != one}
        gone = self.superseded | {instance for instance, _ in older}
        return Model(self.held - older | {one}, gone), True


def is_linearizable(calls: Sequence[Call]) -> bool:
    """Whether some order of all calls that ended explains every answer. Who ended before another
    began comes first."""
    calls = sorted(calls, key=lambda call: call.began)
    ended = frozenset(number for number, call in enumerate(calls) if call.ended != OPEN)
    seen = set()
    pending = [(frozenset[int](), Model())]
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        done, model = state
        if ended <= done:
            return True
        first_end = min(calls[number].ended for number in ended - done)
        for number, call in enumerate(calls):
            if call.began > first_end:
                break
            if number not in done:
                after, answer = model.after(call)
                if call.ended == OPEN or answer == call.told:
                    pending.append((done | {number}, after))
    return False
