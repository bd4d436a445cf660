"""Flags and arguments read without what Typer loads for it: the same values, the same words."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from registry.cli.plain_values import read_plainly
from tests.every_command import every_command


class Colour(StrEnum):
    RED = "red"


def command(
    words: Annotated[list[str] | None, typer.Argument()] = None,
    text: str | None = None,
    whole: int | None = None,
    few: Annotated[int, typer.Option(min=1, max=9)] = 5,
    number: float | None = None,
    seconds: Annotated[float, typer.Option(min=0.5)] = 1.5,
    path: Path | None = None,
    there: Annotated[Path | None, typer.Option(exists=True)] = None,
    colour: Colour | None = None,
    switch: bool | None = None,
    many: list[str] | None = None,
    counts: list[int] | None = None,
    upper: Annotated[str, typer.Option(parser=str.upper)] = "UP",
) -> dict[str, Any]:
    return locals()


def outcome(words: list[str], *, is_plain: bool) -> object:
    """What a command was given, with the types, or what Typer says of the words."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    made = typer.main.get_command(app)
    try:
        found = (read_plainly(made) if is_plain else made).main(words, standalone_mode=False)
    except typer.TyperException as error:
        return type(error), error.format_message()
    return repr(found)


FLAGS = ["text", "whole", "few", "number", "seconds", "path", "there", "colour", "many", "counts"]
VALUES = st.one_of(
    st.text(max_size=5),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " 7 ", "7_0", "٣", "-0", "1e3", "nan", "red", "RED", "/", "/nowhere", "0.4"]
    ),
)


@given(st.lists(st.tuples(st.sampled_from([*FLAGS, "upper"]), VALUES), max_size=3))
@example([])
@example([("whole", "9" * 30)])
@example([("few", "10"), ("seconds", "0.4")])
@example([("counts", "1"), ("counts", "x")])
@example([("there", "/nowhere")])
def test_values_and_words_are_those_of_typer(given_flags: list[tuple[str, str]]) -> None:
    words = [f"--{flag}={value}" for flag, value in given_flags]
    assert outcome(words, is_plain=True) == outcome(words, is_plain=False)


@pytest.mark.parametrize("words", [["a", "b"], ["--switch"], ["--no-switch", "a"], ["--none"]])
def test_arguments_and_switches_are_those_of_typer(words: list[str]) -> None:
    assert outcome(words, is_plain=True) == outcome(words, is_plain=False)


def test_typer_still_asks_where_it_is_answered_here() -> None:
    """Or pydantic would be loaded again, and nobody would notice."""
    for name, each in every_command().items():
        for parameter in each.params:
            assert callable(getattr(type(parameter), "get_runtime_param", None)), name


LOADED = """
import atexit, sys
atexit.register(lambda: print(*sys.modules))
from registry.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "words", [["serve", "--port", "1", "--lease-grace-s", "1.5", "--host", "999.1.1.1"], ["ls"]]
)
def test_a_command_loads_nothing_that_only_reads_flags_or_speaks_to_postgresql(
    words: list[str],
) -> None:
    environment = {"REGISTRY_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    loaded = set(done.stdout.split())
    assert "registry.cli" in loaded
    assert not loaded & {"pydantic", "rich", "jinja2", "psycopg", "sqlalchemy.dialects.postgresql"}
