"""`/ui/sql`: one statement that reads, as a table, CSV or JSON, at an address to be shared."""

from __future__ import annotations

import csv
import functools
import io
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from registry.core.text import shown
from registry.errors import Forbidden, Invalid, Refused, RegistryError
from registry.server.http import STATUS
from registry.server.pages import rendering
from registry.server.pages.accept import wants_html
from registry.server.pages.choices import FORMATS
from registry.server.pages.urls import SQL
from registry.server.statements import ROWS_MAX, TIMEOUT_S, plain, run_statement
from registry.store.query_result import QueryResult
from registry.wire.json_encoding import encode

TABLE_ROWS_MAX = 1000
"""Shown in a page; it says if there are more."""
DATA_ROWS_MAX = ROWS_MAX
"""As CSV or JSON, of which a part could be taken for the whole: more are refused."""
CELL_MAX = 1000
"""Characters of a value in a page."""


async def ask_in_sql(request: Request) -> Response:
    """`GET /ui/sql`: a form, and what the statement in `q` answers."""
    _check_site(request)
    given = request.query_params
    query, kind = given.get("q", ""), given.get("format", "html")
    if kind not in FORMATS:
        raise Invalid(f"format is {shown(kind)}; it must be {', '.join(FORMATS)}.")
    if not query.strip():
        return await _page(request, query)
    if kind == "html":
        try:
            result = await _answer(request, query, TABLE_ROWS_MAX)
        except RegistryError as error:
            if not wants_html(request.scope):
                raise
            return await _page(request, query, error=error)
        return await _page(request, query, result=result)
    result = await _answer(request, query, DATA_ROWS_MAX)
    if not result.is_whole:
        raise Invalid(f"There are more than {DATA_ROWS_MAX} rows. Ask for less, with LIMIT.")
    return _as_csv(result) if kind == "csv" else _as_json(result)


def _check_site(request: Request) -> None:
    """Raise Forbidden where another site has the visitor's browser ask, but for a link that the
    visitor followed."""
    site = request.headers.get("sec-fetch-site", "none").lower()
    is_followed = request.headers.get("sec-fetch-dest", "").lower() == "document"
    if site not in ("none", "same-origin") and not is_followed:
        raise Forbidden(
            "A page of another site asked for this (Sec-Fetch-Site). Open the address itself."
        )


async def _answer(request: Request, query: str, max_rows: int) -> QueryResult:
    """What a statement answers.

    Raises:
        Invalid: it is none, or it is refused.
        Busy: others ask at the same time.
    """
    try:
        return await run_statement(request, query, max_rows)
    except Refused as error:
        raise Invalid(error.detail) from error


async def _page(
    request: Request,
    query: str,
    *,
    result: QueryResult | None = None,
    error: RegistryError | None = None,
) -> Response:
    return await rendering.page(
        request,
        "sql.html",
        200 if error is None else STATUS[type(error)],
        title="SQL",
        here=SQL,
        query=query,
        error=None if error is None else error.detail,
        columns=() if result is None else result.columns,
        rows=None if result is None else [[_cell(value) for value in row] for row in result.rows],
        is_number=[] if result is None else _numbers(result),
        is_whole=result is None or result.is_whole,
        rows_max=TABLE_ROWS_MAX,
        timeout_s=round(TIMEOUT_S),
        questions=questions(),
    )


def _numbers(result: QueryResult) -> list[bool]:
    """Which columns have a number."""
    return [
        any(isinstance(row[place], int | float) for row in result.rows)
        for place in range(len(result.columns))
    ]


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= CELL_MAX else f"{text[:CELL_MAX]}…"


def _as_csv(result: QueryResult) -> Response:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(result.columns)
    for row in result.rows:
        writer.writerow(["" if value is None else plain(value) for value in row])
    headers = rendering.HEADERS | {"Content-Disposition": 'attachment; filename="answer.csv"'}
    content = out.getvalue().encode("utf-8", "replace")
    return Response(content, headers=headers, media_type="text/csv")


def _as_json(result: QueryResult) -> Response:
    rows = [dict(zip(result.columns, map(plain, row), strict=True)) for row in result.rows]
    return Response(encode(rows), headers=rendering.HEADERS, media_type="application/json")


@functools.cache
def questions() -> tuple[tuple[str, str], ...]:
    """The saved questions: what each asks, and how it is asked."""
    text = Path(__file__).with_name("questions.sql").read_text(encoding="utf-8")
    found = re.findall(r"^-- (.+)\n((?:(?!-- ).+\n)+)", text, re.M)
    return tuple((title, query) for title, query in found)
