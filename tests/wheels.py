"""The distributions, built once in a run of the tests, and environments that hold nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

CLIENT = ROOT / "packaging/client"
BUILD_S = 100
INSTALL_S = 600


@dataclass(frozen=True)
class Wheels:
    """The whole, and the client by itself."""

    whole: Path
    client: Path


def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Both wheels of the sources as they are. Processes that test at the same time share them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "dist"
    with open(shared / "dist.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for source in (ROOT, CLIENT):
                _build(source, shared / "dist.partial")
            (shared / "dist.partial").rename(folder)
    (whole,) = folder.glob("metadata_registry-*.whl")
    (client,) = folder.glob("metadata_registry_client-*.whl")
    return Wheels(whole, client)


def _build(source: Path, into: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr


def locked(lock: Path) -> dict[str, str]:
    """The versions in a lock file, by distribution."""
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[\S+\])?==([^\s;\\]+)", lock.read_text(), re.M))


class Environment:
    """A virtual environment with nothing in it, not even pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self._constraints = folder / "constraints.txt"
        lines = [
            f"{name}=={version}" for name, version in locked(ROOT / "requirements.lock").items()
        ]
        self._constraints.write_text("\n".join(lines))

    def install(self, *requirements: str, locked: bool = True) -> set[str]:
        """Install from the index, at the versions that are tested; the names of what is new.
        Skips where the index cannot be reached."""
        report = self.folder / "report.json"
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        command += ["--disable-pip-version-check", "--no-compile", "--report", str(report)]
        command += ["--constraint", str(self._constraints)] if locked else []
        done = subprocess.run(
            [*command, *requirements], capture_output=True, text=True, timeout=INSTALL_S
        )
        if "Failed to establish a new connection" in done.stderr:
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())["install"]
        return {each["metadata"]["name"].lower().replace("_", "-") for each in found}

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def command(self) -> Path:
        return self.folder / "bin/metadata-registry"

    def run(self, *words: object, code: int = 0) -> str:
        """Run a program of the environment; what it said on both outputs."""
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": ""},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr
