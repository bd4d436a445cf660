"""SQL that is the same on every engine: Core statements compiled once, lists as one parameter.

A list of rows goes to the database as one JSON parameter, so that the text of a statement never
changes with the length of the list; how its elements become rows is the engine's dialect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar, overload
from typing import cast as typing_cast

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Insert,
    Join,
    Subquery,
    Text,
    UpdateBase,
    bindparam,
    cast,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import FunctionElement

Row = tuple[Any, ...]
R = TypeVar("R", bound=Row)


class Statement(Generic[R]):
    """A Core statement, compiled once and then run as text on the driver's connection.

    Its parameters are named; those with a value in the expression need not be given. `row` is the
    NamedTuple that its rows become; its fields are the names of the columns, in their order.

    Raises:
        TypeError: the fields of `row` are not the columns.
    """

    @overload
    def __init__(self: Statement[Row], clause: ClauseElement) -> None: ...

    @overload
    def __init__(self, clause: ClauseElement, row: type[R]) -> None: ...

    def __init__(self, clause: Any, row: type[R] | None = None) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}
        self._row = row
        writes = isinstance(clause, UpdateBase)
        self.answers = not writes or bool(clause.exported_columns)
        """Whether it answers rows."""
        self.inserts = isinstance(clause, Insert)
        """Whether it makes new rows."""
        if row is not None:
            _check_fields(clause, row)

    def compiled(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The SQL text for a dialect, and the values that the expression brings along."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._clause.compile(
                dialect=dialect, compile_kwargs={"render_postcompile": True}
            )
            fixed = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[dialect.name] = (str(compiled), fixed)
        return found

    def named(self, rows: list[Row]) -> list[R]:
        """Rows as the driver gave them, with names."""
        if self._row is None:
            return typing_cast("list[R]", rows)
        return list(map(typing_cast("type[NamedTuple]", self._row)._make, rows))  # type: ignore[arg-type]


def _check_fields(clause: Any, row: type[Any]) -> None:
    columns = tuple(clause.exported_columns.keys())
    if columns != row._fields:
        raise TypeError(f"{row.__name__} has the fields {row._fields}, the statement {columns}.")


class JsonItems(FunctionElement[str]):
    """The elements of a JSON array, a row each, in the column `value`. Engines spell it."""

    name = "json_items"
    inherit_cache = True


class JsonValues(FunctionElement[str]):
    """The elements of a JSON array of texts or numbers, a row each, in the column `value`."""

    name = "json_values"
    inherit_cache = True


class CrossJoin(Join):
    """Every row of the left with every row of the right. SQLite's planner leaves that order as it
    is, and goes for each row of the left through the right (https://www.sqlite.org/optoverview.html,
    on CROSS JOIN).
    """

    __visit_name__ = "cross_join"
    inherit_cache = True

    def __init__(self, left: FromClause, right: FromClause) -> None:
        super().__init__(left, right, true())


@compiles(CrossJoin)
def _cross_join(element: CrossJoin, compiler: Any, **options: Any) -> str:
    options["asfrom"] = True
    left = compiler.process(element.left, **options)
    return f"{left} CROSS JOIN {compiler.process(element.right, **options)}"


def json_rows(parameter: str, **columns: type[str] | type[int]) -> Subquery:
    """A list of lists as a table: one JSON parameter, so that the SQL text never changes.

    `columns` names the items of each inner list in order, with their types.
    """
    items = JsonItems(bindparam(parameter, type_=Text)).table_valued("value", name="item")
    selected = []
    for index, (name, kind) in enumerate(columns.items()):
        column: Any = literal_column(f"item.value ->> {index}", Text)
        if kind is int:
            column = cast(column, BigInteger)
        selected.append(column.label(name))
    return select(*selected).select_from(items).subquery(parameter)


def json_column(parameter: str, name: str, kind: type[str] | type[int]) -> Subquery:
    """A list as a table of one column: one JSON parameter, which is read faster than lists in a
    list."""
    items = JsonValues(bindparam(parameter, type_=Text)).table_valued("value", name="item")
    value: Any = literal_column("item.value", Text)
    column = cast(value, BigInteger) if kind is int else value
    return select(column.label(name)).select_from(items).subquery(parameter)


def as_rows(rows: Iterable[Any]) -> str:
    """Lists as the JSON parameter that `json_rows` takes, or values for `json_column`."""
    return _encode(rows if isinstance(rows, list) else list(rows)).decode()


_encode = msgspec.json.Encoder().encode


def one_of(column: ColumnElement[str], *values: str) -> ColumnElement[bool]:
    """`column IN (values)` with plain parameters, which a `Statement` can compile once."""
    return column.in_([literal(value) for value in values])
