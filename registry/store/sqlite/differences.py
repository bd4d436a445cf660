"""How a SQLite database's schema differs from the one that tables.py describes.

Both are read from `sqlite_master` and taken apart into named elements, since reflection misses
what matters here: CHECK constraints, STRICT, AUTOINCREMENT, the WHERE of an index. White space,
case and quotes do not count; neither does the order of constraints.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy.dialects.sqlite import dialect as SQLiteDialect
from sqlalchemy.schema import CreateIndex, CreateTable

from registry.store.sqlite.views import VIEWS
from registry.store.tables import metadata


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """A named part of a schema. `table` is the one it belongs to, if it does."""

    table: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.table}.{self.name}" if self.table else f"{self.kind} {self.name}"


Elements = dict[Element, str]
"""What each element is: its SQL, or what else tells it."""


def find_differences(connection: sqlite3.Connection) -> list[str]:
    """A sentence for each element that is missing, not ours, or another than in tables.py."""
    found = elements(connection)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as reference:
        create_all(reference)
        wanted = elements(reference)
    whole = _tables(found) & _tables(wanted)
    return [
        sentence
        for element in sorted(found.keys() | wanted.keys())
        if not element.table or element.table in whole
        if (sentence := _difference(element, found.get(element), wanted.get(element)))
    ]


def create_all(connection: sqlite3.Connection) -> None:
    """Make every table, index and view of tables.py."""
    dialect = SQLiteDialect()
    for table in metadata.sorted_tables:
        connection.execute(str(CreateTable(table).compile(dialect=dialect)))
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=dialect)))
    for view in VIEWS.values():
        connection.execute(view)


def elements(connection: sqlite3.Connection) -> Elements:
    """The schema of a database, without what SQLite and Alembic keep in it for themselves."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND tbl_name <> 'alembic_version'"
    ).fetchall()
    found: Elements = {}
    for kind, name, sql in rows:
        if kind == "table":
            found |= _table_elements(name, sql)
        else:
            found[Element("", kind, name)] = " ".join(sql.split())
    return found


def _difference(element: Element, found: str | None, wanted: str | None) -> str | None:
    if wanted is None:
        return f"{element} is not part of this schema"
    if found is None:
        return f"{element} is missing: {wanted}"
    if element.kind == "order" and sorted(found.split(", ")) != sorted(wanted.split(", ")):
        return None  # A missing column is one difference and not two.
    if _tokens(found) != _tokens(wanted):
        return f"{element} is {found!r} instead of {wanted!r}"
    return None


def _tables(found: Elements) -> set[str]:
    return {element.name for element in found if element.kind == "table"}


def _table_elements(table: str, sql: str) -> Elements:
    """A table's options, columns, their order, and constraints."""
    body, options = _split(sql)
    columns, found = [], {Element("", "table", table): ", ".join(sorted(options)) or "plain"}
    for item in body:
        kind, name = _kind_and_name(item)
        found[Element(table, kind, name)] = _spelled(item)
        if kind == "column":
            columns.append(name)
    found[Element(table, "order", "columns")] = ", ".join(columns)
    return found


_CONSTRAINTS = ("primary", "unique", "check", "foreign")


def _kind_and_name(item: list[str]) -> tuple[str, str]:
    if item[0].lower() == "constraint":
        return "constraint", _bare(item[1])
    if item[0].lower() in _CONSTRAINTS:
        return "constraint", _spelled(item)
    return "column", _bare(item[0])


def _split(sql: str) -> tuple[list[list[str]], list[str]]:
    """The items between a CREATE TABLE's outer parentheses, and the options behind them."""
    items: list[list[str]] = [[]]
    tail: list[str] = []
    depth = 0
    for token in _words(sql):
        depth -= token == ")"
        if depth == 1 and token == ",":
            items.append([])
        elif depth:
            items[-1].append(token)
        elif items[0]:
            tail.append(token)
        depth += token == "("
    return items, [option.strip() for option in " ".join(tail[1:]).split(",") if option.strip()]


_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | \d+\.\d+ | \w+ | [^\s\w]""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|--[^\n]*|/\*.*?\*/""", re.DOTALL)


def _words(sql: str) -> Iterator[str]:
    return (match[0] for match in _TOKEN.finditer(_COMMENT.sub(r"\1", sql)))


def _tokens(sql: str) -> list[str]:
    """What two spellings of the same thing have in common."""
    return [word if word[0] == "'" else _bare(word).lower() for word in _words(sql)]


def _bare(word: str) -> str:
    return word[1:-1] if word[0] in '"`[' else word


def _spelled(words: list[str]) -> str:
    """Words as a person would write them."""
    text = " ".join(words)
    return re.sub(r" (?=[,)])|(?<=\() ", "", text)
