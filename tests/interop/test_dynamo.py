"""With the real NVIDIA Dynamo: its frontend reads what our workers publish and fetches what our
registry serves. `make interop` installs it and runs these tests; `make test` leaves them out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from registry.client import LoraInfo, Worker
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.core.slugs import slugify
from registry.discovery import Kind
from registry.discovery.file import FileDiscovery
from tests.models import make_model
from tests.ports import free_port
from tests.proxies import Proxy, Rule
from tests.support import ROOT, Server, wait_for

PYTHON = ROOT / "build/dynamo/bin/python"
NAME = "Org/Tiny.Lab-1B"
OWNER = Owner("dynamo", "backend", "generate", 2**64 - 3)
NOWHERE = "127.0.0.1:9"
"""A worker's address. Frontends do not connect to it before there is a request."""

START_S = 60
LISTED_S = 40
"""A frontend that failed to fetch tries again after 1, 2, 4, 8, 16 s."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder where workers publish."""
    folder = tmp_path / "kv"
    folder.mkdir()
    return folder


class Frontend:
    """A `dynamo.frontend` process with a cache of its own."""

    def __init__(
        self, folder: Path, store: Path, *options: str, variables: Mapping[str, str] | None = None
    ) -> None:
        self._home = folder / "home"
        self._home.mkdir(parents=True)
        self._log = folder / "frontend.log"
        port = free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(store),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
            **(variables or {}),
        }
        command = [str(PYTHON), "-m", "dynamo.frontend"]
        command += ["--http-host", "127.0.0.1", "--http-port", str(port), *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self.wait_until(lambda: self._answers(), START_S)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            return self._client.get("/v1/models").status_code == 200
        except httpx2.TransportError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def listed(self) -> set[str]:
        answer = self._client.get("/v1/models").json()
        return {each["id"] for each in answer["data"]}

    def complete(self, model: str) -> httpx2.Response:
        """Ask a model for a chat completion."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Files are small."}],
            "max_tokens": 4,
        }
        return self._client.post("/v1/chat/completions", json=body)

    @property
    def blobs(self) -> set[str]:
        """The checksums that its cache holds, each checked against its content."""
        found = self._home.glob(".cache/dynamo/mdc/blobs/*")
        paths = [path for path in found if len(path.name) == 64]  # Others are on their way in.
        assert all(checksum_of(path.read_bytes()) == f"blake3:{path.name}" for path in paths)
        return {f"blake3:{path.name}" for path in paths}

    def wait_until(self, condition: Callable[[], bool], within_s: float = LISTED_S) -> None:
        try:
            wait_for(condition, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log}") from None

    def wait_until_listed(self, *names: str) -> None:
        """Wait until it lists these models and no others."""
        self.wait_until(lambda: self.listed == set(names))

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
        self._client.close()


@pytest.fixture
def start_frontend(tmp_path: Path, store: Path) -> Iterator[Callable[..., Frontend]]:
    with ExitStack() as stack:
        numbers = iter(range(100))

        def start(*options: str) -> Frontend:
            frontend = Frontend(tmp_path / f"frontend-{next(numbers)}", store, *options)
            stack.callback(frontend.stop)
            return frontend

        yield start


def registered(server: Server) -> int:
    """How many files are registered."""
    return len(server.client.get("/v1/artifacts").json()["artifacts"])


def checksums_of(model: Path) -> set[str]:
    """What is registered of a model."""
    left_out = {"README.md", "model.safetensors"}
    return {checksum_of(p.read_bytes()) for p in model.iterdir() if p.name not in left_out}


def validated(card: str) -> dict[str, object]:
    """A card as Dynamo itself reads and writes it."""
    code = (
        "import sys; from dynamo._core import ModelDeploymentCard as Card\n"
        "print(Card.from_json_str(sys.stdin.read()).to_json_str())"
    )
    command = [str(PYTHON), "-c", code]
    done = subprocess.run(command, input=card, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_card_is_what_dynamo_itself_reads_and_writes(server: Server, model: Path) -> None:
    with Worker(server.url, OWNER) as worker:
        base = worker.attach(model, name=NAME)
        lora = worker.attach(model, name=NAME, lora=LoraInfo("My.Adapter", 4))
        for card in (base, lora):
            read = validated(json.dumps(dict(card.content)))
            assert {name: read[name] for name in card.content} == dict(card.content)


def test_a_frontend_lists_a_model_while_it_is_attached_and_fetches_exactly_its_files(
    server: Server, model: Path, store: Path, start_frontend: Callable[[], Frontend]
) -> None:
    early = start_frontend()
    with Worker(server.url, OWNER, discovery=f"file:{store}", address=NOWHERE) as worker:
        worker.attach(model, name=NAME)
        early.wait_until_listed(NAME)
        late = start_frontend()
        late.wait_until_listed(NAME)
        assert early.blobs == late.blobs == checksums_of(model)
        worker.detach()
        early.wait_until_listed()
        late.wait_until_listed()
        assert registered(server) == 0

        # A frontend keeps what it has for the model's return.
        worker.attach(model, name=NAME)
        early.wait_until_listed(NAME)
    early.wait_until_listed()


def test_a_lora_comes_and_goes_while_its_base_model_stays(
    server: Server, model: Path, store: Path, start_frontend: Callable[[], Frontend]
) -> None:
    frontend = start_frontend()
    with Worker(server.url, OWNER, discovery=f"file:{store}", address=NOWHERE) as worker:
        worker.attach(model, name=NAME)
        frontend.wait_until_listed(NAME)
        for lora in ("My.Adapter", "other"):
            worker.attach(model, name=NAME, lora=LoraInfo(lora))
            frontend.wait_until_listed(NAME, lora)
            assert len(server.client.get("/v1/models").json()["models"]) == 2
            worker.detach(lora=lora)
            frontend.wait_until_listed(NAME)
        assert frontend.blobs == checksums_of(model)


def test_two_workers_of_a_model_share_its_files_and_the_last_one_unlists_it(
    server: Server, model: Path, store: Path, start_frontend: Callable[[], Frontend]
) -> None:
    frontend = start_frontend()
    other = Owner("dynamo", "backend", "generate", 12)
    with Worker(server.url, OWNER, discovery=f"file:{store}", address=NOWHERE) as first:
        first.attach(model, name=NAME)
        with Worker(server.url, other, discovery=f"file:{store}", address=NOWHERE) as second:
            second.attach(model, name=NAME)
            frontend.wait_until_listed(NAME)
            first.detach()
            fresh = start_frontend()
            fresh.wait_until_listed(NAME)
            assert fresh.blobs == checksums_of(model)
        frontend.wait_until_listed()
        fresh.wait_until_listed()


def test_old_and_new_files_of_one_model_are_served_side_by_side_to_their_namespaces(
    server: Server, model: Path, store: Path, start_frontend: Callable[..., Frontend]
) -> None:
    """A rolling upgrade (S17): nobody waits for the old workers to leave, and nobody is hidden."""
    newer = make_model(model.with_name("newer"))
    (newer / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    owners = [Owner(f"dynamo-{hashed}", "backend", "generate", 7) for hashed in ("0ld", "new")]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(
                    server.url,
                    owner,
                    discovery=f"file:{store}",
                    address=NOWHERE,
                    on_conflict="revision",
                )
            )
            for owner in owners
        ]
        for worker, directory in zip(workers, (model, newer), strict=True):
            worker.attach(directory, name=NAME)
        base_slugs = {
            each["base_slug"] for each in server.client.get("/v1/models").json()["models"]
        }
        assert base_slugs == {None, slugify(NAME)}
        frontends = [start_frontend("--namespace", owner.namespace) for owner in owners]
        for frontend, directory in zip(frontends, (model, newer), strict=True):
            frontend.wait_until_listed(NAME)
            assert frontend.blobs == checksums_of(directory)
        workers[0].detach()
        frontends[0].wait_until_listed()
        assert frontends[1].listed == {NAME}
        late = start_frontend("--namespace", owners[1].namespace)
        late.wait_until_listed(NAME)
        assert late.blobs == checksums_of(newer)
    assert registered(server) == 0


def test_a_killed_worker_is_unlisted_when_its_records_lapse_and_its_files_go_with_its_lease(
    serve: Callable[..., Server],
    model: Path,
    store: Path,
    start_frontend: Callable[[], Frontend],
) -> None:
    server = serve(lease_grace_s=6, sweep_interval_s=1)
    frontend = start_frontend()
    command = [sys.executable, "-m", "registry", "attach", str(model), "--name", NAME]
    command += ["--endpoint", "dynamo/backend/generate", "--url", server.url, "--hold"]
    command += ["--lease-ttl-s", "6", "--discovery", f"file:{store}", "--address", NOWHERE]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as worker:
        frontend.wait_until_listed(NAME)
        worker.kill()
    frontend.wait_until_listed()
    assert FileDiscovery(store).list(Kind.MODEL) == []
    wait_for(lambda: registered(server) == 0, 60)
    assert server.client.get("/v1/audit").json()["worst"] in (None, "note")


def test_a_registry_that_dies_while_a_frontend_fetches_serves_it_when_it_is_back(
    serve: Callable[..., Server],
    model: Path,
    store: Path,
    start_frontend: Callable[[], Frontend],
) -> None:
    server = serve()
    with Proxy(server.url) as proxy:
        metadata = "/v1/metadata/"
        third = Rule("GET", metadata, before=server.kill, times=1)

        def count() -> None:
            if proxy.count("GET", metadata) == 2:
                proxy.rules.insert(0, third)

        proxy.rule(Rule("GET", metadata, after=count))
        worker = Worker(
            server.url,
            OWNER,
            discovery=f"file:{store}",
            address=NOWHERE,
            public_url=proxy.url,
            lease_ttl_s=6,
        )
        with worker:
            worker.attach(model, name=NAME)
            frontend = start_frontend()
            assert third.met.wait(30), frontend.log
            assert frontend.listed == set()
            serve(port=server.address[1])
            frontend.wait_until_listed(NAME)
            assert frontend.blobs == checksums_of(model)
