"""One statement that somebody typed, run in a process of its own: it can be ended at any moment,
and may take only so much memory. A module of the engine is what runs there; here it is started,
listened to and ended.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

import msgspec

from registry.errors import (
    Busy,
    DatabaseRefused,
    Invalid,
    Refused,
    RegistryError,
    StorageUnavailable,
)
from registry.store.query_result import QueryResult
from registry.store.sql import Row

MEMORY_MAX_BYTES = 512 << 20
"""As much memory a statement may take in that process, sorting included."""

_START_S = 60.0
_RAISED = {
    each.code: each for each in (Busy, DatabaseRefused, Invalid, Refused, StorageUnavailable)
}
"""The errors that the process tells by their codes."""


def run_in_process(
    module: str, url: str, query: str, *, timeout_s: float, max_rows: int, max_bytes: int
) -> QueryResult:
    """What a statement answers that the module runs.

    Raises:
        Refused: it took too much time or memory.
        RegistryError: what the process tells.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    timer = _Timer(process)
    try:
        timer.start(_START_S)
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            question = [url, query, timeout_s, max_rows, max_bytes]
            process.stdin.write(json.dumps(question).encode())
            process.stdin.close()
        answer = _read(process.stdout)
        first = next(answer, ("died", None))
        if first[0] != "ready":
            raise _RAISED.get(first[0], StorageUnavailable)(
                first[1] or "The process that runs the statement could not be started."
            )
        timer.start(timeout_s)
        result = _gather(answer)
        if result is not None:
            return result
        if timer.is_over.is_set():
            raise Refused(
                f"The statement ran longer than {timeout_s:g} s and was ended (--timeout-s)."
            )
        if process.wait() > 0:  # Its own exit code: nobody ended it.
            raise StorageUnavailable("The process that ran the statement failed. Report this.")
        raise too_much_memory()
    finally:
        timer.stop()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class _Timer:
    """Ends a process when its time is over."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.is_over = threading.Event()
        self._process = process
        self._timer: threading.Timer | None = None

    def start(self, seconds: float) -> None:
        self.stop()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def _end(self) -> None:
        self.is_over.set()
        self._process.kill()


def _gather(answer: Iterator[tuple[str, Any]]) -> QueryResult | None:
    """What a statement answered, or None: its process ended before it had said all."""
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    for kind, content in answer:
        match kind:
            case "columns":
                columns = tuple(content)
            case "rows":
                rows += map(tuple, content)
            case "end":
                return QueryResult(columns, rows, content)
            case _:
                raise _RAISED.get(kind, StorageUnavailable)(content)
    return None


def _read(pipe: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """What the process says, one after the other, until it ends."""
    while len(size := pipe.read(4)) == 4:
        message = pipe.read(int.from_bytes(size))
        if len(message) < int.from_bytes(size):
            return
        kind, content = msgspec.msgpack.decode(message)
        yield kind, content


def too_much_memory() -> Refused:
    """That a statement took more memory than it may."""
    return Refused(
        f"The statement needs more than {MEMORY_MAX_BYTES >> 20} MiB of memory and was ended. Ask "
        "for less at a time."
    )


# In that process


class Asked(NamedTuple):
    """The question on standard input."""

    url: str
    query: str
    timeout_s: float
    max_rows: int
    max_bytes: int


def asked() -> Asked:
    """What is asked of this process."""
    return Asked(*json.load(sys.stdin))


def say(kind: str, content: object) -> None:
    """Tell a part of the answer."""
    out = sys.stdout.buffer
    message = msgspec.msgpack.encode((kind, content))
    out.write(len(message).to_bytes(4) + message)
    if kind != "rows":
        out.flush()


def say_failed(error: RegistryError) -> None:
    """Tell why there is no answer."""
    say(error.code if error.code in _RAISED else StorageUnavailable.code, error.detail)


def limit(what: int, most: int) -> None:
    """Bound what this process may take of a resource."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
