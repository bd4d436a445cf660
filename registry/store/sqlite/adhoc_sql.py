"""One statement of SQL that reads, for people who look into a registry.

It runs in a process of its own that can be ended at any moment and may take only so much memory:
SQLite cannot be interrupted within a function, and its limits count for a whole process. There the
connection is read-only three times over: it is opened so, told so, and what a statement may do is
asked one by one. Nothing is put on the disk, and what is answered is bounded as well.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from registry.store.sql import Row
from registry.store.sqlite.errors import primary_code, translate
from registry.store.sqlite.file_access import may_write
from registry.store.sqlite.inspect import (
    locate,
    look_through,
    no_registry,
    opened,
    reading,
)

LENGTH_MAX_BYTES = 256 << 20
"""Longest value that a statement may make. A copied file that is larger cannot be read whole."""

MEMORY_MAX_BYTES = 512 << 20
"""As much memory SQLite may take for a statement, sorting included."""

ANSWER_MAX_BYTES = 256 << 20
"""As much a statement may answer, with some bytes for each value and bytes as hex digits."""

_VALUE_BYTES = 56
_SAID_BYTES = 64 << 10
_PROCESS_MAX_BYTES = 4 * MEMORY_MAX_BYTES
_START_S = 60.0
_CPU_SPARE_S = 10
_RAISED = {
    each.code: each for each in (Busy, DatabaseRefused, Invalid, Refused, StorageUnavailable)
}

ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
DENIED_FUNCTIONS = frozenset({"load_extension", "edit", "readfile", "writefile", "fts3_tokenizer"})
PRAGMAS = frozenset(
    {
        *("application_id", "collation_list", "compile_options", "data_version"),
        *("encoding", "freelist_count", "function_list", "journal_mode", "page_count"),
        *("page_size", "schema_version", "user_version"),
    }
)
"""Pragmas that read as long as they are given nothing to set."""

PRAGMAS_WITH_ARGUMENT = frozenset(
    {
        *("database_list", "foreign_key_check", "foreign_key_list", "index_info", "index_list"),
        *("index_xinfo", "integrity_check", "quick_check", "table_info", "table_list"),
        "table_xinfo",
    }
)
"""Pragmas that read whatever they are given."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a statement answered. `is_whole` is False if there were more rows than were wanted."""

    columns: tuple[str, ...]
    rows: list[Row]
    is_whole: bool


def run_query(url: str, query: str, *, timeout_s: float, max_rows: int) -> QueryResult:
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
        [sys.executable, "-m", __name__],
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
            process.stdin.write(json.dumps([url, query, timeout_s, max_rows]).encode())
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
        raise _too_much_memory()
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


def _too_much_memory() -> Refused:
    return Refused(
        f"The statement needs more than {MEMORY_MAX_BYTES >> 20} MiB of memory and was ended. Ask "
        "for less at a time."
    )


# The process


def main() -> None:
    """Answer the question on standard input."""
    out = sys.stdout.buffer

    def say(kind: str, content: object) -> None:
        message = msgspec.msgpack.encode((kind, content))
        out.write(len(message).to_bytes(4) + message)

    url, query, timeout_s, max_rows = json.load(sys.stdin)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _PROCESS_MAX_BYTES)
    try:
        with _connection(locate(url)) as connection:
            # If nobody is left to end it.
            _limit(resource.RLIMIT_CPU, int(timeout_s) + _CPU_SPARE_S)
            say("ready", None)
            out.flush()
            is_whole = answer(connection, query, max_rows, say)
        say("end", is_whole)
    except RegistryError as error:
        say(error.code if error.code in _RAISED else StorageUnavailable.code, error.detail)
    except MemoryError:
        say(Refused.code, _too_much_memory().detail)
    out.flush()


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def answer(
    connection: sqlite3.Connection, query: str, max_rows: int, say: Callable[[str, object], None]
) -> bool:
    """Run a statement, and say its columns and its rows; whether these were all.

    Raises:
        RegistryError: it is refused, or the database cannot be read.
    """
    is_denied = _restrict(connection)
    try:
        return _run(connection, query, max_rows, say)
    except (sqlite3.Error, sqlite3.Warning) as error:
        if is_denied.is_set():
            raise Refused(
                "Only a single statement that reads is allowed: SELECT, EXPLAIN, or a pragma that "
                "changes nothing."
            ) from error
        raise _explained(error) from error


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise DatabaseRefused(no_registry(path))
    with reading(path) as connection:
        if look_through(connection, path).revision is None:
            raise DatabaseRefused(no_registry(path))
        yield connection


