"""Statements of SQL that administrators ask a running service, whether in a page or by a call."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from registry.errors import DatabaseRefused, Invalid, StorageUnavailable
from registry.server.http import registry_of
from registry.server.pages.running import pages_of
from registry.store.opening import run_query
from registry.store.query_result import QueryResult
from registry.wire.requests import SQL_MAX, SQL_ROWS_MAX, SQL_TIMEOUT_MAX_S

TIMEOUT_S = SQL_TIMEOUT_MAX_S
ROWS_MAX = SQL_ROWS_MAX
ANSWER_MAX_BYTES = 16 << 20


async def run_statement(
    request: Request, query: str, max_rows: int, timeout_s: float = TIMEOUT_S
) -> QueryResult:
    """What a statement answers. Few run at the same time; the others wait for a while.

    Raises:
        Invalid: it is no statement, or more than one, or too long.
        Refused: it would change something, took too long, or answers too much.
        Busy: too many ask at the same time.
        StorageUnavailable: the database is not there any more, or another one.
    """
    if len(query) > SQL_MAX:
        raise Invalid(f"The statement has more than {SQL_MAX} characters.")
    url = registry_of(request).settings.database_url
    ask = partial(
        run_query,
        url,
        query,
        timeout_s=timeout_s,
        max_rows=max_rows,
        max_bytes=ANSWER_MAX_BYTES,
    )
    try:
        return await pages_of(request).sql.run(ask)
    except DatabaseRefused as error:
        raise StorageUnavailable(error.detail) from error


def plain(value: Any) -> Any:
    """A value as JSON and CSV have it: bytes as hex digits."""
    return value.hex() if isinstance(value, bytes) else value
