"""What a process has made stays its own when it forks: its children get a clear error, and nothing
that they do, and no way in which they end, touches it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import MetadataArtifactRegistry
from registry.client import AsyncRegistryClient, RegistryClient, Worker
from registry.core.records import Owner
from registry.discovery import Kind
from registry.discovery.file import FileDiscovery
from tests.support import ROOT, Server, wait_for
from tests.test_worker import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

CHILD_S = 20
OWNER = Owner("dynamo", "backend", "generate", 7)
OTHER = Owner("dynamo", "backend", "generate", 8)


def in_child(work: Callable[[], object]) -> str:
    """What became of some work in a forked child: `done`, or the name of what it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_S)
        os.close(reading)
        try:
            work()
            outcome = "done"
        except BaseException as error:
            outcome = type(error).__name__
            if "fork" not in str(error):
                outcome += f": {error}"
        os.write(writing, outcome.encode()[:1000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        outcome = told.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the child ended with {code} (-14: it hung)"
    return outcome


class Busy:
    """Threads that keep doing something, so that a fork finds locks held."""

    def __init__(self, work: Callable[[int], object]) -> None:
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work, number)) for number in (1, 2)
        ]
        self.errors: list[BaseException] = []

    def _run(self, work: Callable[[int], object], number: int) -> None:
        while not self._ended.is_set():
            try:
                work(number)
            except BaseException as error:
                self.errors.append(error)
                return

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []


# An embedded registry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text("{}")
    return path


EMBEDDED: dict[str, Callable[[MetadataArtifactRegistry, Path], object]] = {
    "register": lambda registry, file: registry.register(OTHER, "m", "_base", "x", file),
    "get": lambda registry, file: registry.get("m", "_base", "config.json"),
    "read": lambda registry, file: registry.read("m", "_base", "config.json"),
    "explain": lambda registry, file: registry.explain("m", "_base", "config.json"),
    "unregister": lambda registry, file: registry.unregister("m", "_base"),
    "unregister_for_owner": lambda registry, file: registry.unregister_for_owner(OWNER),
    "len": lambda registry, file: len(registry),
    "is_empty": lambda registry, file: registry.is_empty(),
}


def test_an_embedded_registry_is_not_used_in_a_child(database_path: Path, file: Path) -> None:
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as registry:
        registry.register(OWNER, "m", "_base", "config.json", file)

        def write(number: int) -> None:
            owner = Owner("dynamo", "backend", "generate", number)
            registry.register(owner, f"b{number}", "_base", "config.json", file)
            registry.unregister_for_owner(owner)

        with Busy(lambda number: write(number + 100)):
            for name, call in EMBEDDED.items():
                assert in_child(lambda call=call: call(registry, file)) == "WrongProcess", name  # type: ignore[misc]
            assert in_child(registry.close) == "done"
            assert in_child(lambda: registry.__exit__(None, None, None)) == "done"
            opened = in_child(lambda: MetadataArtifactRegistry(f"sqlite:///{database_path}"))
            assert opened == "WrongProcess"
        assert [str(holder.owner) for holder in held(registry)] == [str(OWNER)]


def held(registry: MetadataArtifactRegistry) -> Any:
    return registry.explain("m", "_base", "config.json").holders


def test_a_child_may_have_a_registry_of_its_own(
    database_path: Path, tmp_path: Path, file: Path
) -> None:
    def use(path: Path) -> None:
        with MetadataArtifactRegistry(f"sqlite:///{path}") as own:
            own.register(OTHER, "own", "_base", "config.json", file)

    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as registry:
        registry.register(OWNER, "m", "_base", "config.json", file)
        assert in_child(lambda: use(tmp_path / "own.db")) == "done"
    # What was closed before the fork is nobody's.
    assert in_child(lambda: use(database_path)) == "done"
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as registry:
        assert registry.get("own", "_base", "config.json") == file


