"""What the two distributions bring along, and that the client leaves its neighbours alone."""

from __future__ import annotations

import ast
import json
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry import __version__
from registry.cli import COMMANDS
from tests.support import MODEL, ROOT, Server
from tests.test_imports import modules
from tests.wheels import CLIENT, Environment, wheels

CLIENT_BRINGS = {"blake3", "httpx2", "msgspec", "rich", "typer"}
SERVICE_BRINGS = {
    *("alembic", "httptools", "prometheus-client", "sqlalchemy", "starlette", "uvicorn", "uvloop"),
}
OLDER = {"starlette": "0.41.3", "fastapi": "0.115.6", "uvicorn": "0.32.1"}
"""What a serving engine of two years ago has pinned."""


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def included() -> dict[str, str]:
    """Where a file or folder of the client's wheel comes from, and where it goes."""
    build = project(CLIENT)["tool"]["hatch"]["build"]["targets"]["wheel"]
    return dict(build["force-include"])


def modules_of_the_client() -> set[str]:
    targets = included().values()
    found = set()
    for name, path in modules().items():
        relative = str(path.relative_to(ROOT))
        if any(relative == each or relative.startswith(f"{each}/") for each in targets):
            found.add(name)
    return found


COMMANDS_OF_THE_CLIENT = {
    name
    for name, (home, _) in COMMANDS.items()
    if f"{home.partition(':')[0].replace('.', '/')}.py" in included().values()
}


# The list of what is in it


def imported_when_it_runs(path: Path) -> Iterator[str]:
    """Every module of ours that a module imports, at its top or within a function."""
    tree = ast.parse(path.read_text())
    only_for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_client_holds_every_module_that_one_of_its_modules_imports() -> None:
    known, held = modules(), modules_of_the_client()
    missing = {
        f"{name} imports {imported}"
        for name in held
        for imported in imported_when_it_runs(known[name])
        if imported in known and imported not in held
    }
    assert missing == set(), "name the files in packaging/client/pyproject.toml"


def test_the_client_is_built_of_the_files_of_the_whole() -> None:
    for source, target in included().items():
        assert (CLIENT / source).resolve() == ROOT / target
        assert (ROOT / target).exists(), target
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_client_asks_for_the_same_versions_as_the_whole() -> None:
    whole, client = project(ROOT)["project"], project(CLIENT)["project"]
    assert set(client["dependencies"]) < set(whole["dependencies"])
    assert {each.split(">")[0] for each in client["dependencies"]} == CLIENT_BRINGS
    assert client["requires-python"] == whole["requires-python"]
    for name, extra in client["optional-dependencies"].items():
        assert extra == whole["optional-dependencies"][name]
    assert client["scripts"] == whole["scripts"]


def test_the_commands_of_the_client_are_those_that_its_readme_names() -> None:
    text = (CLIENT / "README.md").read_text() + (ROOT / "docs/install.md").read_text()
    assert {name for name in COMMANDS if text.count(f"`{name}`") >= 2} == COMMANDS_OF_THE_CLIENT


# Installed


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


@pytest.mark.timeout(300)
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
    assert_others_are_named(environment)


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


def assert_others_are_named(environment: Environment) -> None:
    """Commands of the service, and the registry in-process, say what to install."""
    shown = environment.run(environment.command, "--help")
    for name in COMMANDS:
        assert (f"  {name} " in shown) == (name in COMMANDS_OF_THE_CLIENT), name
    told = environment.run(environment.command, "serve", code=2)
    assert told.startswith("error: This command is not in metadata-registry-client")
    assert "pip install metadata-registry." in told
    problem = json.loads(environment.run(environment.command, "audit", "--json", code=2))
    assert problem["code"] == "usage"
    embedded = "from registry import MetadataArtifactRegistry"
    told = environment.run(environment.python, "-c", embedded, code=1)
    assert "ImportError: MetadataArtifactRegistry is not in metadata-registry-client" in told


@pytest.mark.timeout(300)
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
