"""What is told of requests: a count of each, and a line in the log.

    registry.access   info: answered requests; warning: 5xx; debug: what happens all the time, the
                      metadata files that were read, /live, /health and /metrics

A line has the path and never the query, a header or a body.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.core import logs
from registry.errors import RegistryError
from registry.server.metrics import UNMATCHED, Metrics

PATH_SHOWN_MAX = 300
PROBES = frozenset({"/live", "/health", "/metrics"})

log = logging.getLogger("registry.access")


class Observed:
    """Counts, times and logs the requests of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, noting_status)
        finally:
            seconds = time.perf_counter() - started
            route = route_of(scope)
            self._metrics.answered(route, scope["method"], status, seconds)
            tell(scope, route, status, seconds)
            # It knows all that was asked, which knows it: both would stay for a while.
            scope.pop("problem", None)


def route_of(scope: Scope) -> str:
    """The template of the route that took a request."""
    route = scope.get("route")
    return UNMATCHED if route is None else route.path


def tell(
    scope: Scope,
    route: str,
    status: int,
    seconds: float | None,
    *,
    error: RegistryError | None = None,
    level: int | None = None,
) -> None:
    """Write the access line of a request."""
    level = level or _level(route, status)
    if not log.isEnabledFor(level):
        return
    grant = scope.get("grant")
    _write(
        level,
        scope["method"],
        scope["raw_path"],
        route,
        status,
        seconds,
        error or scope.get("problem"),
        scope.get("request_id"),
        None if grant is None else grant.name,
    )


def tell_call(
    method: str,
    raw_path: bytes,
    route: str,
    status: int,
    seconds: float,
    error: RegistryError | None,
    request_id: str,
    actor: str | None,
) -> None:
    """Write the access line of a request that came without a scope."""
    level = _level(route, status)
    if log.isEnabledFor(level):
        _write(level, method, raw_path, route, status, seconds, error, request_id, actor)


def _write(
    level: int,
    method: str,
    raw_path: bytes,
    route: str,
    status: int,
    seconds: float | None,
    error: RegistryError | None,
    request_id: str | None,
    actor: str | None,
) -> None:
    values: dict[str, object] = {
        "method": method,
        "path": raw_path.decode("ascii", "backslashreplace")[:PATH_SHOWN_MAX],
        "route": route,
        "status": status,
        "milliseconds": None if seconds is None else round(seconds * 1000, 2),
        **_fields_of(error, status),
        "request_id": request_id,
        "actor": actor,
    }
    logs.tell(log, level, "answered", values)


def tell_refused(error: RegistryError, status: int, request_id: str) -> None:
    """Write the access line of what no application was asked for."""
    # Not louder where the service is to blame: there may be thousands, and they are told together.
    if log.isEnabledFor(logging.INFO):
        more = {"status": status, **_fields_of(error, status), "request_id": request_id}
        logs.tell(log, logging.INFO, "refused", more)


def _level(route: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    return logging.DEBUG if route in PROBES else logging.INFO


def _fields_of(error: RegistryError | None, status: int) -> dict[str, Any]:
    """What was wrong: its code, and in full where the service is to blame."""
    if error is None:
        return {}
    return {"code": error.code, "detail": error.detail if status >= 500 else None}
