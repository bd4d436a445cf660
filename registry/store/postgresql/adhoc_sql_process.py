"""The process that runs one statement of SQL that reads, see adhoc_sql.py.

The server bounds its time too, and its transaction is read-only. Rows are taken one by one, so that
what is not wanted is never here.
"""

from __future__ import annotations

import re
import resource
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq

from registry.errors import Invalid, Refused, RegistryError, StorageUnavailable
from registry.store.postgresql.address import conninfo_of, place_of
from registry.store.postgresql.compatibility import acceptor
from registry.store.postgresql.errors import QUERY_CANCELED, READ_ONLY, translated
from registry.store.query_result import distinct_names
from registry.store.statement_process import (
    MEMORY_MAX_BYTES,
    asked,
    limit,
    say,
    say_failed,
    too_much_memory,
)

VALUE_BYTES = 16
"""Added to each value for what holds it."""
DIGITS_MAX = 18
"""Of whole numbers, as far as JSON has them."""
SYNTAX, FEATURE, PRIVILEGE = "42", "0A", "42501"

_NAMES = re.compile(r"[^\W\d][\w$]*")
_UNICODE_NAME = re.compile(r"u&\s*\"", re.IGNORECASE)
_HARMLESS = (
    *("clock_timestamp", "timeofday", "random", "gen_random_uuid", "pg_sleep"),
    *("pg_database_size", "pg_relation_size", "pg_table_size", "pg_indexes_size"),
    *("pg_total_relation_size", "pg_tablespace_size", "pg_blocking_pids", "pg_is_in_recovery"),
    *("pg_current_wal_lsn", "pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp"),
)
_DOES_MORE = """
    SELECT proname FROM pg_proc
    WHERE provolatile = 'v' AND proname = ANY(%s) AND proname <> ALL(%s) ORDER BY proname LIMIT 1
"""
"""Functions that may do more than read. A transaction that is read-only stops few of them: not
those that end connections, take locks or make large objects."""

_COMMENTS = re.compile(r"\A(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_READS = ("select", "with", "values", "table", "explain", "show", "(")


def main() -> None:
    """Answer the question on standard input."""
    url, query, timeout_s, max_rows, max_bytes = asked()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_DATA, MEMORY_MAX_BYTES)
    try:
        say("end", _run(url, query, timeout_s, max_rows, max_bytes))
    except MemoryError:
        say_failed(too_much_memory())
    except StorageUnavailable as error:
        # libpq says that it has no memory as if the connection were broken.
        say_failed(too_much_memory() if _has_taken_much() else error)
    except RegistryError as error:
        say_failed(error)


def _has_taken_much() -> bool:
    """Whether this program, and not the one before it in this process, has taken much memory."""
    status = Path("/proc/self/status").read_text()
    most_kib = int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])
    return most_kib << 10 > MEMORY_MAX_BYTES // 3


def _run(url: str, query: str, timeout_s: float, max_rows: int, max_bytes: int) -> bool:
    """Say the rows of a statement; whether these were all.

    Raises:
        RegistryError: it is refused, or the database cannot be read.
    """
    if "\0" in query:
        raise Invalid("A statement has no NUL characters.")
    if not _COMMENTS.sub("", query, count=1).lower().startswith(_READS):
        raise Refused(
            "Only statements that read are run: SELECT, WITH, VALUES, TABLE, EXPLAIN and SHOW."
        )
    with (
        translated(place_of(url)),
        psycopg.connect(conninfo_of(url), autocommit=True, prepare_threshold=None) as connection,
    ):
        acceptor(url)(connection)
        connection.execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
            f"SET LOCAL statement_timeout = '{max(1, int(timeout_s * 1000))}ms'; SELECT 1"
        )
        _refuse_functions(connection, query)
        say("ready", None)
        try:
            return _say_rows(connection, query, max_rows, max_bytes)
        except psycopg.Error as error:
            _explain(error, timeout_s)
            raise
        finally:
            if not connection.broken:
                connection.rollback()


def _refuse_functions(connection: psycopg.Connection[Any], query: str) -> None:
    """Raise Refused for a statement that names a function which may do more than read."""
    if _UNICODE_NAME.search(query):
        raise Refused('Names are to be written as they are, not as U&"...".')
    words = list({form for name in _NAMES.findall(query) for form in (name, name.lower())})
    found = connection.execute(_DOES_MORE, (words, list(_HARMLESS))).fetchall()
    if found:
        raise Refused(
            f"{found[0][0]} is a function that may do more than read, so the statement was not run."
        )


def _say_rows(
    connection: psycopg.Connection[Any], query: str, max_rows: int, max_bytes: int
) -> bool:
    say("columns", _columns(connection.pgconn, query.encode()))
    size = 0
    answer: Any = connection.cursor().stream(query.encode())
    try:
        for number, row in enumerate(answer):
            if number == max_rows:
                return False
            shown = tuple(map(_shown, row))
            size += sum(VALUE_BYTES + _size(value) for value in shown)
            if size > max_bytes:
                raise Refused(
                    f"The statement answers more than {max_bytes >> 20} MiB. Ask for less "
                    "at a time."
                )
            say("rows", [shown])
        return True
    finally:
        answer.close()


def _columns(pgconn: pq.abc.PGconn, query: bytes) -> tuple[str, ...]:
    """What a statement will answer: one statement, since the server prepares no more at once."""
    _check(pgconn.prepare(b"", query))
    described = _check(pgconn.describe_prepared(b""))
    names = (described.fname(number) or b"" for number in range(described.nfields))
    return distinct_names([name.decode() for name in names])


def _check(result: pq.abc.PGresult) -> pq.abc.PGresult:
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result)
    return result


def _explain(error: psycopg.Error, timeout_s: float) -> None:
    """Raise what a person understands, where the statement is to blame."""
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error)
    if state == QUERY_CANCELED:
        raise Refused(
            f"The statement ran longer than {timeout_s:g} s and was ended (--timeout-s)."
        ) from None
    if state in (READ_ONLY, PRIVILEGE):
        raise Refused(f"The statement would change something: {message}.") from None
    if state.startswith((SYNTAX, FEATURE, "22", "21")):
        raise Invalid(f"PostgreSQL says: {message}.") from None


def _shown(value: Any) -> Any:
    """A value as it can be printed and be JSON; whole numbers that are larger are text."""
    if isinstance(value, Decimal):
        if not value.is_finite() or value != value.to_integral_value():
            return float(value)
        return int(value) if value.adjusted() < DIGITS_MAX else format(value, "f")
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return 2 * len(value)
    return len(value) if isinstance(value, str) else 8


if __name__ == "__main__":
    main()
