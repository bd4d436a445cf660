"""Whether a newer instance has taken the place of a worker."""

from __future__ import annotations

from registry.client.problem_reporter import ProblemReporter
from registry.core.records import Owner
from registry.errors import Superseded


class Supersession:
    """Notes that a newer instance is there, and reports it once.

    `error` is what the registry said of it; None as long as there is none.
    """

    def __init__(self, owner: Owner, problems: ProblemReporter) -> None:
        self._owner = owner
        self._problems = problems
        self.error: Superseded | None = None

    @property
    def is_noted(self) -> bool:
        return self.error is not None

    def note(self, error: Superseded) -> None:
        """Note that a newer instance is there. The renewal thread withdraws what is left."""
        if self.error is None:
            self.error = error
            self._problems.report(self._owner, error)

    def check(self) -> None:
        """Raise Superseded if a newer instance is there."""
        if self.error is not None:
            raise self.error
