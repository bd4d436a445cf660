"""Both distributions, each installed from the index into an environment that holds nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import __version__
from tests.support import MODEL, ROOT, Server
from tests.test_install import CLIENT_BRINGS, project
from tests.wheels import Environment, wheels

SERVICE_BRINGS = {
    *("alembic", "httptools", "prometheus-client", "sqlalchemy", "starlette", "uvicorn", "uvloop"),
}
OLDER = {"starlette": "0.41.3", "fastapi": "0.115.6", "uvicorn": "0.32.1"}
"""What a serving engine of two years ago has pinned."""


@contextmanager
def serving(environment: Environment, *words: object) -> Iterator[str]:
    """A service of an environment of its own; its URL."""
    command = [str(environment.command), "serve", "--port", "0", *map(str, words)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=environment.folder,
    ) as service:
        try:
            assert service.stdout is not None
            yield service.stdout.readline().split()[-1]
        finally:
            service.terminate()


@pytest.mark.timeout(900)
def test_the_client_works_beside_an_older_web_framework_and_brings_none(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, server: Server
) -> None:
    environment = Environment(tmp_path / "client")
    pins = [f"{name}=={version}" for name, version in OLDER.items()]
    environment.install(*pins, locked=False)
    brought = environment.install(str(wheels(tmp_path_factory).client))
    assert brought >= CLIENT_BRINGS
    assert not brought & {*SERVICE_BRINGS, *OLDER}

    versions = f"import importlib.metadata as m; print([m.version(n) for n in {list(OLDER)}])"
    assert environment.run(environment.python, "-c", versions) == f"{list(OLDER.values())}\n"
    environment.run(environment.python, "-c", BESIDE_FASTAPI)
    use_as_a_client(environment, server, tmp_path)
    environment.run(environment.command, "serve", code=2)


BESIDE_FASTAPI = """
import asyncio, fastapi, registry.client, registry.mirror
app = fastapi.FastAPI()
app.get("/")(lambda: registry.__version__)
sent = []
async def send(message): sent.append(message)
async def receive(): return {"type": "http.request"}
scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
asyncio.run(app({**scope, "http_version": "1.1"}, receive, send))
assert sent[0]["status"] == 200
"""


def use_as_a_client(environment: Environment, server: Server, folder: Path) -> None:
    """Attach a model, look at it, fetch it, mirror a fleet, detach."""
    command, to = environment.command, ["--url", server.url]
    assert environment.run(command, "--version") == f"metadata-registry {__version__}\n"
    named = ["--name", "mini", "--endpoint", "a/b/c", "--instance-id", 1]
    environment.run(command, "attach", MODEL, *named, *to)
    assert "mini/_base" in environment.run(command, "models", *to)
    environment.run(command, "fetch", "mini", "--to", folder / "fetched", *to)
    fetched = (folder / "fetched/tokenizer.json").read_bytes()
    assert fetched == (MODEL / "tokenizer.json").read_bytes()
    (folder / "kv").mkdir()
    told = environment.run(command, "mirror", f"file:{folder}/kv", "--once", *to)
    assert "0 cards" in told
    environment.run(command, "health", *to)
    environment.run(command, "detach", "a/b/c/1/_base", *to)
    assert server.client.get("/v1/models").json()["models"] == []


@pytest.mark.timeout(900)
def test_the_whole_brings_what_serves_and_the_client_beside_it_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "whole")
    built = wheels(tmp_path_factory)
    brought = environment.install(str(built.whole))
    assert brought >= CLIENT_BRINGS | SERVICE_BRINGS
    extras = project(ROOT)["project"]["optional-dependencies"]
    named = {each.split("[")[0].split(">")[0] for extra in extras.values() for each in extra}
    assert not brought & named
    assert environment.install(str(built.client)) == {"metadata-registry-client"}
    with serving(environment) as url:
        environment.run(environment.command, "health", "--url", url)
        environment.run(environment.command, "events", "--url", url)
