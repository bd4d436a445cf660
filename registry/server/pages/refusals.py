"""Refusals as pages, for browsers that asked for a page. Whoever else asks gets the problem."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Scope

from registry import errors
from registry.server.http import problem
from registry.server.pages.accept import asks_for_page

if TYPE_CHECKING:
    from registry.server.pages.running import PagesState

CHALLENGE = 'Basic realm="metadata-registry", charset="UTF-8"'
"""A browser asks its user for a name, which may be any, and a password, which is the token."""

KEPT = ("Retry-After", "Allow")


async def refusal(scope: Scope, error: errors.RegistryError, request_id: str | None) -> Response:
    """What is answered instead: the problem, or a page that says the same."""
    answer = problem(error, request_id)
    if not asks_for_page(scope):
        return answer
    pages: PagesState = scope["state"]["pages"]
    make = partial(
        _page,
        answer.status_code,
        title=HTTPStatus(answer.status_code).phrase,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        asks_for_token=isinstance(error, errors.Unauthenticated),
    )
    page = await pages.render(make)
    for name in KEPT:
        if name in answer.headers:
            page.headers[name] = answer.headers[name]
    if isinstance(error, errors.Unauthenticated):
        page.headers["WWW-Authenticate"] = CHALLENGE
    return page


def _page(status: int, **context: object) -> Response:
    from registry.server.pages import rendering  # Loaded with the first page.

    return rendering.html("refused.html", status, **context)
