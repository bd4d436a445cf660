"""Looking over the whole: models, the journal."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from registry.core.checks import SLUG_PATTERN, check_request_id, check_slug
from registry.core.events import EventFilter, EventKind, EventOrder
from registry.core.records import Owner
from registry.core.text import shown
from registry.errors import Invalid
from registry.server.http import answer, page_limit, registry_of, while_there
from registry.server.routes.artifacts import cursor
from registry.wire.listings import EventsResponse, ModelResponse, ModelsResponse

_is_model = re.compile(f"({SLUG_PATTERN})/(_base|{SLUG_PATTERN})").fullmatch


async def list_models(request: Request) -> Response:
    """`GET /v1/models`: a page of models in the order of slug and suffix."""
    limit = page_limit(request)
    page = registry_of(request).lookups.models(_model_cursor(request), limit)
    models, following = await while_there(request, page)
    return answer(
        ModelsResponse(
            [ModelResponse.of(model) for model in models],
            None if following is None else "/".join(following),
        )
    )


async def list_events(request: Request) -> Response:
    """`GET /v1/events`: a page of the journal, by id."""
    limit = page_limit(request)
    order = _order(request)
    after = cursor(request) if "after" in request.query_params else None
    wanted = event_filter(request.query_params)
    page = registry_of(request).lookups.events(wanted, order, after, limit)
    return answer(EventsResponse.of(await while_there(request, page)))


def _model_cursor(request: Request) -> tuple[str, str]:
    text = request.query_params.get("after")
    if text is None:
        return "", ""
    match = _is_model(text)
    if match is None:
        raise Invalid(f"after is {shown(text)}; give what the page before answered as next.")
    return match[1], match[2]


def _order(request: Request) -> EventOrder:
    text = request.query_params.get("order", EventOrder.OLDEST)
    try:
        return EventOrder(text)
    except ValueError:
        raise Invalid(f"order is {shown(text)}; it must be {' or '.join(EventOrder)}.") from None


def event_filter(given: Mapping[str, str]) -> EventFilter:
    """The events that query parameters ask for.

    Raises:
        Invalid: one of them names no owner, slug, kind or request.
    """
    owner = Owner.parse(given["owner"]) if "owner" in given else None
    slug = given.get("slug")
    if slug is not None:
        check_slug("slug", slug)
    request_id = given.get("request_id")
    if request_id is not None:
        check_request_id(request_id)
    return EventFilter(owner, slug, _kind(given.get("kind")), request_id)


def _kind(text: str | None) -> EventKind | None:
    if text is None:
        return None
    try:
        return EventKind(text)
    except ValueError:
        raise Invalid(
            f"There is no event kind {shown(text)}; there are {', '.join(EventKind)}."
        ) from None
