"""How the C library gives memory back to the system.

Left to itself, glibc keeps what was freed: once a large block was, it takes the next ones from its
heap, and every thread has a heap of its own. A service that loads files of 10 MiB in eight threads
would keep several times what it holds.
"""

from __future__ import annotations

import ctypes

MAPPED_FROM_BYTES = 1 << 20
"""Blocks of this size and more are mapped one by one, and go back when they are freed."""

HEAPS_MAX = 2

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt`, from glibc's malloc.h."""


def give_back() -> None:
    """Let freed memory go back to the system. Does nothing where the C library is not glibc."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        set_option(_M_TRIM_THRESHOLD, MAPPED_FROM_BYTES)
        set_option(_M_ARENA_MAX, HEAPS_MAX)
