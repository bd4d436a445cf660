"""A fleet of real NVIDIA Dynamo that nobody changed, `dynamo.mocker` and `dynamo.frontend`, and a
mirror beside it.

The mocker opens sockets on every address of its host, so these tests run in a network namespace
with nothing but loopback. `make interop` makes one; elsewhere they are left out.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry.core.hashing import checksum_of
from registry.discovery import Kind, open_discovery
from tests.etcds import Etcd
from tests.interop.test_dynamo import PYTHON, START_S, Frontend, checksums_of
from tests.mirrors import MirrorProcess, folder_url, held_by
from tests.models import make_model
from tests.ports import free_port
from tests.support import Server, wait_for

NAME = "Org/Tiny.Lab-1B"
LINGER_S = 2

pytestmark = [
    pytest.mark.skipif(
        [name for _, name in socket.if_nameindex()] != ["lo"],
        reason="not in a network namespace of its own",
    ),
    pytest.mark.timeout(240),
]


def make_served_model(directory: Path, **config: object) -> Path:
    """A model that the mocker serves: it asks for the sizes of its layers."""
    model = make_model(directory)
    path = model / "config.json"
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    kept = json.loads(path.read_text()) | sizes | {"torch_dtype": "bfloat16"} | config
    path.write_text(json.dumps(kept))
    return model


@dataclass(frozen=True)
class Place:
    """A discovery store: its URL, and the variables that lead Dynamo there."""

    url: str
    folder: Path
    variables: dict[str, str]
    etcd: Etcd | None = None


class Mocker:
    """A `dynamo.mocker` process, which serves its files itself."""

    def __init__(self, folder: Path, place: Place, model: Path, namespace: str = "dynamo") -> None:
        folder.mkdir()
        self._log = folder / "mocker.log"
        self.port = free_port()
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(place.folder),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "DYN_SYSTEM_PORT": str(self.port),
            "HF_HUB_OFFLINE": "1",
            **place.variables,
        }
        command = [str(PYTHON), "-m", "dynamo.mocker", "--model-path", str(model)]
        command += ["--model-name", NAME, "--endpoint", f"dyn://{namespace}.backend.generate"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--speedup-ratio", "10"],
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def freeze(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


class Fleet:
    """One store with what is started on it; all of it ends with the test."""

    def __init__(self, folder: Path, place: Place, model: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.place = place
        self.model = model
        self._stack = stack
        self._mirrors: list[MirrorProcess] = []
        self._numbers = iter(range(100))
        self._store = open_discovery(place.url)
        stack.callback(self._store.close)

    def start_mocker(self, model: Path | None = None, namespace: str = "dynamo") -> Mocker:
        folder = self.folder / f"mocker-{next(self._numbers)}"
        mocker = Mocker(folder, self.place, model or self.model, namespace)
        self._stack.callback(mocker.kill)
        count = len(self.cards)

        def is_there() -> bool:
            assert mocker.process.poll() is None, mocker.log
            return len(self.cards) > count

        wait_for(is_there, START_S)
        return mocker

    def start_frontend(self, place: Place | None = None, *options: str) -> Frontend:
        place = place or self.place
        folder = self.folder / f"frontend-{next(self._numbers)}"
        frontend = Frontend(folder, place.folder, *options, variables=place.variables)
        self._stack.callback(frontend.stop)
        return frontend

    def make_place(self, kind: str, name: str) -> Place:
        return make_place(kind, self.folder / name, self._stack)

    def start_mirror(self, server: Server, *options: object) -> MirrorProcess:
        words = ("--linger-s", LINGER_S, *options)
        mirror = MirrorProcess(self.place.url, server.url, *words)
        self._mirrors.append(mirror)
        return self._stack.enter_context(mirror)

    @property
    def cards(self) -> list[Any]:
        return self._store.list(Kind.MODEL)

    @property
    def hosts(self) -> set[str]:
        """Whom the live cards name."""
        return {urlsplit(file.url).netloc for card in self.cards for file in card.card.files}

    def wait_until_rewritten(self, server: Server) -> None:
        try:
            wait_for(lambda: self.hosts == {urlsplit(server.url).netloc}, 30)
        except AssertionError as error:
            logs = "\n".join(mirror.log for mirror in self._mirrors)
            raise AssertionError(f"{error}: {self.hosts}\n{logs}") from None

    def wait_until_held(self, server: Server) -> None:
        wait_for(lambda: held_checksums(server) == checksums_of(self.model), 30)


def held_checksums(server: Server) -> set[str]:
    return {each["checksum"] for each in server.client.get("/v1/artifacts").json()["artifacts"]}


def reads(server: Server) -> int:
    """How many files the registry has served."""
    text = server.client.get("/metrics").text
    found = re.findall(
        r'^metadata_registry_reads_total\{outcome="(?:memory|loaded|streamed)"\} (\S+)', text, re.M
    )
    return int(sum(map(float, found)))


def assert_completes(frontend: Frontend) -> None:
    """A request is answered. One that is listed may take a moment until it routes."""
    frontend.wait_until(lambda: frontend.complete(NAME).status_code == 200, 10)


def make_place(kind: str, folder: Path, stack: ExitStack) -> Place:
    if kind == "file":
        folder.mkdir()
        return Place(folder_url(folder), folder, {})
    etcd = stack.enter_context(Etcd(folder))
    variables = {
        "DYN_DISCOVERY_BACKEND": "etcd",
        "ETCD_ENDPOINTS": f"http://127.0.0.1:{etcd.port}",
    }
    return Place(etcd.url, folder, variables, etcd)


@pytest.fixture(params=["file", "etcd"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        place = make_place(request.param, tmp_path / "store", stack)
        yield Fleet(tmp_path, place, make_served_model(tmp_path / "model"), stack)


def test_rewritten_cards_lead_new_frontends_to_the_registry_alone(
    server: Server, fleet: Fleet
) -> None:
    early = fleet.start_frontend()
    mocker = fleet.start_mocker()
    early.wait_until_listed(NAME)
    fleet.start_mirror(server, "--mode", "rewrite")
    fleet.wait_until_rewritten(server)
    assert reads(server) == 0
    late = fleet.start_frontend()
    late.wait_until_listed(NAME)
    assert late.blobs == checksums_of(fleet.model)
    assert reads(server) == len(checksums_of(fleet.model))
    for frontend in (early, late):
        assert_completes(frontend)
    mocker.kill()
    for frontend in (early, late):
        frontend.wait_until_listed()
    wait_for(lambda: held_checksums(server) == set(), 60)
    assert server.client.get("/v1/audit").json()["worst"] in (None, "note")


def test_a_frontend_gets_a_model_whose_worker_is_frozen(server: Server, tmp_path: Path) -> None:
    """With etcd: a record outlives its worker's silence by half a minute."""
    with ExitStack() as stack:
        place = make_place("etcd", tmp_path / "store", stack)
        fleet = Fleet(tmp_path, place, make_served_model(tmp_path / "model"), stack)
        mocker = fleet.start_mocker()
        fleet.start_mirror(server, "--mode", "rewrite")
        fleet.wait_until_rewritten(server)
        mocker.freeze()
        frontend = fleet.start_frontend()
        frontend.wait_until(lambda: frontend.blobs == checksums_of(fleet.model), 20)
        frontend.wait_until(lambda: frontend.listed == {NAME}, 20)
        mocker.thaw()
        assert_completes(frontend)


