"""`/health` tells the truth, in time, and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from registry.config import Settings
from registry.service import health as health_module
from registry.service.registry import Registry
from registry.store.engine import Engine
from registry.store.opening import open_database
from tests.places import Place, on_both, on_sqlite
from tests.support import Server

pytestmark = on_both


def health_of(server: Server) -> tuple[int, dict[str, str]]:
    answer = server.client.get("/health")
    body: dict[str, Any] = answer.json()
    assert (answer.status_code == 200) == (body["status"] == "ok")
    return answer.status_code, body["checks"]


@asynccontextmanager
async def started(place: Place, **settings: Any) -> AsyncIterator[Registry]:
    """A registry in this process, for what no request can break."""
    registry = Registry(Settings(database_url=place.url, **settings), open_database(place.url))
    await registry.start()
    try:
        yield registry
    finally:
        await registry.close()


def test_a_healthy_service_says_so_of_every_check(server: Server) -> None:
    status, checks = health_of(server)
    assert status == 200
    assert {"database", "schema", "writer", "disk"} <= checks.keys()
    assert set(checks.values()) == {"ok"}


@on_sqlite
def test_a_disk_with_too_little_space_is_told_with_the_way_out(
    serve: Callable[..., Server],
) -> None:
    server = serve(min_free_bytes=1 << 40)
    status, checks = health_of(server)
    assert status == 503
    assert {name for name, found in checks.items() if found != "ok"} == {"disk"}
    for word in ("bytes are free", str(server.database), "min_free_bytes", "Free some space"):
        assert word in checks["disk"]


def test_a_database_that_stays_locked_is_told(serve: Callable[..., Server]) -> None:
    server = serve(busy_timeout_s=0.2)
    with server.place.write_locked():
        status, checks = health_of(server)
    assert status == 503
    assert "lock" in checks["database"]
    assert health_of(server)[0] == 200


def test_a_writer_that_ended_is_told_and_is_not_waited_for(place: Place, database: Engine) -> None:
    async def scenario() -> dict[str, str]:
        async with started(place) as registry:
            registry.writer.close()
            return await registry.health.check()

    checks = asyncio.run(scenario())
    assert "restart the service" in checks["writer"]
    assert "restart the service" in checks["database"]
    assert checks["disk"] == "ok"


def test_a_check_that_hangs_is_given_up(place: Place, database: Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr(health_module, "PATIENCE_S", 3.0)

    async def hang(*_arguments: object) -> Any:
        await asyncio.Event().wait()

    async def scenario() -> dict[str, str]:
        async with started(place, busy_timeout_s=0) as registry:
            submit: Callable[..., Awaitable[Any]] = registry.writer.submit
            monkeypatch.setattr(registry.writer, "submit", hang)
            found = await registry.health.check()
            monkeypatch.setattr(registry.writer, "submit", submit)
            return found

    checks = asyncio.run(scenario())
    assert "no answer within 3 s" in checks["database"]
    assert {found for name, found in checks.items() if name != "database"} == {"ok"}
