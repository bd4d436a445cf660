"""The examples in the help of every command: there are some, and each is one that works."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from registry import cli
from registry.cli.examples import EXAMPLES
from tests.commands import run_here
from tests.every_command import every_command

GROUPS = {
    name for name, (home, _) in cli.COMMANDS.items() if isinstance(cli._loaded(home), TyperGroup)
}


def test_every_command_has_examples_and_nothing_else_has() -> None:
    assert EXAMPLES.keys() == every_command().keys() | GROUPS | {""}


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda name: name or "the program")
def test_the_help_ends_with_examples_that_the_command_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = run_here(*name.split(), "--help")
    assert done.returncode == 0
    _, heading, end = done.stdout.rpartition("  Example")
    assert heading, done.stdout
    lines = [line.strip() for line in end.splitlines()[1:] if line.strip()]
    assert lines == [f"metadata-registry {each}" for each in EXAMPLES[name]]
    for each in EXAMPLES[name]:
        assert each.startswith(name), "an example is of the command that it stands at"
        parse(shlex.split(each))


def test_the_statements_of_the_examples_are_answered(tmp_path: Path) -> None:
    to = ["--database-url", f"sqlite:///{tmp_path}/registry.db"]
    assert run_here("db", "upgrade", *to).returncode == 0
    for each in EXAMPLES["sql"]:
        done = run_here(*shlex.split(each)[:2], *to)
        assert done.returncode == 0, done


def parse(words: list[str]) -> None:
    """Take a command line as the program does, up to where the command would begin its work."""
    command: Any = cli._loaded(cli.COMMANDS[words[0]][0])
    rest = words[1:]
    if isinstance(command, TyperGroup):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], rest)
