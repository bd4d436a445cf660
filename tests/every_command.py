"""Every command of the program, with the words that make it do its work once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from registry import cli
from registry.core.records import ArtifactKey, Owner
from registry.server import tokens
from registry.server.tokens import Role
from tests.commands import run_here
from tests.exchanges import running
from tests.support import Server

OURS = "prod"
HELD = Owner(OURS, "backend", "generate", 14594360683070792150)
KEY = ArtifactKey("org_tiny", "_base", "config.json")
OTHER_KEY = ArtifactKey("org_tiny", "_base", "größe\u202egpj.\u200bjson")
"""Its name has letters that ASCII lacks, and what a terminal would obey."""

CONTENTS = {KEY: b"{}", OTHER_KEY: b"[1]"}


@dataclass(frozen=True)
class World:
    """A service that holds a model, the database of another one, and files to work with."""

    folder: Path
    url: str
    model: Path
    database: Path
    numbers: Iterator[int]
    server: Server

    def new(self, name: str) -> Path:
        """A path that nothing is at."""
        return self.folder / f"{next(self.numbers)}-{name}"

    def another_model(self) -> str:
        """The slug of a model that is registered now and no command has to do with."""
        slug = f"other-{next(self.numbers)}"
        owner = Owner(OURS, "backend", slug, 1)
        key = ArtifactKey(slug, "_base", KEY.filename)
        assert self.server.register_copies(owner, {key: CONTENTS[KEY]}).status_code == 200
        return slug

    def copy(self) -> str:
        """The URL of a database of one's own."""
        return f"sqlite:///{shutil.copy(self.database, self.new('copy.db'))}"

    def to_service(self) -> list[object]:
        return ["--url", self.url]

    def to_database(self) -> list[object]:
        return ["--database-url", f"sqlite:///{self.database}"]


@dataclass(frozen=True)
class Case:
    """How a command is called so that it does its work, and what it needs for it.

    `kind` is what it asks of a token, as in the table of the routes; None: no service is asked.
    """

    words: Callable[[World], list[object]]
    kind: str | None = None
    opens_database: bool = False
    has_json: bool = True
    code: int = 0


def asking(*words: object, kind: str = "read") -> Case:
    return Case(lambda world: [*words, *world.to_service()], kind)


def opening(*words: object) -> Case:
    return Case(lambda world: [*words, *world.to_database()], opens_database=True)


def _attach(world: World) -> list[object]:
    name = ["--name", "Org/Tiny", "--endpoint", f"{OURS}/backend/generate"]
    return [world.model, *name, *world.to_service()]


def _new_token(world: World) -> list[object]:
    return ["--role", "read", "--token-file", world.new("tokens.toml")]


def _token_file(world: World) -> Path:
    """A token file with a token of the name `worker`."""
    file = world.new("tokens.toml")
    tokens.create(file, Role.READ, name="worker")
    return file


CASES: dict[str, Case] = {
    "serve": Case(
        # It would stay; here its port is taken.
        lambda world: ["--port", world.url.rpartition(":")[2], "--database-url", world.copy()],
        opens_database=True,
        has_json=False,
        code=2,
    ),
    "demo": Case(
        # It would stay; here its port is taken.
        lambda world: ["--port", world.url.rpartition(":")[2], "--directory", world.new("demo")],
        has_json=False,
        code=2,
    ),
    "db upgrade": Case(lambda world: ["--database-url", world.copy()], opens_database=True),
    "db downgrade": Case(
        lambda world: ["0002", "--yes", "--database-url", world.copy()], opens_database=True
    ),
    "db backup": Case(
        lambda world: [world.new("backup.db"), *world.to_database()], opens_database=True
    ),
    "db restore": Case(
        lambda world: [world.database, "--database-url", f"sqlite:///{world.new('restored.db')}"]
    ),
    "db copy": Case(
        lambda world: [
            *("--from", world.to_database()[-1], "--to", f"sqlite:///{world.new('copied.db')}")
        ]
    ),
    "db current": opening(),
    "db history": Case(lambda world: []),
    "db check": opening(),
    "token new": Case(_new_token),
    "token list": Case(lambda world: ["--token-file", _token_file(world)]),
    "token revoke": Case(lambda world: ["worker", "--token-file", _token_file(world)]),
    "doctor": Case(lambda world: [*world.to_database(), "--port", 0, *world.to_service()]),
    "config show": Case(lambda world: []),
    "attach": Case(_attach, "register"),
    "detach": asking(f"{OURS}/backend/nobody/1/_base", kind="owner"),
    "renew": asking(HELD, kind="owner"),
    "drain": asking(HELD, "--deadline-s", 86_400, kind="owner"),
    "rm": Case(lambda world: [world.another_model(), "--yes", *world.to_service()], "administer"),
    "fetch": asking(KEY.slug),
    "mirror": Case(
        lambda world: [f"file:{world.new('kv')}", "--once", *world.to_service()], "read"
    ),
    "ls": asking(),
    "owners": asking(),
    "models": asking(),
    "events": asking(),
    "explain": asking(KEY),
    "health": asking(kind="open"),
    "sql": opening("SELECT * FROM holders"),
    "audit": opening(),
    "sweep": opening(),
    "verify": opening(),
}


def every_command() -> dict[str, Any]:
    """Every command that does something, by how it is called."""
    found: dict[str, Any] = {}
    for name, (home, _) in cli.COMMANDS.items():
        command = cli._loaded(home)
        if isinstance(command, TyperGroup):
            found |= {f"{name} {each}": inner for each, inner in command.commands.items()}
        else:
            found[name] = command
    return found


def words_of(name: str, world: World, *, json: bool = False) -> list[object]:
    """The command line of a command, without the program."""
    words = [*name.split(), *CASES[name].words(world)]
    return [*words, "--json"] if json else words


@contextmanager
def a_world(folder: Path, **flags: Any) -> Iterator[World]:
    """A world in a folder; the flags are the service's."""
    model = folder / "model"
    model.mkdir()
    for key, content in CONTENTS.items():
        (model / key.filename).write_bytes(content)
    with running(folder, **flags) as server:
        assert server.register_copies(HELD, CONTENTS, lease_ttl_s=3600).status_code == 200
        other = folder / "other.db"
        database = f"sqlite:///{server.database}"
        assert run_here("db", "backup", other, "--database-url", database).returncode == 0
        yield World(folder, server.url, model, other, itertools.count(), server)
