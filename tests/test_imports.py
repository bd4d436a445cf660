"""Imports point one way, and importing the package pulls in neither a server nor a database."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

# Lowest first: a module imports from its own layer and from those below it.
LAYERS = [
    {"registry", "registry.core.records", "registry.errors"},
    {
        *(
            "registry.wire.messages",
            "registry.core.slugs",
            "registry.core.hashing",
            "registry.config",
        ),
        *(
            "registry.server.metrics",
            "registry.server.tokens",
            "registry.wire.types",
            "registry.server.logs",
        ),
        *(
            "registry.content.budget",
            "registry.core.malloc",
            "registry.content.roots",
            "registry.content.blocks",
        ),
        *("registry.content.mounts", "registry.content.file_pools", "registry.content.places"),
    },
    {"registry.db"},
    {
        *(
            "registry.service.registry",
            "registry.content.sources",
            "registry.content.manifest",
            "registry.content.cache",
        ),
        *(
            "registry.service.embedded",
            "registry.service.sweeper",
            "registry.content.uploads",
            "registry.content.streams",
        ),
        "registry.content.file_memory",
    },
    {"registry.api", "registry.web"},
    {"registry.cli", "registry.__main__"},
]
CLIENT = {"registry.client", "registry.discovery"}
CLIENT_MAY_IMPORT = {
    *(
        "registry",
        "registry.core.records",
        "registry.errors",
        "registry.wire.messages",
        "registry.core.hashing",
    ),
    *("registry.core.slugs", "registry.wire.types", *CLIENT),
}
LAZY = {"registry"}
"""Names its public modules, and loads them when they are used."""

SERVER = {"starlette", "uvicorn"}
DATABASE = {"sqlalchemy", "alembic"}
HOMES = {
    "starlette": {"registry.api", "registry.web"},
    "uvicorn": {"registry.api"},
    "sqlalchemy": {"registry.db"},
    "alembic": {"registry.db"},
    "sqlite3": {"registry.db", "registry.cli"},
    "httpx2": {"registry.client", "registry.discovery"},
    "typer": {"registry.cli"},
    "rich": {"registry.cli"},
}
"""The parts that may import a library."""


def part_of(module: str) -> str:
    """`registry.store.ops.register` belongs to `registry.db`."""
    return ".".join(module.split(".")[:2])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_of(path): path for path in (ROOT / "registry").rglob("*.py")}


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those within functions and for type checkers included."""
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


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


MODULES = sorted(modules().items())
of_every_module = pytest.mark.parametrize(("module", "path"), MODULES, ids=[m for m, _ in MODULES])


@of_every_module
def test_a_module_has_its_place_and_imports_nothing_from_above(module: str, path: Path) -> None:
    part = part_of(module)
    assert part in CLIENT.union(*LAYERS), f"{part} has no place in the layers yet"
    if part in LAZY:
        return
    for line, imported in imports_of(path):
        if imported.split(".")[0] != "registry":
            continue
        target = part_of(imported)
        where = f"{path}:{line}: {module} imports {imported}"
        if part in CLIENT:
            assert target in CLIENT_MAY_IMPORT, where
        elif target in CLIENT:
            assert part == "registry.cli", where
        else:
            assert layer_of(target) <= layer_of(part), where


@of_every_module
def test_a_module_imports_only_libraries_that_belong_to_its_part(module: str, path: Path) -> None:
    for line, imported in imports_of(path):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or part_of(module) in homes, f"{path}:{line}: {imported}"


def test_migrations_import_nothing_of_the_registry() -> None:
    """They are frozen: what they did must not change with the program."""
    migrations = list((ROOT / "migrations").rglob("*.py"))
    assert len(migrations) >= 2
    for path in migrations:
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
