"""The ASGI application: the read path in front, then request ids, then the routes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from registry.config import Settings
from registry.errors import MethodNotAllowed, NotFound, RegistryError
from registry.server.access_log import Observed
from registry.server.auth import Access, guarded
from registry.server.certificates import Certificate, watched
from registry.server.http import RequestIds, request_id_of, room_for_bodies
from registry.server.metrics import Metrics
from registry.server.metrics_endpoint import reporting
from registry.server.pages.refusals import refusal
from registry.server.pages.running import showing
from registry.server.read_path import Serving
from registry.server.reloading import Reloads, reloading
from registry.server.routes.operations import health_of
from registry.server.routes.table import CALLS, ROUTES
from registry.server.short_way import ShortWay
from registry.server.siblings import Parent
from registry.service.lanes import Shared
from registry.service.registry import Registry
from registry.service.sweeper import Sweeper
from registry.store.opening import open_database

if TYPE_CHECKING:
    from registry.server.proxy.proxy import FileProxy
    from registry.service.discovery_watch import DiscoveryWatch


def create_app(
    settings: Settings, parent: Parent | None = None, certificate: Certificate | None = None
) -> Serving:
    """The application over a migrated database; one of several that have a parent in common.

    Raises:
        SettingsError: the token file is not as it should be.
    """
    access = Access(settings)
    proxy = proxy_of(settings, access)
    metrics = Metrics()
    reloads: list[Reloads] = [access] if access.has_file else []
    reloads += [] if certificate is None else [certificate]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        database = open_database(settings.database_url, busy_timeout_s=settings.busy_timeout_s)
        registry = Registry(
            settings,
            database,
            on_batch=lambda batch: metrics.wrote(batch.outcomes, batch.items, batch.seconds),
        )
        sweeper = Sweeper(registry)
        watch = _watch_of(settings, registry, parent)
        await registry.start()
        sweeper.start()
        try:
            async with AsyncExitStack() as stack:
                report = await stack.enter_async_context(
                    reporting(metrics, registry, parent, certificate, watch)
                )
                stack.enter_context(reloading(*reloads, limit_s=settings.file_timeout_s))
                stack.enter_context(watched(certificate))
                if watch is not None:
                    await stack.enter_async_context(watch.running())
                if proxy is not None:
                    await stack.enter_async_context(proxy.running())
                yield {
                    "registry": registry,
                    "report": report,
                    "discovery": watch,
                    "health": Shared(lambda: health_of(registry, certificate, watch)),
                    "pages": stack.enter_context(showing(registry)),
                    "bodies": room_for_bodies(settings.max_body_bytes),
                }
        finally:
            await sweeper.close()
            await registry.close()

    app = Starlette(
        routes=guarded(ROUTES, access),
        middleware=[
            Middleware(Observed, metrics),
            Middleware(RequestIds, access.check_host, refusal),
        ],
        exception_handlers={HTTPException: _not_here},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Serving(Explaining(app), ShortWay(CALLS, access, metrics), metrics, access, proxy)


class Explaining:
    """Has the reason of a start that failed be told without a traceback, where it is known."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, _explained(send) if scope["type"] == "lifespan" else send)


def _explained(send: Send) -> Send:
    async def explain(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, RegistryError):
            message = {**message, "message": f"The service cannot start: {error.detail}"}
        await send(message)

    return explain


def proxy_of(settings: Settings, access: Access) -> FileProxy | None:
    """The proxy that the settings ask for. Raises SettingsError: its store cannot be used."""
    if settings.proxy_for is None:
        return None
    from registry.server.proxy.proxy import FileProxy  # Others need no HTTP client.

    return FileProxy(settings.proxy_for, access, settings.max_blob_bytes)


def _watch_of(
    settings: Settings, registry: Registry, parent: Parent | None
) -> DiscoveryWatch | None:
    """The comparison with discovery, if one is wanted. Of several processes one looks."""
    if settings.discovery is None:
        return None
    from registry.service.discovery_watch import DiscoveryWatch  # Others need no discovery store.

    if parent is None:
        return DiscoveryWatch(settings, registry.read)
    watch = DiscoveryWatch(settings, registry.read, leads=lambda: parent.leads, tell=parent.tell)
    parent.on_news = watch.hear
    return watch


async def _not_here(request: Request, error: Exception) -> Response:
    path = request.scope["path"]  # `request.url` would be remembered by urllib.
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = sorted({method for route in ROUTES for method in _methods_at(route, request)})
        return await refusal(
            request.scope,
            MethodNotAllowed(
                f"{path} does not take {request.method}; it takes {', '.join(allowed)}.",
                allowed=allowed,
            ),
            request_id_of(request),
        )
    return await refusal(
        request.scope,
        NotFound(f"There is nothing at {path}. See /openapi.json for what there is."),
        request_id_of(request),
    )


def _methods_at(route: Route, request: Request) -> set[str]:
    match, _ = route.matches(request.scope)
    return (route.methods or set()) if match.value else set()
