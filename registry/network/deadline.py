"""The time that is left for everything that a block sends and receives without asyncio."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Bounds everything that the block sends and receives without asyncio."""
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left(timeout: float | None) -> float:
    """How long a step may take. Raises TimeoutError when nothing is left."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline is over")
    return left if timeout is None else min(left, timeout)
