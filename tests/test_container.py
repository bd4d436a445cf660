"""The service as a careful container runs it: process 1, a user without a name or a home, a root
that is read-only, a /tmp that is small or not there, and a proxy in the environment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from tests.containers import First, box
from tests.models import make_model
from tests.support import ROOT, assert_sound, checksum, copied, in_place, owner_body, wait_for

PROXY = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"), PROXY)
LARGE = b"x" * (2 << 20)
STOP_S = 30


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The one place that may be written."""
    folder = tmp_path / "data"
    folder.mkdir()
    yield folder
    if (folder / "registry.db").exists():  # Not where the test was skipped.
        assert_sound(folder / "registry.db")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tmp", [True, False], ids=["a small /tmp", "no /tmp"])
def test_it_starts_serves_in_both_ways_counts_and_ends(data: Path, tmp: bool, workers: int) -> None:
    model = make_model(data / "model")
    inside = box(data, tmp=tmp, PYTHONPATH=str(ROOT), **PROXIES)
    arguments = ["serve", "--port", "0", "--workers", workers, "--artifact-root", model]
    with First(*arguments, cwd=data, box=inside) as service:
        url = service.read_line().split()[-1]
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            use(client, model / "config.json")
            health = client.get("/health")
            assert (health.status_code, health.json()["warnings"]) == (200, {})
            attach(inside, url, model)
            wait_for(lambda: "registry_entries 11.0" in client.get("/metrics").text)
        service.send(signal.SIGTERM)
        code, _, errors = service.end(STOP_S)
    assert code == 0, errors
    assert "Traceback" not in errors


def use(client: httpx2.Client, file: Path) -> None:
    """Upload, hold in place, read both."""
    owner = Owner("box", "backend", "generate", 1)
    large, held = ArtifactKey("m", "_base", "large"), ArtifactKey("m", "_base", "config.json")
    assert client.put(f"/v1/blobs/{checksum(LARGE)}", content=LARGE).status_code == 201
    artifacts = [copied(large, LARGE), in_place(held, file)]
    body = {"owner": owner_body(owner), "artifacts": artifacts}
    assert client.post("/v1/registrations", json=body).status_code == 200
    assert client.get(f"/v1/metadata/{large}").content == LARGE
    assert client.get(f"/v1/metadata/{held}").content == file.read_bytes()


def attach(inside: list[str], url: str, model: Path) -> None:
    """A worker in a container of the same kind."""
    command = [*inside, sys.executable, "-m", "registry", "attach", str(model), "--json"]
    command += ["--name", "boxed", "--endpoint", "box/backend/generate", "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["artifacts"]) == 9
