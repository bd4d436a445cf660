"""Ports for programs that have to be told theirs.

A port of the system's choice may be anybody's by the time that a program listens on it: the system
goes on to give it to connections. The ports here are below those that it gives, and no two
processes hand out the same.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

FIRST = 20_000
LAST = 2**15 - 1
"""The largest that Dynamo takes for a worker's files, since it reads the number as one of 16 bits
with a sign. Linux gives connections ports from the next one on, other systems from further up."""
BLOCK = 133
"""Ports of one process. They come again in turn, when whoever had one is long gone."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that is left to the caller."""
    return next(_ports)


def _free() -> Iterator[int]:
    folder = Path(tempfile.gettempdir(), f"metadata-registry-ports-{os.geteuid()}")
    folder.mkdir(exist_ok=True)
    for first in range(FIRST, LAST + 2 - BLOCK, BLOCK):
        # The lock lasts as long as the process.
        with (folder / str(first)).open("wb") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in cycle(range(first, first + BLOCK)):
                with suppress(OSError):
                    socket.create_server(("127.0.0.1", port)).close()
                    yield port
    raise RuntimeError(f"other processes have all ports; their locks are in {folder}")


_ports = _free()
