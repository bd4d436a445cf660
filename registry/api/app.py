"""The ASGI application: the read path in front, then request ids, then the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from registry.api import artifacts, ops, owners, registrations
from registry.api.http import RequestIds, problem, request_id_of
from registry.api.serving import Serving
from registry.config import Settings
from registry.db.engine import Database
from registry.errors import MethodNotAllowed, NotFound
from registry.service import Registry
from registry.sweeper import Sweeper

ROUTES = [
    Route("/v1/registrations", registrations.register, methods=["POST"]),
    Route("/v1/blobs/{checksum}", registrations.upload, methods=["PUT"]),
    Route("/v1/blobs/{checksum}", registrations.has_blob, methods=["HEAD"]),
    Route("/v1/owners", owners.list_owners, methods=["GET"]),
    Route(owners.PATH, owners.show_owner, methods=["GET"]),
    Route(owners.PATH, owners.unregister_for_owner, methods=["DELETE"]),
    Route(f"{owners.PATH}/renew", owners.renew, methods=["POST"]),
    Route(f"{owners.PATH}/drain", owners.drain, methods=["POST"]),
    Route("/v1/artifacts", artifacts.list_artifacts, methods=["GET"]),
    Route("/v1/artifacts/{slug}/{suffix}", artifacts.remove, methods=["DELETE"]),
    Route("/v1/artifacts/{slug}/{suffix}/{filename}", artifacts.explain, methods=["GET"]),
    Route("/v1/audit", ops.show_audit, methods=["GET"]),
    Route("/live", ops.live, methods=["GET"]),
    Route("/health", ops.health, methods=["GET"]),
]


def create_app(settings: Settings) -> Serving:
    """The application over a migrated database."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        database = Database(settings.database_url, busy_timeout_s=settings.busy_timeout_s)
        registry = Registry(settings, database)
        sweeper = Sweeper(registry)
        await registry.start()
        sweeper.start()
        try:
            yield {"registry": registry}
        finally:
            await sweeper.close()
            await registry.close()

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(RequestIds)],
        exception_handlers={HTTPException: _not_here},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Serving(app)


async def _not_here(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = sorted({method for route in ROUTES for method in _methods_at(route, request)})
        return problem(
            MethodNotAllowed(
                f"{path} does not take {request.method}; it takes {', '.join(allowed)}.",
                allowed=allowed,
            ),
            request_id_of(request),
        )
    return problem(
        NotFound(f"There is nothing at {path}. See /openapi.json for what there is."),
        request_id_of(request),
    )


def _methods_at(route: Route, request: Request) -> set[str]:
    match, _ = route.matches(request.scope)
    return (route.methods or set()) if match.value else set()
