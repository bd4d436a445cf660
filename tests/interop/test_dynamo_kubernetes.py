"""Real workers and frontends of NVIDIA Dynamo that discover by Kubernetes, and we who read it.

The API server is a stand-in, and the test is in the place of what makes endpoints of pods.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.client import Resolver
from registry.core.hashing import checksum_of
from registry.discovery.kubernetes import KubernetesDiscovery
from registry.discovery.kubernetes.settings import read_settings
from registry.mirror import Mirror, MirrorSettings
from tests.apiservers import WORKERS, ApiServer
from tests.etcds import Watcher
from tests.interop.test_dynamo import checksums_of, registered
from tests.models import make_model
from tests.ports import free_port
from tests.support import ROOT, Server, wait_for

PYTHON = ROOT / "build/dynamo/bin/python"
NAME = "Org/Tiny.Lab-1B"
START_S = 90

WORKER = """
import asyncio, sys
from dynamo._core import DistributedRuntime, ModelInput, ModelType, WorkerType, register_model

async def generate(request, context):
    for token in request["token_ids"][:3]:
        yield {"token_ids": [token]}
    yield {"token_ids": [], "finish_reason": "stop"}

async def main():
    runtime = DistributedRuntime(
        asyncio.get_running_loop(), "kubernetes", "tcp", event_plane="zmq"
    )
    endpoint = runtime.endpoint("dynamo.backend.generate")
    await register_model(
        ModelInput.Tokens, ModelType.Chat | ModelType.Completions,
        endpoint, sys.argv[1], sys.argv[2],
        self_host_metadata=True, ignore_weights=True, worker_type=WorkerType.Aggregated,
    )
    await endpoint.serve_endpoint(generate)

asyncio.run(main())
"""


class Fleet:
    """Processes of Dynamo, each as if in a pod of its own."""

    def __init__(self, folder: Path, api: ApiServer, stack: ExitStack) -> None:
        self.folder = folder
        self.model = make_model(folder / "model")
        self.config = api.kubeconfig(folder / "kubeconfig")
        self._stack = stack

    def start(self, pod: str, *command: str) -> subprocess.Popen[bytes]:
        home = self.folder / pod
        home.mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "KUBECONFIG": str(self.config),
            "POD_NAME": pod,
            "POD_UID": f"uid-of-{pod}",
            "POD_NAMESPACE": "fleet",
            "DYN_DISCOVERY_BACKEND": "kubernetes",
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "DYN_SYSTEM_PORT": "0",
            "HF_HUB_OFFLINE": "1",
        }
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(PYTHON), *command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._stack.callback(_stop, process)
        return process

    def start_worker(self, pod: str) -> subprocess.Popen[bytes]:
        return self.start(pod, "-c", WORKER, str(self.model), NAME)

    def start_frontend(self, pod: str) -> httpx2.Client:
        port = free_port()
        self.start(
            pod, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)
        )
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        self._stack.callback(client.close)
        self.wait_until(lambda: _models(client) is not None)
        return client

    def wait_until(self, condition: Any) -> None:
        try:
            wait_for(condition, START_S)
        except AssertionError as error:
            lines = [
                line
                for path in sorted(self.folder.glob("*/log"))
                for line in path.read_text(errors="replace").splitlines()
                if "http response sent" not in line
            ]
            raise AssertionError("\n".join([str(error), *lines])) from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def _models(client: httpx2.Client) -> set[str] | None:
    try:
        answer = client.get("/v1/models")
    except httpx2.TransportError:
        return None
    return {each["id"] for each in answer.json()["data"]} if answer.status_code == 200 else None


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture
def fleet(tmp_path: Path, api: ApiServer) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(tmp_path, api, stack)


@pytest.fixture
def watcher(fleet: Fleet) -> Iterator[Watcher]:
    store = KubernetesDiscovery(read_settings("kubernetes:", {"KUBECONFIG": str(fleet.config)}))
    yield Watcher(store)
    store.close()


def pods(*numbers: int) -> list[tuple[str, str]]:
    return [(f"worker-{number}", f"uid-of-worker-{number}") for number in numbers]


def test_what_frontends_list_is_what_we_read(
    api: ApiServer, fleet: Fleet, watcher: Watcher, tmp_path: Path
) -> None:
    frontend = fleet.start_frontend("frontend-0")
    workers = [fleet.start_worker(f"worker-{number}") for number in range(2)]
    fleet.wait_until(lambda: len([each for each in api.objects if each[0] == WORKERS]) == 2)
    # Nobody is ready yet.
    assert watcher.live == {}
    assert _models(frontend) == set()
    api.set_ready(*pods(0, 1))
    fleet.wait_until(lambda: _models(frontend) == {NAME})
    fleet.wait_until(lambda: len(watcher.live) == 2)

    # What we read is a whole card, whose files are there.
    for number, record in enumerate(watcher.live.values()):
        assert record.card.name == NAME
        files = Resolver().fetch_card(record.card, to=tmp_path / f"fetched-{number}")
        assert {each.name for each in (tmp_path / f"fetched-{number}").iterdir()} >= {
            "config.json",
            "tokenizer.json",
        }
        assert all(checksum_of(file.path.read_bytes()) == file.checksum for file in files)
    asked = {"model": NAME, "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 8}
    answer = frontend.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text

    # A pod that ends is not ready any more; its object stays until it is collected.
    api.set_ready(*pods(1))
    fleet.wait_until(lambda: len(watcher.live) == 1)
    _stop(workers[0])
    assert _models(frontend) == {NAME}
    api.delete(WORKERS, "worker-1")
    fleet.wait_until(lambda: not watcher.live and _models(frontend) == set())
    assert not any(change.relisted for change in watcher.changes)
    assert watcher.error is None


def test_a_server_that_goes_and_comes_back_loses_nobody_anything(
    api: ApiServer, fleet: Fleet, watcher: Watcher
) -> None:
    frontend = fleet.start_frontend("frontend-0")
    fleet.start_worker("worker-0")
    fleet.wait_until(lambda: (WORKERS, "worker-0") in api.objects)
    api.set_ready(*pods(0))
    fleet.wait_until(lambda: _models(frontend) == {NAME} and len(watcher.live) == 1)
    api.stop()
    api.set_ready(*pods(0), ready=False)
    api.start()
    fleet.wait_until(lambda: _models(frontend) == set() and not watcher.live)
    api.stop()
    api.set_ready(*pods(0))
    api.compact()
    api.start()
    fleet.wait_until(lambda: _models(frontend) == {NAME} and len(watcher.live) == 1)
    assert watcher.changes[-1].relisted
    assert watcher.error is None


def test_a_mirror_holds_what_an_unchanged_worker_publishes(
    api: ApiServer, fleet: Fleet, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(fleet.config))
    fleet.start_worker("worker-0")
    fleet.wait_until(lambda: (WORKERS, "worker-0") in api.objects)
    with Mirror(MirrorSettings("kubernetes:", server.url, linger_s=0.5)) as mirror:
        assert registered(server) == 0
        api.set_ready(*pods(0))
        fleet.wait_until(lambda: registered(server) > 0)
        held = server.client.get("/v1/artifacts").json()["artifacts"]
        assert {each["checksum"] for each in held} == checksums_of(fleet.model)
        api.set_ready(*pods(0), ready=False)
        fleet.wait_until(lambda: registered(server) == 0)
        assert mirror.report().fetched_files == len(held)
