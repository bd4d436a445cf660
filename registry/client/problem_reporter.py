"""Tells the program that has a worker what became of its models.

Each call is in a thread of its own: what is called may take for ever, or raise.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable

from registry.client.worker_log import log_safely
from registry.core import background
from registry.core.records import Owner
from registry.errors import RegistryError

OnProblem = Callable[[Owner, RegistryError], None]
"""Called from a thread of its own when a model cannot be kept: it was superseded, or its files are
refused. In both cases its card is withdrawn. What it raises is logged; however long it takes,
renewals go on."""


class ProblemReporter:
    """Logs why models are withdrawn, and calls `on_problem` for each."""

    def __init__(self, on_problem: OnProblem | None) -> None:
        self._on_problem = on_problem
        self._waiting: deque[tuple[Owner, RegistryError]] = deque()

    def report(self, owner: Owner, error: RegistryError) -> None:
        """Say that a model is withdrawn, and why."""
        log_safely(logging.WARNING, "%s is withdrawn: %s", owner, error)
        self._waiting.append((owner, error))
        self.deliver()

    def deliver(self) -> None:
        """Begin the calls that have not been begun yet. For any thread."""
        while self._on_problem is not None:
            try:
                problem = self._waiting.popleft()
            except IndexError:
                return
            try:
                call = functools.partial(self._call, self._on_problem, *problem)
                background.begin(call, "registry-problem")
            except RuntimeError:
                # No thread can be started now. The next renewal tries again.
                self._waiting.appendleft(problem)
                return

    def _call(self, on_problem: OnProblem, owner: Owner, error: RegistryError) -> None:
        try:
            on_problem(owner, error)
        except BaseException:
            log_safely(logging.ERROR, "on_problem failed for %s", owner, exc_info=True)
