"""When a call is repeated, and after which pause. No I/O and no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass

from registry.errors import Busy, RegistryError, ServiceUnreachable, StorageUnavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a call is repeated that failed for a passing reason.

    At most `attempts` are made, and none is begun later than `give_up_after_s` after the first.
    """

    attempts: int = 4
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0
    give_up_after_s: float = 15.0

    def find_pause_s(self, attempt: int, elapsed_s: float, error: RegistryError) -> float | None:
        """The pause after the given attempt (counted from 1), or None: give up.

        Pauses double and are shortened by chance, so that callers that failed together do not
        come back together. A busy service says itself how long to wait at least.
        """
        if not isinstance(error, Busy | ServiceUnreachable | StorageUnavailable):
            return None
        pause_s = min(self.longest_pause_s, self.first_pause_s * 2 ** (attempt - 1))
        pause_s *= random.uniform(0.5, 1)
        if isinstance(error, Busy):
            pause_s = max(pause_s, error.retry_after_s)
        too_often = attempt >= self.attempts
        too_late = elapsed_s + pause_s > self.give_up_after_s
        return None if too_often or too_late else pause_s
