"""A transaction or a read on a PostgreSQL connection: statements go in, rows come out.

What answers no rows waits, and goes out together with the next statement that does, or with the
COMMIT; what is asked before any rows are taken goes out together too. So a write transaction takes
three round trips, or a few more where one answer leads to the next question. An error of something
that waited is raised there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import Column
from sqlalchemy import text as sql_text
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles

from registry.store.postgresql.pool import Session
from registry.store.postgresql.watchdog import Watchdog
from registry.store.sql import JsonItems, JsonValues, R, Row, Statement

WAITING_BYTES = 4 << 20
"""What waits is sent before it is more than that."""
SENT_WITH_COMMIT_BYTES = 256 << 10

_Query = tuple[str, Mapping[str, Any], "psycopg.Cursor[Any] | None"]
"""A text, its parameters, and the cursor that is to have the rows, if there are any."""


@compiles(JsonItems, "postgresql")
def _json_items(element: JsonItems, compiler: Any, **options: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **options)} AS jsonb))"


@compiles(JsonValues, "postgresql")
def _json_values(element: JsonValues, compiler: Any, **options: Any) -> str:
    array = compiler.process(element.clauses, **options)
    return f"jsonb_array_elements_text(CAST({array} AS jsonb))"


NUMBERED = ("owners", "entries", "events")
"""The tables whose ids are given here, from sequences that are called as the server calls them."""

READ_IDS = ", ".join(
    f"(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {table}_id_seq)"
    for table in NUMBERED
)
"""The last id ever given in each of them, as columns. To be read under the write lock."""

# An entry may be gone in the very transaction that it came in; the journal still knows its id.
_HIGHEST = {
    "owners": "(SELECT max(id) FROM owners)",
    # Not max(entry_id): the server would walk the index of that from its end, past all events of
    # higher entries, to find the few new ones.
    "entries": "(SELECT max(entry_id + 0) FROM events WHERE id > %(events)s)",
    "events": "(SELECT max(id) FROM events)",
}
_LAST_IDS = "SELECT " + ", ".join(f"greatest(%({table})s, {_HIGHEST[table]})" for table in NUMBERED)
_SET_IDS = (
    "SELECT "
    + ", ".join(
        f"CASE WHEN {table} > 0 THEN setval('{table}_id_seq', {table}) END" for table in NUMBERED
    )
    + f" FROM ({_LAST_IDS}) AS last ({', '.join(NUMBERED)})"
)


@lru_cache(maxsize=256)
def _statement_of(text: str) -> Statement[Row]:
    return Statement(sql_text(text))


class PostgreSQLConnection:
    """See `store.engine.Connection`. `session` has a transaction open, and ends with its owner.

    `ids` are the last ids that were given in each table when the transaction began; None for a
    read. With `prepares`, statements are planned once: the plans must be good for any size of the
    tables then.
    """

    __slots__ = (
        *("_cursor", "_dialect", "_ids", "_has_inserted", "_prepares"),
        *("_session", "_waiting", "_waiting_bytes", "_watchdog", "now"),
    )

    def __init__(
        self,
        session: Session,
        dialect: Dialect,
        watchdog: Watchdog,
        now: int,
        *,
        ids: Mapping[str, int] | None = None,
    ) -> None:
        self._session = session
        self._cursor = session.cursor(binary=True)
        self._dialect = dialect
        self._watchdog = watchdog
        self._ids = ids
        self._prepares = ids is not None
        self._has_inserted = False
        self._waiting: list[_Query] = []
        self._waiting_bytes = 0
        self.now = now

    def run(self, statement: Statement[R], **parameters: Any) -> list[R]:
        """Run a statement; every row it answers."""
        text, fixed = statement.compiled(self._dialect)
        values = {**fixed, **parameters} if fixed else parameters
        if statement.answers:
            return statement.named(self._ask(text, values))
        self._has_inserted |= statement.inserts
        self._waiting.append((text, values, None))
        self._waiting_bytes += sum(
            len(value) for value in values.values() if isinstance(value, str | bytes)
        )
        if self._waiting_bytes > WAITING_BYTES:
            self._send()
        return []

    def ask(self, statement: Statement[R], **parameters: Any) -> Callable[[], list[R]]:
        """As `run`, but what comes back gives the rows. All that is asked before any rows are
        taken goes out together."""
        text, fixed = statement.compiled(self._dialect)
        cursor = self._session.cursor(binary=True)
        self._waiting.append((text, {**fixed, **parameters}, cursor))

        def rows() -> list[R]:
            if any(each is cursor for _, _, each in self._waiting):
                self._send()
            return statement.named(cursor.fetchall())

        return rows

    def run_text(self, text: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Run SQL text, in which `:name` is a parameter; every row it answers."""
        query, _ = _statement_of(text).compiled(self._dialect)
        return self._ask(query, parameters or {})

    def last_ids(self) -> dict[str, int]:
        """The last id ever given in each table. Under the write lock, the next ones are the
        caller's to give. Ids are never reused, so cursors stay right."""
        ids = dict(self._ids or {})
        if self._has_inserted:
            ((*found,),) = self._ask(_LAST_IDS, ids)
            return dict(zip(NUMBERED, found, strict=True))
        return ids

    def log_bytes(self) -> int:
        """The server's log is no file of the database."""
        return 0

    def read_part(
        self, column: Column[Any], key: Column[Any], value: str, offset: int, length: int
    ) -> bytes | None:
        """A part of the content of one row, or None: no row has this key.

        Only the part comes into memory, also on the server: the content is not compressed.
        """
        query = (
            f"SELECT substring({column.name} FROM %(first)s::int FOR %(length)s::int) "
            f"FROM {column.table} WHERE {key.name} = %(value)s::text"
        )
        for (part,) in self._ask(query, {"first": offset + 1, "length": length, "value": value}):
            return bytes(part)
        return None

    def commit(self) -> None:
        """Send what waits and the COMMIT, in one trip.

        Raises:
            psycopg.Error: as the server or the connection raises it. Where it ends the
                connection, nobody knows whether the change was written.
        """
        if self._waiting_bytes > SENT_WITH_COMMIT_BYTES:
            self._send()  # A COMMIT that takes long waits for something else.
        if self._has_inserted and self._ids is not None:
            self._waiting.append((_SET_IDS, self._ids, None))
        self._waiting.append(("COMMIT", {}, None))
        self._send(is_commit=True)

    def _ask(self, text: str, values: Mapping[str, Any]) -> list[Row]:
        if self._waiting:
            self._waiting.append((text, values, self._cursor))
            self._send()
        else:
            with self._watchdog.watching(self._session):
                self._cursor.execute(text, values, prepare=self._prepares)
        return self._cursor.fetchall() if self._cursor.description is not None else []

    def _send(self, *, is_commit: bool = False) -> None:
        """Send what waits, in one trip."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        with (
            self._watchdog.watching(self._session, is_commit=is_commit),
            self._session.pipeline(),
        ):
            for text, values, cursor in waiting:
                prepare = self._prepares and text != "COMMIT"
                (cursor or self._session.cursor()).execute(text, values, prepare=prepare)


class Notices:
    """What the server said beside its answers, on one connection."""

    def __init__(self, session: Session) -> None:
        self.warnings: list[str] = []
        self._session = session
        session.add_notice_handler(self._hear)

    def close(self) -> None:
        """Hear no more."""
        self._session.remove_notice_handler(self._hear)

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "it warned of something")
