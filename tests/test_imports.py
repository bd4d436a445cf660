"""Imports point one way, and importing the package pulls in neither a server nor a database."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

# What each room may import besides itself. `registry` has the public names and the version.
ROOMS: dict[str, set[str]] = {
    "registry": set(),
    "registry.errors": {"registry.core"},
    "registry.core": {"registry.errors"},
    "registry.config": {"registry", "registry.errors", "registry.core"},
    "registry.wire": {"registry", "registry.errors", "registry.core"},
    "registry.store": {"registry", "registry.errors", "registry.core", "registry.wire"},
    "registry.content": {"registry.errors", "registry.core", "registry.store"},
    "registry.service": {
        *("registry", "registry.errors", "registry.config", "registry.core", "registry.wire"),
        *("registry.store", "registry.content", "registry.discovery"),
    },
    "registry.server": {
        *("registry", "registry.errors", "registry.config", "registry.core", "registry.wire"),
        *("registry.store", "registry.content", "registry.service", "registry.network"),
        "registry.discovery",
    },
    "registry.network": {"registry.errors", "registry.core"},
    "registry.discovery": {"registry.errors", "registry.core", "registry.network"},
    "registry.client": {
        *("registry", "registry.errors", "registry.core", "registry.wire", "registry.network"),
        "registry.discovery",
    },
}
ROOMS["registry.mirror"] = ROOMS["registry.client"] | {"registry.client"}
ROOMS["registry.records"] = {"registry.core"}
MAY_IMPORT_ALL = {"registry.cli", "registry.__main__"}
LAZY = {"registry"}
"""Names its public modules, and loads them when they are used."""

SERVER = {"starlette", "uvicorn"}
DATABASE = {"sqlalchemy", "alembic", "psycopg"}
HOMES = {
    "starlette": {"registry.server"},
    "uvicorn": {"registry.server"},
    "sqlalchemy": {"registry.store"},
    "alembic": {"registry.store"},
    "psycopg": {"registry.store"},
    "sqlite3": {"registry.store", "registry.cli"},
    "httpx2": {"registry.client", "registry.network", "registry.discovery", "registry.mirror"},
    "lightkube": {"registry.discovery"},
    "typer": {"registry.cli"},
    "rich": {"registry.cli"},
}
"""The rooms that may import a library."""


def part_of(module: str) -> str:
    """`registry.store.ops.register` is in the room `registry.store`."""
    return ".".join(module.split(".")[:2])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in (ROOT / "registry").rglob("*.py")}


@functools.cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, module) of every import, those within functions and for type checkers included."""
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[int, str]]:
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            module = node.module or ""
            yield node.lineno, module
            below = [f"{module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in below if name in known)


MODULES = sorted(modules().items())
of_every_module = pytest.mark.parametrize(("module", "path"), MODULES, ids=[m for m, _ in MODULES])


@of_every_module
def test_a_module_is_in_a_room_and_imports_only_what_the_room_may(module: str, path: Path) -> None:
    room = part_of(module)
    assert room in ROOMS.keys() | MAY_IMPORT_ALL, f"{room} is no room: see docs/contributing.md"
    if room in LAZY | MAY_IMPORT_ALL:
        return
    for line, imported in imports_of(path):
        if imported.split(".")[0] == "registry":
            target = part_of(imported)
            where = f"{path}:{line}: {module} imports {imported}"
            assert target == room or target in ROOMS[room], where


ENGINES = ("registry.store.sqlite", "registry.store.postgresql")
MAY_NAME_AN_ENGINE = {"registry.store.opening", *ENGINES}
"""In the store, besides what the command line asks an engine for: copies, questions in SQL."""


@of_every_module
def test_only_the_place_that_opens_a_database_names_an_engine(module: str, path: Path) -> None:
    if module.startswith(tuple(MAY_NAME_AN_ENGINE)) or part_of(module) == "registry.cli":
        return
    for line, imported in imports_of(path):
        assert not imported.startswith(ENGINES), f"{path}:{line}: {module} imports {imported}"


OF_SQLITE = re.compile(
    r"sqlite3|\bPRAGMA\b|json_each|BEGIN IMMEDIATE|\browid\b|julianday|data_version"
)


@of_every_module
def test_what_only_sqlite_has_is_spoken_of_in_its_room_alone(module: str, path: Path) -> None:
    if module.startswith("registry.store.sqlite"):
        return
    assert OF_SQLITE.findall(path.read_text()) == []


@of_every_module
def test_a_module_imports_only_libraries_that_belong_to_its_part(module: str, path: Path) -> None:
    for line, imported in imports_of(path):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or part_of(module) in homes, f"{path}:{line}: {imported}"


def test_revisions_import_nothing_of_the_registry() -> None:
    """They are frozen: what they did must not change with the program."""
    revisions = list((ROOT / "migrations" / "versions").rglob("*.py"))
    assert len(revisions) >= 2
    for path in revisions:
        for line, imported in imports_of(path):
            assert imported.split(".")[0] != "registry", f"{path}:{line}: {imported}"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are there after a statement in a new process."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-W", "error", "-c", code]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_no_library_at_all() -> None:
    heavy = SERVER | DATABASE | {"msgspec", "blake3", "httpx2", "sqlite3", "asyncio", "typer"}
    assert loaded_by("import registry") & heavy == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import registry.client",
        "from registry.client import RegistryClient, Resolver",
        "from registry.mirror import Mirror, MirrorMode, MirrorSettings",
        "import registry.cli.mirror, registry.mirror.status_server, registry.core.logs",
        "from registry import Owner, ArtifactKey, RegistryError, Receipt, slugify",
    ],
)
def test_clients_load_no_server_and_no_database(statement: str) -> None:
    assert loaded_by(statement) & (SERVER | DATABASE | {"sqlite3"}) == set()


def test_the_in_process_registry_loads_no_server() -> None:
    statement = "from registry import MetadataArtifactRegistry"
    assert loaded_by(statement) & (SERVER | {"httpx2", "typer"}) == set()


def test_every_public_name_can_be_loaded() -> None:
    loaded_by("import registry\nfor name in registry.__all__: getattr(registry, name)")
    with pytest.raises(subprocess.CalledProcessError):
        loaded_by("import registry\nregistry.no_such_name")
