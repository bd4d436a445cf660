"""What the two distributions bring along, and that the client leaves its neighbours alone."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.cli import COMMANDS
from tests.support import MODEL, ROOT, Server
from tests.test_imports import modules
from tests.wheels import CLIENT, wheels

CLIENT_BRINGS = {"blake3", "httpx2", "msgspec", "rich", "typer"}


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client, whose libraries are those that are tested with."""
    target = tmp_path_factory.mktemp("client") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    wheel = str(wheels(tmp_path_factory).client)
    subprocess.run([*pip, "--target", str(target), wheel], check=True, timeout=100)
    return target


def run(site: Path, *words: object, code: int = 0) -> str:
    """Run a command of the client; what it said on both outputs."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "registry", *map(str, words)],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_command_of_the_service_says_what_to_install(alone: Path) -> None:
    shown = run(alone, "--help")
    for name in COMMANDS:
        assert (f"  {name} " in shown) == (name in COMMANDS_OF_THE_CLIENT), name
    told = run(alone, "serve", "--workers", 2, code=2)
    assert told.startswith("error: This command is not in metadata-registry-client")
    assert "pip install metadata-registry." in told
    problem = json.loads(run(alone, "audit", "--json", code=2))
    assert problem["code"] == "usage"


def test_the_registry_in_process_says_what_to_install(alone: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from registry import MetadataArtifactRegistry"],
        env={**os.environ, "PYTHONPATH": str(alone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ImportError: MetadataArtifactRegistry is not in metadata-registry-client" in done.stderr


def test_the_client_uses_a_service(alone: Path, server: Server) -> None:
    to = ["--url", server.url]
    named = ["--name", "mini", "--endpoint", "a/b/c", "--instance-id", 1]
    run(alone, "attach", MODEL, *named, *to)
    assert "mini/_base" in run(alone, "models", *to)
    run(alone, "health", *to)
    run(alone, "detach", "a/b/c/1/_base", *to)
    assert server.client.get("/v1/models").json()["models"] == []
