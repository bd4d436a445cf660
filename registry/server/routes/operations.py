"""For whoever runs the service: does it live, can it serve?"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__
from registry.errors import RegistryError
from registry.server.http import answer, check_query, registry_of
from registry.server.metrics import CONTENT_TYPE
from registry.wire import messages as wire


async def live(_request: Request) -> Response:
    """`GET /live`: the process runs."""
    return answer(wire.LiveResponse("ok", __version__))


async def health(request: Request) -> Response:
    """`GET /health`: it can serve and write; 503 with the failing checks."""
    registry = registry_of(request)
    checks = await registry.health()
    warnings: dict[str, str] = {}
    try:
        checks["sweeper"], warnings = await registry.sweep_health()
    except RegistryError as error:
        checks["sweeper"] = error.detail
    failing = any(found != "ok" for found in checks.values())
    body = wire.HealthResponse("failing" if failing else "ok", checks, warnings)
    return answer(body, 503 if failing else 200)


async def show_audit(request: Request) -> Response:
    """`GET /v1/audit`: what is wrong, by class, and how the registry is."""
    check_query(request, "class")
    name = request.query_params.get("class")
    report = await registry_of(request).audit([] if name is None else [name])
    return answer(wire.AuditResponse.of(report))


async def show_metrics(request: Request) -> Response:
    """`GET /metrics`: for Prometheus."""
    text = await request.state.report.text()
    return Response(text, headers={"Content-Type": CONTENT_TYPE})
