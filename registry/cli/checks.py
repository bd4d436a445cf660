"""Checks that are made all at once, each in a thread that nobody waits for without end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum

from registry.cli.exit_codes import as_ours
from registry.core.background import NoThread, begin
from registry.errors import RegistryError

LIMIT_S = 10.0
"""How long all checks that are begun together may take."""


class CheckState(StrEnum):
    """What came of a check."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckLine:
    """What a check found, and what to do about it; nothing where all is well."""

    check: str
    state: CheckState
    found: str
    todo: str = ""

    @property
    def sentence(self) -> str:
        """Both, for people."""
        return f"{self.found} {self.todo}".rstrip()


Lines = Sequence[CheckLine]


@dataclass(frozen=True, slots=True)
class NamedCheck:
    """Something to be looked at, of which lines come; the first has this name if it fails."""

    name: str
    look: Callable[[], Lines]


def ok(check: str, found: str) -> CheckLine:
    return CheckLine(check, CheckState.OK, found)


def note(check: str, found: str, todo: str = "") -> CheckLine:
    return CheckLine(check, CheckState.NOTE, found, todo)


def failed(check: str, found: str, todo: str = "") -> CheckLine:
    return CheckLine(check, CheckState.FAILED, found, todo)


def skipped(check: str, found: str) -> CheckLine:
    return CheckLine(check, CheckState.SKIPPED, found)


def make_all(checks: Iterable[NamedCheck]) -> list[CheckLine]:
    """Make checks at the same time. One that raises, or has not ended in time, has failed."""
    ends_at = time.monotonic() + LIMIT_S
    begun = [(each.name, _begun(each)) for each in checks]
    return [line for name, future in begun for line in _lines_of(name, future, ends_at)]


def _begun(check: NamedCheck) -> Future[Lines]:
    try:
        return begin(check.look, f"registry-check-{check.name}")
    except NoThread as error:
        refused: Future[Lines] = Future()
        refused.set_exception(OSError(str(error)))
        return refused


def _lines_of(name: str, future: Future[Lines], ends_at: float) -> Lines:
    try:
        return future.result(max(0.0, ends_at - time.monotonic()))
    except TimeoutError:
        if not future.done():
            found = f"It did not answer within {LIMIT_S:g} s."
            return [failed(name, found, "See that it is reachable and does not hang.")]
        return [failed(name, "It did not answer in time.")]
    except (RegistryError, OSError, UnicodeEncodeError, MemoryError) as error:
        return [failed(name, as_ours(error).detail)]
