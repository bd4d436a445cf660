"""For whoever runs the service: does it live, can it serve?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__
from registry.errors import Invalid, RegistryError
from registry.server.http import answer, registry_of, while_there
from registry.server.metrics import CONTENT_TYPE
from registry.server.routes.administration import is_set
from registry.service import health as health_checks
from registry.store.reads.audit import OF_DISCOVERY, joined
from registry.wire.reports import (
    AuditResponse,
    DiscoveryComparisonResponse,
    HealthResponse,
    LiveResponse,
)

if TYPE_CHECKING:
    from registry.server.certificates import Certificate
    from registry.service.discovery_watch import DiscoveryWatch
    from registry.service.lanes import Shared
    from registry.service.registry import Registry


async def live(_request: Request) -> Response:
    """`GET /live`: the process runs."""
    return answer(LiveResponse("ok", __version__))


async def health(request: Request) -> Response:
    """`GET /health`: it can serve and write; 503 with the failing checks."""
    body = await cast("Shared[HealthResponse]", request.state.health).get()
    return answer(body, 200 if body.status == "ok" else 503)


async def health_of(
    registry: Registry,
    certificate: Certificate | None = None,
    watch: DiscoveryWatch | None = None,
) -> HealthResponse:
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
    if watch is not None and watch.news.problem is not None:
        warnings["discovery"] = watch.news.problem
    failing = any(found != "ok" for found in checks.values())
    return HealthResponse("failing" if failing else "ok", checks, warnings)


async def show_audit(request: Request) -> Response:
    """`GET /v1/audit`: what is wrong, by class, and how the registry is."""
    name = request.query_params.get("class")
    classes = [] if name is None else [name]
    watch = _comparison_asked_for(request, implied=name in OF_DISCOVERY)
    registry = registry_of(request)
    now = registry.database.clock()
    found = None if watch is None else watch.report(now)
    report = await while_there(request, registry.lookups.audit(classes))
    if found is None:
        return answer(AuditResponse.of(report))
    comparison = DiscoveryComparisonResponse.of(found, now)
    return answer(AuditResponse.of(joined(report, found.audit, classes), comparison))


def _comparison_asked_for(request: Request, *, implied: bool) -> DiscoveryWatch | None:
    """The comparison with discovery, if it is asked for or implied.

    Raises:
        Invalid: this service makes none, or what is asked is neither yes nor no.
    """
    if not is_set(request, "discovery") and not implied:
        return None
    watch = cast("DiscoveryWatch | None", request.state.discovery)
    if watch is None:
        raise Invalid(
            "This service is not compared with discovery: start it with the URL of the store, "
            "serve --discovery URL (setting discovery)."
        )
    return watch


async def show_metrics(request: Request) -> Response:
    """`GET /metrics`: for Prometheus."""
    text = await request.state.report.text()
    return Response(text, headers={"Content-Type": CONTENT_TYPE})
