"""Reading: B1 (small files), B2 (large files and memory), B6 (reading beside writing)."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import databases, load, programs
from benchmarks.machine import WORK, forget_peak, memory_mib
from benchmarks.measuring import Costs, Figure, Goal, InTurn, Spread, in_turn
from benchmarks.programs import Program
from registry.core.hashing import checksum_of

Tell = Callable[[str], None]

SMALL_BYTES = 1 << 10
LARGE_BYTES = 10 << 20
LARGE_FILES = 40
SLOW_READERS = 64
IDLE_CONNECTIONS = 1000
KEYS = 10_000
OLD_S = 10
"""How far back the files' times are set: an identity younger than 2 s is not trusted."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs beside Python; None: they could not be had, and their figures are left out."""

    wrk: str | None
    nginx: str | None


@contextmanager
def _serving(size: int, files: int) -> Iterator[tuple[Program, Path]]:
    """The service with `files` files of a size, each once copied and once in place."""
    folder = WORK / f"files-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"{number}.json"
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(os.urandom(size))
        os.utime(path, (time.time() - OLD_S,) * 2)
    time.sleep(2.1)  # The change time cannot be set back.
    database = databases.fresh(f"reading-{size}")
    with programs.registry(database, artifact_root=folder) as program:
        with load.Caller(program.address) as caller:
            for number in range(files):
                content = (folder / f"{number}.json").read_bytes()
                put(caller, content)
                register(caller, number, f'"checksum":"{checksum_of(content)}"')
                register(caller, number + files, f'"path":"{folder}/{number}.json"')
        yield program, folder


def put(caller: load.Caller, content: bytes) -> None:
    """Upload a content."""
    request = databases.http("PUT", f"/v1/blobs/{checksum_of(content)}", content)
    answer, _ = caller.call(request.replace(b"application/json", b"application/octet-stream"))
    assert answer.startswith(b"HTTP/1.1 20"), answer[:300]


def register(caller: load.Caller, number: int, source: str) -> None:
    """Register one file, for good, of which `source` says in JSON where its bytes are."""
    body = (
        '{"owner":{"namespace":"bench","component":"backend","endpoint":"generate",'
        f'"instance_id":"{number}"}},"lease_ttl_s":null,"artifacts":[{{"slug":"file-{number}",'
        f'"suffix":"_base","filename":"config.json",{source}}}]}}'
    )
    answer, _ = caller.call(databases.http("POST", "/v1/registrations", body.encode()))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]


def path_of(number: int) -> str:
    """Where such a file is served."""
    return f"/v1/metadata/file-{number}/_base/config.json"


# B1


