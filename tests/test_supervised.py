"""As a service of systemd: it says when it is ready, and a reload never ends it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.server import tokens
from registry.server.process import GONE_S
from registry.server.tokens import Role
from tests.support import ROOT, Server, bearer, wait_for

UNIT = ROOT / "deploy/metadata-registry.service"
EXPOSURE_MAX = 2.0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens on for a service that it started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("INVOCATION_ID", "0" * 32)
        yield line


@pytest.mark.parametrize("workers", [1, 2])
def test_it_says_that_it_is_ready_and_a_reload_without_tokens_changes_nothing(
    serve: Callable[..., Server], manager: socket.socket, workers: int
) -> None:
    server = serve(workers=workers)
    assert manager.recv(100) == b"READY=1"
    for _ in range(3):
        server.process.send_signal(signal.SIGHUP)
        assert server.client.get("/health").status_code == 200
    assert server.process.poll() is None
    assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_with_tokens_reads_them_again(
    serve: Callable[..., Server], manager: socket.socket, tmp_path: Path, workers: int
) -> None:
    file = tmp_path / "tokens.toml"
    tokens.create(file, Role.ADMIN)
    server = serve(workers=workers, token_file=file)
    assert manager.recv(100) == b"READY=1"
    _, added = tokens.create(file, Role.ADMIN)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.log.count("read the tokens") == workers)
    gone = server.client.delete("/v1/artifacts/none/_base", headers=bearer(added))
    assert gone.status_code == 200


def test_who_listens_to_nothing_does_not_keep_it_from_serving(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert serve().client.get("/live").status_code == 200


# The unit


def unit(section: str = "Service") -> dict[str, list[str]]:
    """The settings of a section; one may be there several times."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif "=" in line and not line.startswith("#") and current == section:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path) -> None:
    assert unit()["RestartPreventExitStatus"] == ["2"]
    assert unit()["ExecStart"] == ["/opt/metadata-registry/bin/metadata-registry serve"]
    done = subprocess.run(
        [sys.executable, "-m", "registry", "serve"],
        env={**os.environ, "REGISTRY_WORKERS": "many"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2


def test_it_is_killed_only_after_it_has_had_its_time() -> None:
    assert int(unit()["TimeoutStopSec"][0]) > GONE_S + 1
    assert unit()["Type"] == ["notify"]
    assert unit()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_hardened() -> None:
    limit = f"--threshold={int(EXPOSURE_MAX * 10)}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a file")
    assert done.returncode == 0, done.stdout + done.stderr
