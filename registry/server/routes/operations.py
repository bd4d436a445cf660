"""For whoever runs the service: does it live, can it serve?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__
from registry.errors import RegistryError
from registry.server.http import answer, registry_of, while_there
from registry.server.metrics import CONTENT_TYPE
from registry.service import health as health_checks
from registry.wire.reports import AuditResponse, HealthResponse, LiveResponse

if TYPE_CHECKING:
    from registry.server.certificates import Certificate
    from registry.service.lanes import Shared
    from registry.service.registry import Registry


async def live(_request: Request) -> Response:
    """`GET /live`: the process runs."""
    return answer(LiveResponse("ok", __version__))


async def health(request: Request) -> Response:
    """`GET /health`: it can serve and write; 503 with the failing checks."""
    body = await cast("Shared[HealthResponse]", request.state.health).get()
    return answer(body, 200 if body.status == "ok" else 503)


async def health_of(registry: Registry, certificate: Certificate | None = None) -> HealthResponse:
    """How the service is, looked at once for all who ask meanwhile."""
    checks = await registry.health.check()
    warnings: dict[str, str] = {}
    try:
        async with asyncio.timeout(health_checks.PATIENCE_S):
            checks["sweeper"], warnings = await registry.health.check_sweeper()
    except RegistryError as error:
        checks["sweeper"] = error.detail
    except TimeoutError:
        checks["sweeper"] = f"no answer within {health_checks.PATIENCE_S:g} s"
    warnings |= registry.database.warnings() | registry.roots.warnings()
    warning = None if certificate is None else certificate.warning()
    if warning is not None:
        warnings["certificate"] = warning
    failing = any(found != "ok" for found in checks.values())
    return HealthResponse("failing" if failing else "ok", checks, warnings)


async def show_audit(request: Request) -> Response:
    """`GET /v1/audit`: what is wrong, by class, and how the registry is."""
    name = request.query_params.get("class")
    classes = [] if name is None else [name]
    report = await while_there(request, registry_of(request).lookups.audit(classes))
    return answer(AuditResponse.of(report))


async def show_metrics(request: Request) -> Response:
    """`GET /metrics`: for Prometheus."""
    text = await request.state.report.text()
    return Response(text, headers={"Content-Type": CONTENT_TYPE})