def small_files(tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B1: GET a 1 KiB file, 16 connections."""
    if tools.wrk is None:
        return []
    wrk = tools.wrk
    with ExitStack() as stack:
        service, folder = stack.enter_context(_serving(SMALL_BYTES, 1))
        file = folder / "0.json"
        bare = stack.enter_context(programs.reference("bare", file))
        starlette = stack.enter_context(programs.reference("starlette", file))
        many = stack.enter_context(_many_keys(tell))

        def gets(program: Program, path: str) -> Callable[[], float]:
            return lambda: load.wrk(wrk, program.url(path)).per_s

        def costly(path: str) -> Callable[[], float]:
            costs[path] = Costs(service.pid)
            return costs[path].rate(lambda: load.wrk(wrk, service.url(path)))

        def all_keys() -> load.Gets:
            script = str(Path(__file__).with_name("keys.lua"))
            url = many.url(f"/?{KEYS}")
            run = load.wrk_begun(wrk, url, connections=16, seconds=2, script=script)
            return load.wrk_result(run)

        costs = {"keys": Costs(many.pid)}
        ours = {
            "copied": costly(path_of(0)),
            "in place": costly(path_of(1)),
            "starlette": gets(starlette, "/x"),
            "keys": costs["keys"].rate(all_keys),
        }
        if tools.nginx is not None:
            nginx = stack.enter_context(programs.nginx(tools.nginx, folder, keeps_open=True))
            ours["nginx"] = gets(nginx, "/0.json")
        found = in_turn(gets(bare, "/"), ours, rounds, tell)
        others = [_with_connections(wrk, number, service, bare, rounds, tell) for number in (1, 64)]
    work = "GET a 1 KiB file"
    beside = [
        found.figure(
            "copied",
            "B1e",
            f"{work}, copied",
            "/s",
            "nginx with open_file_cache",
            goal=Goal("compared", 0.8),
            by="nginx",
        )
    ]
    return (beside if "nginx" in ours else []) + [
        _b1(found, "copied", "B1a", f"{work}, copied", costs[path_of(0)], 1.6),
        _b1(found, "in place", "B1b", f"{work}, in place", costs[path_of(1)], 1.25),
        found.figure(
            "in place",
            "B1c",
            f"{work}, in place",
            "/s",
            "Starlette FileResponse",
            goal=Goal("compared", 8),
            by="starlette",
        ),
        _b1(found, "keys", "B1d", f"{work}, copied, {KEYS} keys in turn", costs["keys"]),
        *others,
    ]


def _b1(
    found: InTurn, ours: str, name: str, work: str, costs: Costs, goal: float | None = None
) -> Figure:
    wanted = None if goal is None else Goal("compared", goal)
    return found.figure(ours, name, work, "/s", "bare ASGI application", goal=wanted, costs=costs)


def _with_connections(
    wrk: str, number: int, service: Program, bare: Program, rounds: int, tell: Tell
) -> Figure:
    """The same with another number of connections."""
    costs = Costs(service.pid)

    def gets(program: Program, path: str) -> Callable[[], load.Gets]:
        return lambda: load.wrk(wrk, program.url(path), connections=number)

    found = in_turn(
        lambda: gets(bare, "/")().per_s,
        {"ours": costs.rate(gets(service, path_of(0)))},
        rounds,
        tell,
    )
    work = f"GET a 1 KiB file, copied, {number} connection{'s' if number > 1 else ''}"
    return _b1(found, "ours", "B1i" if number == 1 else "B1j", work, costs)


@contextmanager
def _many_keys(tell: Tell) -> Iterator[Program]:
    path = databases.with_entries(100_000, tell)
    with programs.registry(path) as program:
        yield program


# B2


def large_files(tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B2: GET a 10 MiB file, 16 connections, and what slow readers cost in memory."""
    figures = _large_speed(tools, rounds, tell) if tools.wrk is not None else []
    return figures + _large_memory(tell)


def _large_speed(tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    wrk = tools.wrk
    assert wrk is not None
    with ExitStack() as stack:
        service, folder = stack.enter_context(_serving(LARGE_BYTES, 1))
        bare = stack.enter_context(programs.reference("bare", folder / "0.json"))

        def gets(program: Program, path: str) -> Callable[[], float]:
            return lambda: load.wrk(wrk, program.url(path)).per_s

        ours = {"copied": gets(service, path_of(0)), "in place": gets(service, path_of(1))}
        if tools.nginx is not None:
            nginx = stack.enter_context(programs.nginx(tools.nginx, folder))
            ours["nginx"] = gets(nginx, "/0.json")
        found = in_turn(gets(bare, "/"), ours, rounds, tell)
    work = "GET a 10 MiB file"
    figures = [
        found.figure(
            kind,
            name,
            f"{work}, {kind}",
            "/s",
            "bare ASGI application",
            goal=Goal("compared", 1.0),
        )
        for name, kind in (("B2a", "copied"), ("B2b", "in place"))
    ]
    if tools.nginx is not None:
        figures.append(
            found.figure(
                "in place",
                "B2c",
                f"{work}, in place",
                "/s",
                "nginx with sendfile",
                goal=Goal("compared", 1.0),
                by="nginx",
            )
        )
    return figures


def _large_memory(tell: Tell) -> list[Figure]:
    work = f"peak memory, {SLOW_READERS} slow readers of"
    figures = []
    with _serving(LARGE_BYTES, 1) as (program, _):
        tell("slow readers of one file")
        peak = _peak_with_slow_readers(program, 1)
        goal = Goal("ours", 120, at_most=True)
        figures.append(
            Figure("B2d", f"{work} one 10 MiB file", "MiB", Spread.of([peak]), goal=goal)
        )
        tell("idle connections")
        idle = _with_idle_connections(program)
        more = Figure(
            "B2f", f"memory with {IDLE_CONNECTIONS} idle connections", "MiB", Spread.of([idle])
        )
    with _serving(LARGE_BYTES, LARGE_FILES) as (program, _):
        tell(f"slow readers of {LARGE_FILES} files")
        peak = _peak_with_slow_readers(program, LARGE_FILES)
        goal = Goal("ours", 300, at_most=True)
        of = f"{LARGE_FILES} files of 10 MiB"
        figures.append(Figure("B2e", f"{work} {of}", "MiB", Spread.of([peak]), goal=goal))
    return [*figures, more]


def _peak_with_slow_readers(program: Program, files: int) -> float:
    """The most memory of the service while readers take 16 KiB every 20 ms each, for 8 s, half
    of them of copies and half of files in place; then they hang up."""
    forget_peak(program.pid)  # Of the uploads before.
    with ExitStack() as stack:
        readers = []
        for number in range(SLOW_READERS):
            connection = stack.enter_context(closing(_slow_connection(program)))
            source = number % files + (files if number % 2 else 0)
            connection.sendall(databases.http("GET", path_of(source)))
            readers.append(connection)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            for connection in readers:
                with suppress(BlockingIOError):
                    connection.recv(16 << 10, socket.MSG_DONTWAIT)
            time.sleep(0.02)
        return memory_mib(program.pid, peak=True)


def _slow_connection(program: Program) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    connection.settimeout(load.ANSWER_S)
    connection.connect(program.address)
    return connection


def _with_idle_connections(program: Program) -> float:
    with ExitStack() as stack:
        for _ in range(IDLE_CONNECTIONS):
            caller = stack.enter_context(load.Caller(program.address))
            caller.call(databases.http("GET", "/live"))
        return memory_mib(program.pid)


# B6


def beside_writing(tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B6: p99 of B1 while 500 registrations/s are going on, against itself idle."""
    if tools.wrk is None:
        return []
    wrk = tools.wrk
    streams = itertools.count()
    with _serving(SMALL_BYTES, 1) as (program, _):
        _prepare_contents(program)

        def idle(path: str) -> Callable[[], float]:
            return lambda: load.wrk(wrk, program.url(path), seconds=3).p99_ms

        def busy(path: str) -> Callable[[], float]:
            def measure() -> float:
                run = load.wrk_begun(wrk, program.url(path), connections=16, seconds=3)
                requests = databases.new_artifacts(0, 1, run=1000 + next(streams))
                writes = load.call_at_rate(
                    program.address, requests, created, per_s=500, seconds=3.2
                )
                assert len(writes.latencies_s) > 0.9 * 500 * 3.2, "the registrations lag behind"
                return load.wrk_result(run).p99_ms

            return measure

        figures = []
        for name, kind, number in (("B6a", "copied", 0), ("B6b", "in place", 1)):
            found = in_turn(idle(path_of(number)), {"busy": busy(path_of(number))}, rounds, tell)
            work = f"p99 of GET a 1 KiB file, {kind}, beside 500 registrations/s"
            goal = Goal("compared", 2, at_most=True)
            figures.append(found.figure("busy", name, work, "ms", "itself idle", goal=goal))
    return figures


def created(answer: bytes) -> bool:
    """Whether an answer to a registration says that something was created."""
    return answer.startswith(b"HTTP/1.1 200") and b'"outcome":"created"' in answer


def _prepare_contents(program: Program) -> None:
    """Upload the content that the registrations name."""
    with load.Caller(program.address) as caller:
        put(caller, databases.content(0))
