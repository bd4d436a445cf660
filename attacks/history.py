"""What happened could have happened one after the other: a recorded history is checked for an order
in which every answer is the right one (linearizability, after Wing and Gong)."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from attacks.arena import (
    NO_ANSWER,
    Caller,
    Findings,
    fetch,
    in_threads,
    line,
    owner,
    register,
    service,
    upload,
)

CALLERS = 6
ROUNDS = 40
KEYS = 60
CONTENTS = [b"one", b"two", b"three"]

State = tuple[bytes | None, frozenset[int]]
"""What a key has, and who holds it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call on one key, with the times between which it took effect."""

    began: float
    ended: float
    what: str
    who: int
    given: bytes | None
    answer: object

    def step(self, state: State) -> State | None:
        """The state after this call in a state, or None: it would have been answered otherwise."""
        content, holders = state
        if self.what == "read":
            return state if self.answer == content else None
        if self.what == "register":
            refused = content not in (None, self.given) and holders != {self.who}
            if refused != (self.answer == 409):
                return None
            return state if refused else (self.given, holders | {self.who})
        released = self.who in holders
        if self.answer != int(released):
            return None
        rest = holders - {self.who}
        return (content if rest else None, rest)


def is_linearizable(calls: list[Call]) -> bool:
    """Whether there is an order that agrees with the times and the answers."""
    calls = sorted(calls, key=lambda call: call.began)
    everything = (1 << len(calls)) - 1
    seen: set[tuple[int, State]] = set()
    pending: list[tuple[int, State]] = [(0, (None, frozenset()))]
    while pending:
        done, state = pending.pop()
        if done == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        first_end = float("inf")
        for index, call in enumerate(calls):
            if done >> index & 1:
                continue
            if call.began > first_end:
                break
            first_end = min(first_end, call.ended)
            after = call.step(state)
            if after is not None:
                pending.append((done | 1 << index, after))
    return False


def linearizable(folder: Path, findings: Findings) -> None:
    """Registrations, releases and reads of the same keys by several callers, with two processes."""
    histories: dict[int, list[Call]] = {key: [] for key in range(KEYS)}
    lock = threading.Lock()
    with service(folder, findings, workers=2) as server:
        for content in CONTENTS:
            upload(Caller(server), content)
        barrier = threading.Barrier(CALLERS)

        def work(number: int) -> None:
            rng, caller = random.Random(), Caller(server)
            for key in range(KEYS):
                barrier.wait(60)
                for _ in range(ROUNDS):
                    what, given = rng.choice(["read", "read", "register", "release"]), None
                    me = key * 100 + number
                    began = time.monotonic()
                    try:
                        if what == "read":
                            status, said = fetch(caller, f"k{key}", "f")
                            answer: object = said if status == 200 else None
                            findings.check(status in (200, 404), f"a read gets {status}")
                        elif what == "register":
                            given = rng.choice(CONTENTS)
                            status, said = register(caller, me, line(f"k{key}", "f", given))
                            answer = status
                            findings.check(status in (200, 409), f"{status}: {said!r}")
                        else:
                            said = caller.call("DELETE", f"/v1/owners/{_path(me)}")[1]
                            answer = said.count(b'"filename"')
                    except NO_ANSWER as error:
                        findings.fail(f"no answer: {error}")
                        continue
                    call = Call(began, time.monotonic(), what, me, given, answer)
                    with lock:
                        histories[key].append(call)
                    findings.count("calls")

        in_threads(CALLERS, work)
    for key, calls in histories.items():
        findings.check(
            is_linearizable(calls), f"the history of key {key} has no order: {calls[:20]}"
        )
        findings.count("histories")


def _path(number: int) -> str:
    named = owner(number)
    return f"n/c/e/{named['instance_id']}/_base"
