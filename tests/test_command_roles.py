"""Who may give which command: as the table of the routes says it for HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.every_command import CASES, World, a_world, words_of
from tests.forks import Forks, Surroundings
from tests.test_access import ALLOWED, CALLERS, OK, make_tokens

COMMANDS = sorted(name for name, case in CASES.items() if case.kind)
CODES = {401: "unauthenticated", 403: "forbidden"}


@dataclass(frozen=True)
class Guarded:
    """A world whose service asks for tokens, for reads as well, and the token of each caller."""

    world: World
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    made = make_tokens(folder / "tokens.toml")
    flags = {"token_file": folder / "tokens.toml", "require_read_token": True}
    with a_world(folder, token=made["admin"], **flags) as world:
        yield Guarded(world, made | {"stranger": "mreg_" + "0" * 43})


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as made:
        yield made


def test_every_command_that_asks_a_service_takes_a_token(guarded: Guarded, forks: Forks) -> None:
    for name in COMMANDS:
        done = forks.run(
            *name.split(),
            "--help",
            surroundings=Surroundings(),
            directory=guarded.world.folder,
        )
        assert "--token" in done.stdout, name


BY_URL = {
    ("audit",): "read",
    ("audit", "--class", "orphan_entry"): "read",
    ("sweep", "--dry-run"): "read",
    ("sql", "SELECT 1"): "administer",
}
"""What opens a database unless it is told to ask a service, with what it asks of a token then."""


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("words", BY_URL, ids=" ".join)
def test_what_asks_a_service_instead_of_a_database_needs_the_same_rights(
    guarded: Guarded, forks: Forks, words: tuple[str, ...], caller: str
) -> None:
    kind = BY_URL[words]
    expected = ALLOWED["read with a token" if kind == "read" else kind][CALLERS.index(caller)]
    token = guarded.tokens.get(caller)
    variables = {} if token is None else {"REGISTRY_TOKEN": token}
    line = [*words, "--json", *guarded.world.to_service()]
    done = forks.run(*line, surroundings=Surroundings(variables), directory=guarded.world.folder)
    if expected == OK:
        assert done.returncode == 0, done
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert json.loads(done.stderr)["code"] == CODES[int(expected)]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_carried_out_for_those_who_may_give_it_and_nobody_else(
    guarded: Guarded, forks: Forks, name: str, caller: str
) -> None:
    """Half of the callers give their token as a flag, half as a variable."""
    kind = CASES[name].kind
    assert kind is not None
    expected = ALLOWED["read with a token" if kind == "read" else kind][CALLERS.index(caller)]
    token = guarded.tokens.get(caller)
    words = words_of(name, guarded.world, json=True)
    variables: dict[str, str] = {}
    if token is not None and CALLERS.index(caller) % 2:
        words += ["--token", token]
    elif token is not None:
        variables["REGISTRY_TOKEN"] = token
    done = forks.run(*words, surroundings=Surroundings(variables), directory=guarded.world.folder)
    if expected == OK:
        assert done.returncode == 0, done
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert json.loads(done.stderr)["code"] == CODES[int(expected)]
    for secret in guarded.tokens.values():
        assert secret not in done.stdout + done.stderr
