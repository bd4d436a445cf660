"""The process that runs one statement of SQL that reads, see adhoc_sql.py.

The connection is read-only three times over: it is opened so, told so, and what a statement may do
is asked one by one. Nothing is put on the disk, and what is answered is bounded as well.
"""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.errors import DatabaseRefused, Invalid, Refused, RegistryError
from registry.store.compatibility import no_registry
from registry.store.query_result import ANSWER_MAX_BYTES, distinct_names
from registry.store.sql import Row
from registry.store.sqlite.errors import primary_code, translate
from registry.store.sqlite.inspect import locate, look_through, reading
from registry.store.statement_process import (
    MEMORY_MAX_BYTES,
    asked,
    limit,
    say,
    say_failed,
    too_much_memory,
)

LENGTH_MAX_BYTES = 256 << 20
"""Longest value that a statement may make. A copied file that is larger cannot be read whole."""

_VALUE_BYTES = 56
_SAID_BYTES = 64 << 10
_PROCESS_MAX_BYTES = 4 * MEMORY_MAX_BYTES
_CPU_SPARE_S = 10

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


def main() -> None:
    """Answer the question on standard input."""
    url, query, timeout_s, max_rows, max_bytes = asked()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, _PROCESS_MAX_BYTES)
    try:
        with _connection(locate(url)) as connection:
            # If nobody is left to end it.
            limit(resource.RLIMIT_CPU, int(timeout_s) + _CPU_SPARE_S)
            say("ready", None)
            is_whole = answer(connection, query, max_rows, say, max_bytes)
        say("end", is_whole)
    except RegistryError as error:
        say_failed(error)
    except MemoryError:
        say_failed(too_much_memory())


def answer(
    connection: sqlite3.Connection,
    query: str,
    max_rows: int,
    say: Callable[[str, object], None],
    max_bytes: int = ANSWER_MAX_BYTES,
) -> bool:
    """Run a statement, and say its columns and its rows, at most so many and so many bytes of
    them; whether these were all.

    Raises:
        RegistryError: it is refused, or the database cannot be read.
    """
    is_denied = _restrict(connection)
    try:
        return _run(connection, query, max_rows, say, max_bytes)
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
    connection: sqlite3.Connection,
    query: str,
    max_rows: int,
    say: Callable[[str, object], None],
    max_bytes: int,
) -> bool:
    cursor = connection.execute(query)
    if cursor.description is None:
        raise Invalid("This is no statement that answers anything. Write a SELECT.")
    say("columns", distinct_names([str(column[0]) for column in cursor.description]))
    said = size = 0
    rows: list[Row] = []
    for number, row in enumerate(cursor):
        if number == max_rows:
            say("rows", rows)
            return False
        size += sum(map(_size, row))
        if size > max_bytes:
            raise Refused(
                f"The statement answers more than {max_bytes >> 20} MiB. Ask for less at a time."
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


def _explained(error: Any) -> RegistryError:
    """SQLite's complaint about a statement, or about the database."""
    if not isinstance(error, sqlite3.Error):
        return Invalid(f"{str(error).rstrip('.')}.")
    if primary_code(error) == sqlite3.SQLITE_NOMEM:
        return too_much_memory()
    return translate(error) or Invalid(f"{str(error).rstrip('.')}.")


if __name__ == "__main__":
    main()
