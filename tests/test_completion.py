"""Completion in the user's shell: the script is printed, and commands complete that are loaded
only when they are used."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    rest = {name: value for name, value in os.environ.items() if "REGISTRY_" not in name}
    return subprocess.run(
        [sys.executable, "-m", "registry", *arguments],
        capture_output=True,
        text=True,
        env={**rest, "PYTHONWARNINGS": "error", **variables},
        timeout=60,
    )


def test_the_script_for_the_users_shell_is_printed() -> None:
    """The shell that asks, whichever shell the tests were started from."""
    asking = f"{shlex.quote(sys.executable)} -m registry --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_METADATA_REGISTRY_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("tok", ["token"]),
        ("db upg", ["upgrade"]),
        ("serve --tok", ["--token-file"]),
        ("config show --wor", ["--workers"]),
        ("token new --role ", ["read", "write", "admin"]),
        ("nothing --x", []),
    ],
)
def test_what_was_begun_is_completed(words: str, completions: list[str]) -> None:
    done = run(
        _METADATA_REGISTRY_COMPLETE="complete_bash",
        COMP_WORDS=f"metadata-registry {words}",
        COMP_CWORD=str(len(words.split(" "))),
    )
    assert (done.returncode, done.stdout.split()) == (0, completions)
