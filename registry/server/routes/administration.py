"""For administrators: SQL, and what a sweep would do."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry.core.text import shown
from registry.errors import Invalid, Refused, TooLarge, UnsupportedMediaType
from registry.server.http import answer, read_json_body, registry_of, while_there
from registry.server.openapi.spec import STORAGE, BodySpec, Parameter, RequestSpec, ok
from registry.server.statements import plain, run_statement
from registry.wire.reports import SqlResponse, SweptResponse
from registry.wire.requests import SqlRequest, decode_sql
from registry.wire.types import Flag

ENDED_MAX = 1000
"""Owners that a rehearsal names."""


async def run_sql(request: Request) -> Response:
    """`POST /v1/sql`: what one statement answers that reads."""
    body = await read_json_body(request, registry_of(request).settings.max_body_bytes)
    asked = decode_sql(body)
    result = await run_statement(request, asked.query, asked.max_rows, asked.timeout_s)
    rows = [list(map(plain, row)) for row in result.rows]
    return answer(SqlResponse(list(result.columns), rows, result.is_whole))


async def rehearse_sweep(request: Request) -> Response:
    """`GET /v1/sweep`: who a sweep would end now."""
    release_brake = is_set(request, "release_brake")
    lookups = registry_of(request).lookups
    swept = await while_there(request, lookups.rehearse_sweep(release_brake=release_brake))
    return answer(SweptResponse.of(swept, None, at_most=ENDED_MAX))


def is_set(request: Request, name: str) -> bool:
    """Whether a parameter says yes: true, or without a value.

    Raises:
        Invalid: it says neither yes nor no.
    """
    text = request.query_params.get(name, "false")
    if text not in ("", "true", "false"):
        raise Invalid(f"{name} is {shown(text)}; it must be true, false, or without a value.")
    return text != "false"


def calls(group: str) -> tuple[RequestSpec, ...]:
    """The calls of this module, for the table."""
    return (
        RequestSpec(
            "GET",
            "/v1/sweep",
            rehearse_sweep,
            "See whom a sweep would end now",
            group,
            ok("Who would be ended, the first 1000 of them, and what they hold.", SweptResponse),
            (Invalid, *STORAGE),
            "Nothing is changed, and `removed` is null. A service sweeps by itself.",
            parameters=(
                Parameter("release_brake", Flag, "As if the brake were let go of.", "false"),
            ),
        ),
        RequestSpec(
            "POST",
            "/v1/sql",
            run_sql,
            "Ask in SQL",
            group,
            ok("The rows; `whole` is false if there are more than were wanted.", SqlResponse),
            (Invalid, Refused, TooLarge, UnsupportedMediaType, *STORAGE),
            "One statement that reads, for 10 s and 16 MiB at most. Bytes are answered as hex "
            "digits.",
            sent=BodySpec("The statement, and its limits.", SqlRequest),
        ),
    )
