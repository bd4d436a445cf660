"""Work in a thread tells whoever watches over it that it comes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_current = threading.local()


def step() -> None:
    """Tell that the work of this thread has come on. Does nothing where nobody watches."""
    on_step: Callable[[], None] | None = getattr(_current, "on_step", None)
    if on_step is not None:
        on_step()


@contextmanager
def watched(on_step: Callable[[], None]) -> Iterator[None]:
    """Call `on_step` at each step of the work in the block."""
    _current.on_step = on_step
    try:
        yield
    finally:
        _current.on_step = None
