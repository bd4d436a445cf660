"""One statement of SQL that reads, for people who look into a registry.

It runs in a process of its own that can be ended at any moment and may take only so much memory:
SQLite cannot be interrupted within a function, and its limits count for a whole process. What runs
there is adhoc_sql_process.py; here it is started, listened to and ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from registry.errors import (
    Busy,
    DatabaseRefused,
    Invalid,
    Refused,
    RegistryError,
    StorageUnavailable,
)
from registry.store.query_result import ANSWER_MAX_BYTES, QueryResult
from registry.store.sql import Row
from registry.store.sqlite.file_access import may_write
from registry.store.sqlite.inspect import locate, opened

MEMORY_MAX_BYTES = 512 << 20
"""As much memory SQLite may take for a statement, sorting included."""

_START_S = 60.0
RAISED = {each.code: each for each in (Busy, DatabaseRefused, Invalid, Refused, StorageUnavailable)}
"""The errors that the process tells by their codes."""


def run_query(
    url: str,
    query: str,
    *,
    timeout_s: float,
    max_rows: int,
    max_bytes: int = ANSWER_MAX_BYTES,
) -> QueryResult:
    """Run one statement that reads.

    Raises:
        Refused: it would write, attach, load or change settings, or it took too much time or
            memory, or answered too much.
        Invalid: it is no statement that SQLite understands, or more than one.
        DatabaseRefused: there is no registry at the URL.
        RegistryError: the database cannot be read.
    """
    path = locate(url)
    has_log = path.with_name(path.name + "-wal").exists()
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__name__}_process"],
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
            process.stdin.write(json.dumps([url, query, timeout_s, max_rows, max_bytes]).encode())
            process.stdin.close()
        answer = _read(process.stdout)
        first = next(answer, ("died", None))
        if first[0] != "ready":
            raise RAISED.get(first[0], StorageUnavailable)(
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
        raise too_much_memory()
    finally:
        timer.stop()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        if not has_log and may_write(path):
            _remove_log(path)


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
                raise RAISED.get(kind, StorageUnavailable)(content)
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
    """That SQLite ran out of the memory that it may take."""
    return Refused(
        f"The statement needs more than {MEMORY_MAX_BYTES >> 20} MiB of memory and was ended. Ask "
        "for less at a time."
    )


def _remove_log(path: Path) -> None:
    """A read-only connection leaves an empty log behind; one that may write takes it away."""
    with suppress(RegistryError), opened(path, "rw") as connection:
        connection.execute("PRAGMA schema_version").fetchall()