def test_a_registry_that_lost_its_database_is_filled_again(
    serve: Callable[..., Server], fleet: Fleet
) -> None:
    server = serve()
    fleet.start_mocker()
    fleet.start_mirror(server, "--mode", "rewrite")
    fleet.wait_until_rewritten(server)
    port = server.address[1]
    server.kill()
    for path in server.database.parent.glob("registry.db*"):
        path.unlink()
    emptied = serve(port=port)
    fleet.wait_until_held(emptied)
    frontend = fleet.start_frontend()
    frontend.wait_until_listed(NAME)
    assert_completes(frontend)


def test_mirrors_come_and_go_and_nobody_notices(server: Server, fleet: Fleet) -> None:
    mocker = fleet.start_mocker()
    first = fleet.start_mirror(server, "--mode", "rewrite")
    fleet.start_mirror(server, "--mode", "rewrite")
    fleet.wait_until_rewritten(server)
    frontend = fleet.start_frontend()
    frontend.wait_until_listed(NAME)
    first.kill()
    other = fleet.start_mocker()
    fleet.wait_until_rewritten(server)
    mocker.kill()
    wait_for(lambda: len(fleet.cards) == 1, 60)
    assert_completes(frontend)
    assert held_checksums(server) == checksums_of(fleet.model)
    other.kill()
    frontend.wait_until_listed()
    wait_for(lambda: held_checksums(server) == set(), 60)


