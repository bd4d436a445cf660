"""Waiting for the lock of a SQLite database.

SQLite's own busy handler is unfair between processes, and there is none while a file is switched to
its write-ahead log. So the waiting is done here: short random pauses until the time is over.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from registry.core.stopping import SAID_AFTER_S
from registry.store.sqlite.errors import LOCKED, primary_code

T = TypeVar("T")

PAUSE_S = (0.0002, 0.002)
PAUSE_GROWTH = 1.2


def patiently(
    step: Callable[[], T],
    patience_s: float,
    *,
    on_wait: Callable[[], None],
    pause_max_s: float = PAUSE_S[1],
) -> T:
    """Run a step that may find the database locked, until so much time has passed.

    `on_wait` is called once, when the lock was waited for as long as a person should be told.
    Pauses grow up to `pause_max_s`.
    """
    began = time.monotonic()
    told = False
    shortest, longest = PAUSE_S
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - began
            if primary_code(error) not in LOCKED or waited_s > patience_s:
                raise
            if waited_s > SAID_AFTER_S and not told:
                told = True
                on_wait()
        time.sleep(random.uniform(shortest, longest))
        longest = min(longest * PAUSE_GROWTH, pause_max_s)
