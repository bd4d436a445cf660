"""Refusals as pages, for browsers that asked for a page. Whoever else asks gets the problem."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Scope

from registry import errors
from registry.server.http import problem
from registry.server.pages import rendering
from registry.server.pages.accept import asks_for_page

CHALLENGE = 'Basic realm="metadata-registry", charset="UTF-8"'
"""A browser asks its user for a name, which may be any, and a password, which is the token."""

KEPT = ("Retry-After", "Allow")


def refusal(scope: Scope, error: errors.RegistryError, request_id: str | None) -> Response:
    """What is answered instead: the problem, or a page that says the same."""
    answer = problem(error, request_id)
    if not asks_for_page(scope):
        return answer
    page = rendering.html(
        "refused.html",
        answer.status_code,
        title=HTTPStatus(answer.status_code).phrase,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        asks_for_token=isinstance(error, errors.Unauthenticated),
    )
    for name in KEPT:
        if name in answer.headers:
            page.headers[name] = answer.headers[name]
    if isinstance(error, errors.Unauthenticated):
        page.headers["WWW-Authenticate"] = CHALLENGE
    return page
