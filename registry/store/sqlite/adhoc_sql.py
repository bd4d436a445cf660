"""One statement of SQL that reads, for people who look into a registry.

The connection is read-only three times over: it is opened so, told so, and what a statement may do
is asked one by one. It gives up when its time is over.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import DatabaseRefused, Invalid, Refused, RegistryError
from registry.store.sql import Row
from registry.store.sqlite.errors import primary_code
from registry.store.sqlite.inspect import locate, look_through, opened

LENGTH_MAX_BYTES = 256 << 20
"""Longest value that a statement may make. A copied file that is larger cannot be read whole."""

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
class Answers:
    """What a statement answered. `is_whole` is False if there were more rows than were wanted."""

    columns: tuple[str, ...]
    rows: list[Row]
    is_whole: bool


def ask(url: str, query: str, *, timeout_s: float, max_rows: int) -> Answers:
    """Run one statement that reads.

    Raises:
        Refused: it would write, attach, load or change settings, or it ran too long.
        Invalid: it is no statement that SQLite understands, or more than one.
        DatabaseRefused: there is no registry at the URL.
        RegistryError: the database cannot be read.
    """
    path = locate(url)
    with _connection(path) as connection:
        is_denied = _restrict(connection)
        over = threading.Event()

        def interrupt() -> None:
            over.set()
            connection.interrupt()

        timer = threading.Timer(timeout_s, interrupt)
        timer.start()
        try:
            return _run(connection, query, max_rows)
        except (sqlite3.Error, sqlite3.Warning) as error:
            if over.is_set():
                raise Refused(
                    f"The statement ran longer than {timeout_s:g} s and was ended (--timeout-s)."
                ) from error
            if is_denied.is_set():
                raise Refused(
                    "Only a single statement that reads is allowed: SELECT, EXPLAIN, or a pragma "
                    "that changes nothing."
                ) from error
            raise _explained(error) from error
        finally:
            timer.cancel()
            timer.join()


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise DatabaseRefused(f"There is no registry in {path}. Name another --database-url.")
    has_log = path.with_name(path.name + "-wal").exists()
    try:
        with opened(path, "ro") as connection:
            if look_through(connection, path).revision is None:
                raise DatabaseRefused(
                    f"There is no registry in {path}. Name another --database-url."
                )
            yield connection
    finally:
        if not has_log:
            _remove_log(path)


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


def _run(connection: sqlite3.Connection, query: str, max_rows: int) -> Answers:
    cursor = connection.execute(query)
    if cursor.description is None:
        raise Invalid("This is no statement that answers anything. Write a SELECT.")
    rows = cursor.fetchmany(max_rows + 1)
    columns = _distinct([str(column[0]) for column in cursor.description])
    return Answers(columns, rows[:max_rows], len(rows) <= max_rows)


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


def _explained(error: Any) -> Exception:
    """SQLite's complaint about a statement. What is wrong with the database stays as it is."""
    if isinstance(error, sqlite3.Error):
        code = primary_code(error)
        if code not in (None, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG):
            return error
    return Invalid(f"{str(error).rstrip('.')}.")
