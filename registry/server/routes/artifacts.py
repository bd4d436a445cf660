"""Artifacts: list, explain, administrator's removal."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from registry.core.records import ArtifactKey
from registry.core.text import shown
from registry.errors import Invalid, NotRegistered
from registry.server.auth import actor_of
from registry.server.http import (
    answer,
    page_limit,
    problem,
    registry_of,
    request_id_of,
    while_there,
)
from registry.wire.listings import ArtifactsResponse, EntryResponse, ExplainResponse
from registry.wire.responses import ReceiptResponse

FILTERS = ("slug", "suffix", "filename", "checksum")
_is_cursor = re.compile(r"[0-9]{1,18}").fullmatch


def cursor(request: Request, name: str = "after") -> int:
    """The id in `after`, or in another parameter: 0 unless given.

    Raises:
        Invalid: it is not one that a list answered as `next`.
    """
    text = request.query_params.get(name, "0")
    if not _is_cursor(text):
        raise Invalid(f"{name} is {shown(text)}; give what the page before answered as next.")
    return int(text)


async def list_artifacts(request: Request) -> Response:
    """`GET /v1/artifacts`: a page of entries in the order of their ids."""
    limit = page_limit(request)
    filters = {name: request.query_params[name] for name in FILTERS if name in request.query_params}
    page = registry_of(request).lookups.artifacts(cursor(request), limit, filters)
    entries = await while_there(request, page)
    following = str(entries[-1].id) if len(entries) == limit else None
    return answer(ArtifactsResponse([EntryResponse.of(entry) for entry in entries], following))


async def explain(request: Request) -> Response:
    """`GET /v1/artifacts/{slug}/{suffix}/{filename}`: content, holders, last events."""
    names = ("slug", "suffix", "filename")
    key = ArtifactKey(*(request.path_params[name] for name in names))
    explanation = await while_there(request, registry_of(request).lookups.explain(key))
    if explanation.entry is None:
        error = NotRegistered(
            f"{key} is not registered"
            + ("; its last events are listed." if explanation.events else " and never was.")
        )
        return problem(error, request_id_of(request), list(explanation.events))
    return answer(ExplainResponse.of(explanation.entry, explanation))


async def remove(request: Request) -> Response:
    """`DELETE /v1/artifacts/{slug}/{suffix}`: drop a model's entries, whoever holds them."""
    receipt = await registry_of(request).remove(
        request.path_params["slug"],
        request.path_params["suffix"],
        request_id=request_id_of(request),
        actor=actor_of(request),
    )
    return answer(ReceiptResponse.of(receipt))