def test_an_etcd_that_is_away_for_ten_seconds_is_waited_for(server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        place = make_place("etcd", tmp_path / "store", stack)
        assert place.etcd is not None
        fleet = Fleet(tmp_path, place, make_served_model(tmp_path / "model"), stack)
        fleet.start_mocker()
        fleet.start_mirror(server, "--mode", "rewrite")
        fleet.wait_until_rewritten(server)
        frontend = fleet.start_frontend()
        frontend.wait_until_listed(NAME)
        held = held_checksums(server)
        place.etcd.freeze()
        with pytest.raises(AssertionError):
            wait_for(lambda: held_checksums(server) != held, 10)
        place.etcd.thaw()
        assert_completes(frontend)
        fleet.start_mocker()
        fleet.wait_until_rewritten(server)


def test_a_copying_mirror_leaves_cards_as_they_are(server: Server, fleet: Fleet) -> None:
    mocker = fleet.start_mocker()
    fleet.start_mirror(server)
    fleet.wait_until_held(server)
    assert fleet.hosts == {f"127.0.0.1:{mocker.port}"}
    frontend = fleet.start_frontend()
    frontend.wait_until_listed(NAME)
    assert_completes(frontend)
    # What a frontend asks its worker for is here, under the same path.
    for card in fleet.cards:
        for file in card.card.files:
            answer = server.client.get(urlsplit(file.url).path)
            assert checksum_of(answer.content) == file.checksum
    mocker.kill()
    frontend.wait_until_listed()
    wait_for(lambda: held_checksums(server) == set(), 60)


@pytest.mark.parametrize("is_mirrored", [True, False], ids=["held", "not held"])
def test_frontends_may_take_the_registry_for_their_proxy(
    serve: Callable[..., Server], fleet: Fleet, is_mirrored: bool
) -> None:
    server = serve(proxy_for=fleet.place.url)
    mocker = fleet.start_mocker()
    if is_mirrored:
        fleet.start_mirror(server)
        fleet.wait_until_held(server)
        if fleet.place.etcd is not None:
            mocker.freeze()  # Its lease outlives its silence by half a minute.
    through = {**fleet.place.variables, "HTTP_PROXY": server.url}
    frontend = fleet.start_frontend(replace(fleet.place, variables=through))
    frontend.wait_until(lambda: frontend.blobs == checksums_of(fleet.model), 25)
    assert reads(server) == len(checksums_of(fleet.model))
    assert fleet.hosts == {f"127.0.0.1:{mocker.port}"}
    if is_mirrored and fleet.place.etcd is not None:
        mocker.thaw()
    frontend.wait_until_listed(NAME)
    assert_completes(frontend)


def test_behind_a_bridge_frontends_see_nothing_of_the_workers_store(
    server: Server, fleet: Fleet
) -> None:
    far = fleet.make_place("file" if fleet.place.etcd is None else "etcd", "far")
    fleet.start_mirror(server, "--mode", "bridge", "--to", far.url)
    frontend = fleet.start_frontend(far)
    mocker = fleet.start_mocker()
    frontend.wait_until_listed(NAME)
    assert frontend.blobs == checksums_of(fleet.model)
    assert reads(server) == len(checksums_of(fleet.model))
    assert_completes(frontend)
    late = fleet.start_frontend(far, "--router-mode", "kv")
    late.wait_until_listed(NAME)
    assert_completes(late)
    mocker.kill()
    frontend.wait_until_listed()
    late.wait_until_listed()
    wait_for(lambda: held_checksums(server) == set(), 60)


def test_old_and_new_bytes_of_one_model_are_listed_by_their_frontends(
    server: Server, fleet: Fleet
) -> None:
    """A rolling upgrade: the new workers are in a namespace of their own."""
    changed = make_served_model(fleet.folder / "changed", max_position_embeddings=1024)
    fleet.start_mirror(server, "--mode", "rewrite")
    fleet.start_mocker(namespace="v1")
    fleet.start_mocker(changed, namespace="v2")
    fleet.wait_until_rewritten(server)
    for namespace, model in (("v1", fleet.model), ("v2", changed)):
        frontend = fleet.start_frontend(None, "--namespace", namespace)
        frontend.wait_until_listed(NAME)
        assert frontend.blobs == checksums_of(model)
        assert_completes(frontend)
    slugs = {each["slug"] for each in server.client.get("/v1/models").json()["models"]}
    assert len(slugs) == 2


def test_the_owner_of_a_card_is_that_of_its_worker(server: Server, fleet: Fleet) -> None:
    fleet.start_mocker()
    fleet.start_mirror(server, "--once")
    fleet.wait_until_held(server)
    (card,) = fleet.cards
    assert len(held_by(server, card.key.owner)) == len(checksums_of(fleet.model))