ENDS = {
    "_exit": "os._exit(0)",
    "exit": "sys.exit(0)",
    "an error": "raise KeyError('mine')",
    "a kill": "os.kill(os.getpid(), 9)",
    "the collector": "del registry; gc.collect(); sys.exit(0)",
    "close": "registry.close(); sys.exit(0)",
}
PROGRAM = """
import gc, os, sys
from registry import MetadataArtifactRegistry
url, file = sys.argv[1:]
def main():
    with MetadataArtifactRegistry(url) as registry:
        registry.register("a/b/c/1/_base", "m", "_base", "config.json", file)
        child = os.fork()
        if not child:
            END
        os.waitpid(child, 0)
        registry.register("a/b/c/2/_base", "m", "_base", "config.json", file)
        log = url.removeprefix("sqlite:///") + "-wal"
        assert os.path.getsize(log) > 0
        # The log must outlive this process as it is: a child that closed its copies of the
        # connections would have taken it along.
        os._exit(0)
main()
"""


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_however_a_child_ends_the_registry_of_its_parent_is_whole(
    database_path: Path, file: Path, end: str
) -> None:
    url = f"sqlite:///{database_path}"
    program = PROGRAM.replace("END", end)
    command = [sys.executable, "-c", program, url, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    with MetadataArtifactRegistry(url) as registry:
        assert len(held(registry)) == 2


ORPHAN = """
import os, sys, time
from registry import MetadataArtifactRegistry
url, file, pid_file = sys.argv[1:]
registry = MetadataArtifactRegistry(url)
registry.register("a/b/c/1/_base", "m", "_base", "config.json", file)
if not os.fork():
    # Outlives its parent, and ends as a Python program does, when it is told to.
    while os.path.exists(pid_file):
        time.sleep(0.01)
    sys.exit(0)
registry.close()
"""

KILLED = """
import os, sys
from registry import MetadataArtifactRegistry
registry = MetadataArtifactRegistry(sys.argv[1])
registry.register("a/b/c/2/_base", "m", "_base", "config.json", sys.argv[2])
os._exit(0)
"""


def test_a_child_that_outlives_its_parent_takes_nothing_along(
    database_path: Path, file: Path, tmp_path: Path
) -> None:
    running = tmp_path / "running"
    running.touch()
    url = f"sqlite:///{database_path}"
    command = [sys.executable, "-c", ORPHAN, url, str(file), str(running)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    process.wait(120)
    # Somebody else writes, and is killed: what it committed is in the log only.
    writer = (
        "import os, sys\nfrom registry import MetadataArtifactRegistry as M\nr = M(sys.argv[1])\n"
    )
    writer += 'r.register("a/b/c/2/_base", "m", "_base", "config.json", sys.argv[2])\nos._exit(0)'
    subprocess.run([sys.executable, "-c", writer, url, str(file)], cwd=ROOT, check=True)
    running.unlink()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    with MetadataArtifactRegistry(url) as registry:
        assert len(held(registry)) == 2


def test_a_child_of_multiprocessing_leaves_the_registry_alone(
    database_path: Path, file: Path
) -> None:
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as registry:
        registry.register(OWNER, "m", "_base", "config.json", file)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=registry.close)
        process.start()
        process.join(CHILD_S)
        assert process.exitcode == 0
        process = context.Process(target=registry.unregister, args=("m", "_base"))
        process.start()
        process.join(CHILD_S)
        assert process.exitcode == 1
        assert len(held(registry)) == 1


# Clients and workers


def test_a_client_is_not_used_in_a_child(server: Server) -> None:
    with RegistryClient(server.url) as client:
        list(client.owners())
        with Busy(lambda number: list(client.owners())):
            assert in_child(lambda: list(client.owners())) == "WrongProcess"
            assert in_child(lambda: client.has_blob("blake3:" + "0" * 64)) == "WrongProcess"
            assert in_child(client.close) == "done"
            assert in_child(lambda: list(RegistryClient(server.url).owners())) == "done"
        assert list(client.owners()) == []


def test_an_asyncio_client_is_not_used_in_a_child(server: Server) -> None:
    client = AsyncRegistryClient(server.url)

    def use() -> None:
        asyncio.run(client.renew(OWNER))

    assert in_child(use) == "WrongProcess"
    assert in_child(lambda: asyncio.run(client.close())) == "done"
    asyncio.run(client.close())


WORKER: dict[str, tuple[Callable[[Worker, Path], object], str]] = {
    "attach": (lambda worker, model: worker.attach(model, name="other"), "WrongProcess"),
    "detach": (lambda worker, model: worker.detach(), "WrongProcess"),
    "detach_all": (lambda worker, model: worker.detach_all(), "WrongProcess"),
    "close": (lambda worker, model: worker.close(), "done"),
    "leave": (lambda worker, model: worker.__exit__(None, None, None), "done"),
    "leave with an error": (
        lambda worker, model: worker.__exit__(KeyError, KeyError(), None),
        "done",
    ),
}


def test_a_worker_is_not_used_in_a_child_and_keeps_its_models(
    server: Server, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    store = FileDiscovery(tmp_path / "store")
    url = f"file:{tmp_path / 'store'}"
    with Worker(server.url, OWNER, discovery=url, lease_ttl_s=1, public_url=server.url) as worker:
        worker.attach(model, name="tiny")
        for name, (call, outcome) in WORKER.items():
            assert in_child(lambda call=call: call(worker, model)) == outcome, name  # type: ignore[misc]
        assert [record.key.owner for record in store.list(Kind.MODEL)] == [OWNER]
        last = server.client.get(f"/v1/owners/{OWNER}").json()
        assert last["refs"] == 3
        wait_for(
            lambda: (
                server.client.get(f"/v1/owners/{OWNER}").json()["renewed_at"] > last["renewed_at"]
            )
        )
    assert store.list(Kind.MODEL) == []
    store.close()


LEFT = """
import os, sys
from registry.client import Worker
url, model, store = sys.argv[1:]
with Worker(url, "a/b/c/1/_base", discovery="file:" + store, public_url=url) as worker:
    worker.attach(model, name="left")
    child = os.fork()
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)
    print(sorted(os.listdir(store + "/v1/mdc")), flush=True)
    sys.stdin.readline()
"""


def test_a_child_that_leaves_the_block_detaches_nothing(server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    command = [sys.executable, "-c", LEFT, server.url, str(model), str(tmp_path / "store")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert "a%2Fb%2Fc%2F1" in process.stdout.readline()
    assert server.client.get("/v1/owners/a/b/c/1/_base").json()["refs"] == 3
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert server.client.get("/v1/owners/a/b/c/1/_base").json()["refs"] == 0
