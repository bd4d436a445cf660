"""A transaction or a read on a SQLite connection: statements go in, rows come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, column, select, table
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles

from registry.store.sql import JsonItems, JsonValues, R, Row, Statement
from registry.store.sqlite.in_use import size_of


@compiles(JsonItems, "sqlite")
def _json_items(element: JsonItems, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(JsonValues, "sqlite")
def _json_values(element: JsonValues, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


class _LastId(NamedTuple):
    name: str
    seq: int


_sequence = table("sqlite_sequence", column("name"), column("seq"))
_LAST_IDS = Statement(select(_sequence.c.name, _sequence.c.seq), _LastId)


class SQLiteConnection:
    """See `store.engine.Connection`. `dbapi` has a transaction open, and ends with its owner."""

    __slots__ = ("_dbapi", "_dialect", "_execute", "now")

    def __init__(self, dbapi: Any, dialect: Dialect, now: int) -> None:
        self._dbapi = dbapi
        self._execute = dbapi.execute
        self._dialect = dialect
        self.now = now

    def run(self, statement: Statement[R], **parameters: Any) -> list[R]:
        """Run a statement; every row it answers."""
        text, fixed = statement.compiled(self._dialect)
        rows: list[Row] = self._execute(
            text, {**fixed, **parameters} if fixed else parameters
        ).fetchall()
        return statement.named(rows)

    def ask(self, statement: Statement[R], **parameters: Any) -> Callable[[], list[R]]:
        """As `run`, but what comes back gives the rows."""
        rows = self.run(statement, **parameters)
        return lambda: rows

    def last_ids(self) -> dict[str, int]:
        """The last id ever given in each table. Under the write lock, the next ones are the
        caller's to give. Ids are never reused, so cursors stay right."""
        return {table.name: table.seq for table in self.run(_LAST_IDS)}

    def run_text(
        self, text: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> list[Row]:
        """Run SQL text, in which `:name` is a parameter; every row it answers."""
        rows: list[Row] = self._execute(text, parameters or ()).fetchall()
        return rows

    def log_bytes(self) -> int:
        """The size of the write-ahead log."""
        ((path,),) = self.run_text("SELECT file FROM pragma_database_list WHERE name = 'main'")
        return size_of(f"{path}-wal")

    def read_part(
        self, column: Column[Any], key: Column[Any], value: str, offset: int, length: int
    ) -> bytes | None:
        """A part of the content of one row, or None: no row has this key.

        Only the part comes into memory. (SQLite's `substr` would load all of the content.)
        """
        table = str(column.table)
        query = f"SELECT rowid FROM {table} WHERE {key.name} = ?"
        rows = self._execute(query, (value,)).fetchall()
        if not rows:
            return None
        with self._dbapi.blobopen(table, column.name, rows[0][0], readonly=True) as content:
            content.seek(min(offset, len(content)))
            part: bytes = content.read(length)
            return part