def _remove_log(path: Path) -> None:
    """A read-only connection leaves an empty log behind; one that may write takes it away."""
    with suppress(RegistryError), opened(path, "rw") as connection:
        connection.execute("PRAGMA schema_version").fetchall()


def _restrict(connection: sqlite3.Connection) -> threading.Event:
    """Let a connection read and nothing else; the event is set when something was denied."""
    is_denied = threading.Event()

    def authorize(
        action: int, first: str | None, second: str | None, _database: str | None, _by: str | None
    ) -> int:
        if _is_allowed(action, first, second):
            return sqlite3.SQLITE_OK
        is_denied.set()
        return sqlite3.SQLITE_DENY

    connection.execute(f"PRAGMA hard_heap_limit = {MEMORY_MAX_BYTES}").fetchall()
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_MAX_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.set_authorizer(authorize)
    connection.text_factory = lambda content: content.decode("utf-8", "replace")
    return is_denied


def _is_allowed(action: int, first: str | None, second: str | None) -> bool:
    """Whether SQLite may do a thing; `first` and `second` depend on what it is."""
    if action == sqlite3.SQLITE_FUNCTION:
        return (second or "").lower() not in DENIED_FUNCTIONS
    if action == sqlite3.SQLITE_PRAGMA:
        name = (first or "").lower()
        return name in PRAGMAS_WITH_ARGUMENT or (name in PRAGMAS and second is None)
    if action == sqlite3.SQLITE_UPDATE:
        return first == "sqlite_master"  # So SQLite calls it when a table function is declared.
    return action in ALLOWED


def _run(
    connection: sqlite3.Connection, query: str, max_rows: int, say: Callable[[str, object], None]
) -> bool:
    cursor = connection.execute(query)
    if cursor.description is None:
        raise Invalid("This is no statement that answers anything. Write a SELECT.")
    say("columns", _distinct([str(column[0]) for column in cursor.description]))
    said = size = 0
    rows: list[Row] = []
    for number, row in enumerate(cursor):
        if number == max_rows:
            say("rows", rows)
            return False
        size += sum(map(_size, row))
        if size > ANSWER_MAX_BYTES:
            raise Refused(
                f"The statement answers more than {ANSWER_MAX_BYTES >> 20} MiB. Ask for less at a "
                "time."
            )
        rows.append(row)
        if size - said > _SAID_BYTES:
            say("rows", rows)
            rows, said = [], size
    say("rows", rows)
    return True


def _size(value: object) -> int:
    if isinstance(value, bytes):
        return _VALUE_BYTES + 2 * len(value)
    return _VALUE_BYTES + (len(value) if isinstance(value, str) else 0)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns; one that repeats gets a number: `id`, `id_2`."""
    found: list[str] = []
    for name in names:
        number, distinct = 1, name
        while distinct in found:
            number += 1
            distinct = f"{name}_{number}"
        found.append(distinct)
    return tuple(found)


def _explained(error: Any) -> RegistryError:
    """SQLite's complaint about a statement, or about the database."""
    if not isinstance(error, sqlite3.Error):
        return Invalid(f"{str(error).rstrip('.')}.")
    if primary_code(error) == sqlite3.SQLITE_NOMEM:
        return _too_much_memory()
    return translate(error) or Invalid(f"{str(error).rstrip('.')}.")


if __name__ == "__main__":
    main()
