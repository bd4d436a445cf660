"""What the service says of itself: /openapi.json, and the same to be read at /docs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from registry.server.http import registry_of
from registry.server.openapi import html
from registry.server.openapi.document import Security, document
from registry.server.openapi.spec import RequestSpec
from registry.wire.json_encoding import encode


class Description:
    """The description of a service's calls, built when it is asked for and then kept as bytes.

    `calls` gives the route table, which holds this description's own routes as well.
    """

    def __init__(self, calls: Callable[[], Sequence[RequestSpec]]) -> None:
        self._calls = calls
        self._built: dict[Security, tuple[bytes, bytes]] = {}

    async def show_openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        content = self._find(request)[0]
        return Response(content, headers=HEADERS, media_type="application/json")

    async def show_docs(self, request: Request) -> Response:
        """`GET /docs`."""
        content = self._find(request)[1]
        headers = {**HEADERS, "Content-Security-Policy": html.POLICY}
        return Response(content, headers=headers, media_type="text/html")

    def _find(self, request: Request) -> tuple[bytes, bytes]:
        settings = registry_of(request).settings
        security = Security(settings.token_file is not None, settings.require_read_token)
        built = self._built.get(security)
        if built is None:
            found = document(self._calls(), security)
            built = self._built[security] = (encode(found), html.page(found).encode())
        return built


HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
