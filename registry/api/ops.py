"""For whoever runs the service: does it live, can it serve?"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__, wire
from registry.api.http import answer, registry_of


async def live(_request: Request) -> Response:
    """`GET /live`: the process runs."""
    return answer(wire.LiveAnswer("ok", __version__))


async def health(request: Request) -> Response:
    """`GET /health`: it can serve and write; 503 with the failing checks."""
    checks = await registry_of(request).health()
    failing = {name: found for name, found in checks.items() if found != "ok"}
    return answer(
        wire.HealthAnswer("failing" if failing else "ok", checks), 503 if failing else 200
    )
