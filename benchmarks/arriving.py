"""Everybody at once: B15 (frontends that start cold), B16 (workers that attach)."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from benchmarks import databases, load, programs
from benchmarks.machine import WORK, cpu_s
from benchmarks.measuring import Figure, Goal, Spread, in_turn
from benchmarks.programs import Program
from benchmarks.reading import Tell, Tools, put
from registry.core.hashing import checksum_of
from registry.core.records import Artifact, ArtifactKey

FRONTENDS = 1000
FILES_EACH = 10
WORKERS = 500
MODELS = 5
FILES_OF_MODEL = 20
FILE_BYTES = 4096


def cold_start(tools: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B15: 1,000 frontends connect at the same moment, and fetch 10 files each."""
    if tools.nginx is None:
        return []
    folder = WORK / "cold"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES_EACH):
        (folder / f"file-{number}.json").write_bytes(_content(number))
    with ExitStack() as stack:
        service = stack.enter_context(programs.registry(databases.fresh("b15")))
        _attach(service, owner=1, slug="model", files=FILES_EACH)
        nginx = stack.enter_context(programs.nginx(tools.nginx, folder))

        def fetching(program: Program, prefix: str) -> Callable[[], float]:
            paths = [f"{prefix}/file-{number}.json" for number in range(FILES_EACH)]
            return lambda: _all_at_once(program, _gets(paths), FRONTENDS)

        found = in_turn(
            fetching(nginx, ""),
            {"ours": fetching(service, "/v1/metadata/model/_base")},
            rounds,
            tell,
        )
    return [
        found.figure(
            "ours",
            "B15",
            f"{FRONTENDS:,} frontends fetch {FILES_EACH} files each at once: until all have them",
            "s",
            "nginx",
            goal=Goal("compared", 1.5, at_most=True),
        )
    ]


def attaching(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """B16: 500 workers that share 5 models attach their 20 files at the same moment."""
    times, used = [], []
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        with programs.registry(databases.fresh("b16")) as program:
            for model in range(MODELS):
                _attach(program, owner=10**6 + model, slug=f"shared-{model}", files=FILES_OF_MODEL)
            before = cpu_s(program.pid)
            requests = [
                [_attachment(worker, f"shared-{worker % MODELS}", FILES_OF_MODEL)]
                for worker in range(1, WORKERS + 1)
            ]
            times.append(_all_at_once(program, requests, WORKERS))
            used.append((cpu_s(program.pid) - before) * 1e6 / WORKERS)
    work = f"{WORKERS} workers attach {FILES_OF_MODEL} files each of {MODELS} models at once"
    return [
        Figure(
            "B16",
            f"{work}: until all are acknowledged",
            "s",
            Spread.of(times),
            goal=Goal("ours", 5.0, at_most=True),
            cpu_us=Spread.of(used),
        )
    ]


def _content(number: int) -> bytes:
    return f'{{"file":{number}}}'.encode().ljust(FILE_BYTES)


def _attachment(owner: int, slug: str, files: int) -> bytes:
    artifacts = tuple(
        Artifact(
            ArtifactKey(slug, "_base", f"file-{number}.json"),
            checksum_of(_content(number)),
            FILE_BYTES,
        )
        for number in range(files)
    )
    return databases.registration(owner, artifacts)


def _attach(program: Program, *, owner: int, slug: str, files: int) -> None:
    """Upload the files of a model and register them for an owner, who holds them for a while."""
    with load.Caller(program.address) as caller:
        for number in range(files):
            put(caller, _content(number))
        answer, _ = caller.call(_attachment(owner, slug, files))
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]


def _gets(paths: Sequence[str]) -> list[list[bytes]]:
    """What each frontend asks for: all files, every one beginning with another."""
    requests = [databases.http("GET", path) for path in paths]
    return [
        requests[first % len(paths) :] + requests[: first % len(paths)]
        for first in range(FRONTENDS)
    ]


def _all_at_once(program: Program, requests: Sequence[Sequence[bytes]], callers: int) -> float:
    """Connect so many callers, and have each send its requests one after the other; the seconds
    from the first connection until the last answer. Connecting is part of it: that is what a cold
    start is.

    Raises:
        RuntimeError: an answer was no 200.
    """
    assert len(requests) == callers
    with ExitStack() as stack, select.epoll() as poll:
        began = time.perf_counter()
        at_work: dict[int, tuple[load.Caller, Iterator[bytes]]] = {}
        for mine in requests:
            caller = stack.enter_context(load.Caller(program.address))
            following = iter(mine)
            poll.register(caller.socket.fileno(), select.EPOLLIN)
            at_work[caller.socket.fileno()] = caller, following
            caller.send(next(following))
        while at_work:
            ready = poll.poll(load.ANSWER_S)
            if not ready:
                raise RuntimeError(f"no answer within {load.ANSWER_S:g} s")
            for number, _ in ready:
                caller, following = at_work[number]
                found = caller.receive()
                if found is None:
                    continue
                if not found[0].startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"a wrong answer: {found[0][:600]!r}")
                request = next(following, None)
                if request is None:
                    poll.unregister(number)
                    del at_work[number]
                else:
                    caller.send(request)
        return time.perf_counter() - began
