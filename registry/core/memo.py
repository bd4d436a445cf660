"""What is remembered of requests, within a number of bytes whatever they ask for."""

from __future__ import annotations

import sys
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

SLOT_BYTES = 100
"""About what a dictionary takes for one name, beside the name and the value themselves."""


class Memo(dict[K, V]):
    """A dictionary that stays below a number of bytes: what has no room makes it forget all.

    To look something up costs what it costs with any dictionary. Put things in with `keep` only.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.used_bytes = 0

    def keep(self, name: K, value: V, *parts: object) -> None:
        """Remember a value. `parts` are the objects that the name and the value are made of, as
        far as nobody else has them."""
        size = SLOT_BYTES + sum(map(sys.getsizeof, (name, value, *parts)))
        if self.used_bytes + size > self.max_bytes:
            self.clear()
        if size <= self.max_bytes:
            self.used_bytes += size
            self[name] = value

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self.used_bytes = 0
