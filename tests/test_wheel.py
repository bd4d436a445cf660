"""What users install: the wheel works from any folder, with nothing of the checkout around it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Server, assert_sound
from tests.wheels import wheels


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and installed into a folder of its own."""
    target = tmp_path_factory.mktemp("wheel") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    wheel = str(wheels(tmp_path_factory).whole)
    subprocess.run([*pip, "--target", str(target), wheel], check=True, timeout=100)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the installed command in a folder; what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "registry", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def test_the_wheel_brings_its_migrations_and_makes_a_database(
    installed: Path, tmp_path: Path
) -> None:
    home = subprocess.run(
        [sys.executable, "-P", "-c", "import registry; print(registry.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert Path(home).is_relative_to(installed)
    run(installed, tmp_path, "db", "upgrade")
    assert "(head)" in run(installed, tmp_path, "db", "current")
    run(installed, tmp_path, "db", "check")
    run(installed, tmp_path, "audit")
    assert_sound(tmp_path / "registry.db")


def test_the_wheel_serves(
    installed: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    server = serve()
    assert server.client.get("/health").json()["status"] == "ok"


def test_the_wheel_holds_the_package_and_nothing_else(installed: Path) -> None:
    found = {path.name for path in installed.iterdir()}
    assert {name for name in found if not name.endswith(".dist-info")} == {"bin", "registry"}
    assert (installed / "registry/py.typed").is_file()
    assert not list(installed.rglob("tests"))
