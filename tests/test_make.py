"""Setting up a checkout: what `make` installs for which target, and two of them at once.

The real Makefile runs, in a folder like a fresh clone, with a Python that notes what it is asked
for instead of installing anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import ROOT, wait_for

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

PYTHON = f"""\
#!{sys.executable}
# Stands for a Python whose `venv` and `pip` only note that they were called.
import os, pathlib, shutil, sys
words, log = sys.argv[1:] or [""], os.environ["NOTES"]
def note(text):
    with open(log, "a") as notes:
        notes.write(text + chr(10))
if words[0] == "-c" or words[0].endswith("alone.py"):
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
if words[:2] == ["-m", "venv"]:
    note("venv")
    bin = pathlib.Path(words[-1], "bin")
    bin.mkdir(parents=True, exist_ok=True)
    for name in ("python", "metadata-registry", "pytest"):
        shutil.copy(__file__, bin / name)
elif words[:2] == ["-m", "pip"]:
    note("pip " + " ".join(words[3:]))
    gate = pathlib.Path(os.environ["GATE"])
    while gate.exists():
        pass
    note("pip is done")
    if "--target" in words:
        os.makedirs(words[words.index("--target") + 1])
elif pathlib.Path(__file__).name in ("metadata-registry", "pytest"):
    note(pathlib.Path(__file__).name + " " + " ".join(words))
"""
FILES = (
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "requirements-run.lock",
    "requirements-install.lock",
    ".ci/alone.py",
)


class Clone:
    """A fresh clone; `notes` is what was done in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        (self.folder / ".ci").mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.folder / name)
        self.gate = folder / "gate"
        self._notes = folder / "notes"
        self._python = folder / "python3"
        self._python.write_text(PYTHON)
        self._python.chmod(0o755)

    @property
    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def make(self, *words: str) -> subprocess.Popen[str]:
        keep = {name: each for name, each in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.Popen(
            ["make", *words, f"PYTHON={self._python}"],
            cwd=self.folder,
            env={**keep, "NOTES": str(self._notes), "GATE": str(self.gate)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def installed(self) -> list[str]:
        return [note for note in self.notes if note.startswith("pip ") and "done" not in note]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def said_by(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def test_run_installs_what_runs_and_test_the_tools_besides(clone: Clone) -> None:
    said_by(clone.make("run"))
    assert not [each for each in clone.installed() if "requirements.lock" in each]
    assert clone.installed()[0].count("requirements-run.lock") == 1
    said_by(clone.make("test"))
    assert [each for each in clone.installed() if "requirements.lock" in each]
    before = clone.installed()
    said_by(clone.make("run"))
    said_by(clone.make("test"))
    assert clone.installed() == before
    assert clone.notes.count("venv") == 1


@pytest.mark.parametrize("targets", [("run", "run"), ("test", "test"), ("run", "test")])
def test_two_makes_in_a_fresh_clone_set_it_up_once_and_one_after_the_other(
    clone: Clone, targets: tuple[str, str]
) -> None:
    clone.gate.touch()
    first = clone.make(targets[0])
    wait_for(lambda: bool(clone.installed()))
    second = clone.make(targets[1])
    assert second.stdout is not None
    assert "waits for it" in second.stdout.readline()
    assert len(clone.installed()) == 1
    clone.gate.unlink()
    said_by(first)
    said_by(second)
    assert clone.notes.count("venv") == 1
    installed = clone.installed()
    assert len(installed) == len(set(installed))
    begun = [note for note in clone.notes if note.startswith("pip")]
    assert all(b == "pip is done" for b in begun[1::2])


def test_what_was_broken_off_is_set_up_anew(clone: Clone) -> None:
    clone.gate.touch()
    first = clone.make("run")
    wait_for(lambda: bool(clone.installed()))
    for pid in children_of(first.pid):
        with suppress(ProcessLookupError):  # With its child it may end by itself.
            os.kill(pid, 9)
    clone.gate.unlink()
    first.communicate(timeout=60)
    assert first.returncode != 0
    said_by(clone.make("run"))
    assert clone.notes.count("venv") == 2


def children_of(pid: int) -> list[int]:
    """The processes below one, itself left out; the deepest first."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [*children_of(int(child)), int(child)]
    return found


def test_newer_requirements_are_installed(clone: Clone) -> None:
    said_by(clone.make("test"))
    before = len(clone.installed())
    later = time.time() + 5
    os.utime(clone.folder / "requirements-run.lock", (later, later))
    said_by(clone.make("test"))
    assert len(clone.installed()) > before
    assert clone.notes.count("venv") == 1
