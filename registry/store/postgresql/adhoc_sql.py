"""One statement of SQL that reads, for people who look into a registry.

The server bounds its time, and its transaction is read-only. Rows are taken one by one, so that
what is not wanted is never here.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from registry.errors import Invalid, Refused
from registry.store.postgresql.address import conninfo_of, place_of
from registry.store.postgresql.compatibility import acceptor
from registry.store.postgresql.errors import QUERY_CANCELED, READ_ONLY, translated
from registry.store.query_result import QueryResult
from registry.store.sql import Row

VALUE_BYTES = 16
"""Added to each value for what holds it."""
DIGITS_MAX = 18
"""Of whole numbers, as far as JSON has them."""
SYNTAX, FEATURE, PRIVILEGE = "42", "0A", "42501"

_COMMENTS = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_READS = ("select", "with", "values", "table", "explain", "show", "(")


def run_query(
    url: str, query: str, *, timeout_s: float, max_rows: int, max_bytes: int
) -> QueryResult:
    """Run one statement that reads.

    Raises:
        Refused: it would write or change settings, or it took too much time, or answered too much.
        Invalid: it is no statement that PostgreSQL understands, or more than one.
        DatabaseRefused: there is no registry at the URL.
        RegistryError: the database cannot be read.
    """
    if "\0" in query:
        raise Invalid("A statement has no NUL characters.")
    if not query[_COMMENTS.match(query).end() :].lower().startswith(_READS):  # type: ignore[union-attr]
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
        try:
            return _gather(connection, query, max_rows, max_bytes)
        except psycopg.Error as error:
            _explain(error, timeout_s)
            raise


def _gather(
    connection: psycopg.Connection[Any], query: str, max_rows: int, max_bytes: int
) -> QueryResult:
    rows: list[Row] = []
    size = 0
    cursor = connection.cursor()
    answer: Any = cursor.stream(query.encode())  # Sent in the way that takes one statement only.
    try:
        for row in answer:
            if len(rows) == max_rows:
                return QueryResult(_columns(cursor), rows, False)
            shown = tuple(map(_shown, row))
            size += sum(VALUE_BYTES + _size(value) for value in shown)
            if size > max_bytes:
                raise Refused(
                    f"The statement answers more than {max_bytes >> 20} MiB. Ask for less "
                    "at a time."
                )
            rows.append(shown)
        return QueryResult(_columns(cursor), rows, True)
    finally:
        answer.close()


def _columns(cursor: psycopg.Cursor[Any]) -> tuple[str, ...]:
    return tuple(column.name for column in cursor.description or ())


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
    if isinstance(value, datetime | date | time | timedelta):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return 2 * len(value)
    return len(value) if isinstance(value, str) else 8
