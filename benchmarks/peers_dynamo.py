"""B1f, B1g, B1h: reads, against the endpoint where a real NVIDIA Dynamo worker serves its files.

    python -m benchmarks.peers_dynamo     # these rows alone: printed, not kept

The worker (`dynamo_worker.py`) registers a model from a folder and hosts its metadata itself, with
the server in Rust that every Dynamo worker has in its process; the file's URL is read from the card
that it publishes. Ours is the service as shipped, with the same bytes, copied. Both are on the
server's core in turn, and both have answered with the right bytes before anything is measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from urllib.parse import urlsplit

from benchmarks import databases, load, programs, reading, report
from benchmarks.machine import ROOT, WORK, describe, find_tool, pin_load
from benchmarks.measuring import Costs, Figure, Goal, Measure, in_turn
from benchmarks.programs import Program
from registry.core.hashing import checksum_of
from registry.discovery import Kind
from registry.discovery.file import FileDiscovery

PYTHON = ROOT / "build" / "dynamo" / "bin" / "python"
FILENAME = "small.json"
CONFIG = {"model_type": "llama", "max_position_embeddings": 2048}
"""As much as Dynamo has to know of a model."""
DynamoRow = tuple[str, int, float | None]
ROWS: tuple[DynamoRow, ...] = (("B1f", 1, 1.2), ("B1g", 16, 1.9), ("B1h", 64, None))
"""Name, connections, and the ratio that is the goal."""
ROUNDS = 5
SECONDS = 2
"""Of a run of `wrk`, which takes whole ones."""


@dataclass(frozen=True, slots=True)
class ServedFile:
    """The file of 1 KiB at one of the two servers, which are "ours" and "Dynamo 1.2.3"."""

    server: str
    program: Program
    path: str

    def gets(self, wrk: str, connections: int) -> Callable[[], load.Gets]:
        url = self.program.url(self.path)
        return lambda: load.wrk(wrk, url, connections=connections, seconds=SECONDS)

    def check(self, content: bytes) -> None:
        with load.Caller(self.program.address) as caller:
            answer, _ = caller.call(databases.http("GET", self.path))
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        assert answer.partition(b"\r\n\r\n")[2] == content, "other bytes"


def beside_dynamo(rounds: int, tell: reading.Tell) -> list[Figure]:
    """The three rows. None, and a line that says why, where Dynamo or `wrk` is missing."""
    if not PYTHON.exists():
        print("B1f, B1g, B1h are left out: build/dynamo is missing (`make interop` sets it up)")
        return []
    wrk = find_tool("wrk")
    if wrk is None:
        print("B1f, B1g, B1h are left out: wrk is missing")
        return []
    content = os.urandom(reading.SMALL_BYTES)
    with ExitStack() as stack:
        ours = stack.enter_context(_registry(content))
        theirs = stack.enter_context(_dynamo(content))
        for each in (ours, theirs):
            each.check(content)
        return [_figure(row, ours, theirs, wrk, rounds, tell) for row in ROWS]


def _figure(
    row: DynamoRow, ours: ServedFile, theirs: ServedFile, wrk: str, rounds: int, tell: reading.Tell
) -> Figure:
    name, connections, bound = row
    what = f"{connections} connection{'s' if connections > 1 else ''}"
    costs = {file.server: Costs(file.program.pid) for file in (ours, theirs)}

    def gets(file: ServedFile) -> Measure:
        return costs[file.server].rate(file.gets(wrk, connections))

    found = in_turn(
        gets(theirs), {ours.server: gets(ours)}, rounds, lambda now: tell(f"{what}, {now}")
    )
    goal = None if bound is None else Goal("compared", bound)
    work = f"GET a 1 KiB file, {what}"
    return replace(
        found.figure(ours.server, name, work, "/s", theirs.server, goal=goal),
        cpu_us=costs[ours.server].us,
        reference_cpu_us=costs[theirs.server].us,
    )


@contextmanager
def _registry(content: bytes) -> Iterator[ServedFile]:
    with programs.registry(databases.fresh("b1-dynamo")) as program:
        with load.Caller(program.address) as caller:
            reading.put(caller, content)
            reading.register(caller, 0, f'"checksum":"{checksum_of(content)}"')
        yield ServedFile("ours", program, reading.path_of(0))


@contextmanager
def _dynamo(content: bytes) -> Iterator[ServedFile]:
    folder = WORK / "dynamo"
    rmtree(folder, ignore_errors=True)
    model, store = folder / "model", folder / "store"
    for each in (model, store):
        each.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / FILENAME).write_bytes(content)
    command = [str(PYTHON), "-m", "benchmarks.dynamo_worker", str(model)]
    with programs.started(command, **_environment(folder, store)) as (process, output):
        version = output.readline().strip()
        if not version:
            raise RuntimeError(f"the Dynamo worker has ended; see {WORK}/servers.log")
        url = urlsplit(_published_url(store))
        assert url.hostname is not None
        assert url.port is not None
        program = Program(process.pid, url.hostname, url.port)
        yield ServedFile(f"Dynamo {version}", program, url.path)


def _environment(home: Path, store: Path) -> dict[str, str]:
    """What a worker is told of its place: it listens on loopback alone, at any free port."""
    return {
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "DYN_FILE_KV": str(store),
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    }


def _published_url(store: Path) -> str:
    """Where the one card in the store says that the file is."""
    with closing(FileDiscovery(store)) as discovery:
        (record,) = discovery.list(Kind.MODEL)
    (url,) = (each.url for each in record.card.files if each.filename == FILENAME)
    return url


def main() -> int:
    """Take these figures alone and print their table."""
    pin_load()
    figures = beside_dynamo(ROUNDS, lambda what: print(f"Dynamo: {what}", flush=True))
    report.print_table([report.row(figure) for figure in figures])
    for key, value in describe().items():
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
