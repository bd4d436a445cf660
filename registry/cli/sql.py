"""`metadata-registry sql`: one question to the database, for people who know SQL."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.cli.db import DEFAULT_URL, DatabaseUrl
from registry.cli.options import AsJson, CaFile, ServiceUrl, Token
from registry.cli.output import print_json
from registry.cli.subjects import asked
from registry.cli.tables import Column, print_table
from registry.core.text import printable
from registry.errors import Refused, TooLarge

if TYPE_CHECKING:
    from registry.store.query_result import QueryResult

TIMEOUT_S = 10.0
MAX_ROWS = 1000
TABLE_MAX_CHARACTERS = 256 << 20
"""Every row of a table is as wide as the longest one."""


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One statement that reads.")],
    timeout_s: Annotated[
        float, typer.Option(metavar="S", min=0.01, max=3600, help="End it after so many seconds.")
    ] = TIMEOUT_S,
    max_rows: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000_000, help="Print at most so many rows.")
    ] = MAX_ROWS,
    url: ServiceUrl = None,
    token: Token = None,
    ca_file: CaFile = None,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with a header.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run one SQL statement that reads, and print its rows.

    The views are made for this: leaks, holders, owner_footprint. What would write, attach or change
    settings is refused (exit code 1), and so is what runs too long. If there are more rows than
    --max-rows, the first are printed and the exit code is 1. Binary values are printed as hex
    digits; with --json the rows are objects. A service, which --url asks, answers administrators
    only, and in at most 10 s, 10,000 rows and 16 MiB.
    """
    if as_csv and as_json:
        raise typer.BadParameter("Choose one of --csv and --json.")
    if url is None:
        from registry.store.opening import run_query

        result = run_query(database_url, query, timeout_s=timeout_s, max_rows=max_rows)
    else:
        from registry.store.query_result import QueryResult

        with asked(context, url, token, ca_file) as client:
            answer = client.sql(query, timeout_s=timeout_s, max_rows=max_rows)
        rows = [tuple(row) for row in answer.rows]
        result = QueryResult(tuple(answer.columns), rows, answer.whole)
    if as_json:
        print_json([_object(result, row) for row in result.rows])
    elif as_csv:
        _print_csv(result)
    else:
        _print_rows(result)
    if not result.is_whole:
        raise TooLarge(f"There are more than {max_rows} rows; the first are printed (--max-rows).")


def _object(result: QueryResult, row: tuple[Any, ...]) -> dict[str, Any]:
    values = (value.hex() if isinstance(value, bytes) else value for value in row)
    return dict(zip(result.columns, values, strict=True))


def _print_csv(result: QueryResult) -> None:
    shown = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(map(shown, result.columns))
    for row in result.rows:
        writer.writerow(["" if value is None else shown(_text(value)) for value in row])


def _print_rows(result: QueryResult) -> None:
    is_number = [
        any(isinstance(row[place], int | float) for row in result.rows)
        for place in range(len(result.columns))
    ]
    cells = [[_text(value) for value in row] for row in result.rows]
    width = sum(max(map(len, column)) for column in zip(*cells, strict=True))
    if width * len(cells) > TABLE_MAX_CHARACTERS:
        raise Refused(
            f"A table of {len(cells)} rows would be {width} characters wide. Ask for less, or "
            "print the rows with --csv or --json."
        )
    columns = [
        Column(printable(name), right)
        for name, right in zip(result.columns, is_number, strict=True)
    ]
    print_table(columns, cells)


def _text(value: Any) -> str:
    if value is None:
        return "NULL"
    return value.hex() if isinstance(value, bytes) else str(value)
