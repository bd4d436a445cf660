"""The short way to routes whose path is fixed, past Starlette's router and its layers.

A registration is little work. To be asked by a router that tries one route after the other, and
to pass through three layers that catch errors which `RequestIds` catches in any case, took as
long as the registration itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import RegistryError
from registry.server.access_log import Observed
from registry.server.auth import Access, Guard
from registry.server.http import RequestIds
from registry.server.metrics import Metrics
from registry.server.pages.refusals import refusal


class Direct:
    """Takes calls of fixed paths to their routes, and passes everything else on."""

    def __init__(
        self, app: ASGIApp, routes: Iterable[Route], access: Access, metrics: Metrics
    ) -> None:
        self._app = app
        self._routed = Observed(RequestIds(_call, access.check_host, refusal), metrics)
        self._routes = {
            (method, route.path): (route, Guard(_Handler(route), access, route.path))
            for route in routes
            if "{" not in route.path
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get((scope["method"], scope["path"])) if "method" in scope else None
        if found is None:
            is_life = scope["type"] == "lifespan"
            await self._app(scope, receive, _explaining(send) if is_life else send)
            return
        scope["route"], scope["direct"] = found
        scope["path_params"] = {}
        await self._routed(scope, receive, send)


def _explaining(send: Send) -> Send:
    """Has the reason of a start that failed be told without a traceback, where it is known."""

    async def explaining(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, RegistryError):
            message = {**message, "message": f"The service cannot start: {error.detail}"}
        await send(message)

    return explaining


async def _call(scope: Scope, receive: Receive, send: Send) -> None:
    await scope["direct"](scope, receive, send)


class _Handler:
    """A route's function as an application."""

    def __init__(self, route: Route) -> None:
        self._handle = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive, send))
        await response(scope, receive, send)
