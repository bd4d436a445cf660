"""What a page costs in a large registry: `make bench ONLY=pages`, not among the usual figures."""

from __future__ import annotations

import itertools
import threading
import time
from http.client import HTTPConnection

from benchmarks import databases, load, programs
from benchmarks.measuring import Figure, Goal, Spread
from benchmarks.reading import Tell, Tools

ENTRIES = 1_000_000
MIDDLE = ENTRIES // databases.REFS // 2
GOAL_MS = 200
GETS_PER_S = 200
SECONDS = 10.0
PAUSE_S = 0.2
"""Between two pages: some five a second are loaded, as by a dozen people."""
PAGES = {
    "overview": "/",
    "models": "/ui/models",
    "models, from the middle": f"/ui/models?after=model-{MIDDLE}%2F_base",
    "model": f"/ui/models/model-{MIDDLE}/_base",
    "file": f"/ui/artifacts/model-{MIDDLE}/_base/file-0.json",
    "file that never was": "/ui/artifacts/none/_base/file-0.json",
    "owners": "/ui/owners",
    "owners, of an instance": f"/ui/owners?q={MIDDLE}",
    "owners, of nobody": "/ui/owners?q=nobody",
    "owner": f"/ui/owners/bench/backend/generate/{MIDDLE}/_base",
    "events": "/ui/events",
    "events, of a model": f"/ui/events?slug=model-{MIDDLE}",
    "events, of a rare kind": "/ui/events?kind=drifted",
    "events, before a time": "/ui/events?until=2026-01-01T00:00",
    "audit": "/ui/audit",
    "sql, the form": "/ui/sql",
}


def showing(_: Tools, rounds: int, tell: Tell) -> list[Figure]:
    """Every page with 10^6 entries and 10^5 owners, at the client; the first look as well."""
    figures = []
    with programs.registry(databases.with_entries(ENTRIES, tell)) as program:
        for name, path in PAGES.items():
            tell(name)
            times = [_get_ms(program, path) for _ in range(4 * rounds)]
            goal = Goal("ours", GOAL_MS, at_most=True)
            figures.append(Figure("pages", name, "ms", Spread.of(times), goal=goal))
        tell("files beside pages")
        figures.append(_reads_beside(program, rounds))
    return figures


def _reads_beside(program: programs.Program, rounds: int) -> Figure:
    """The p99 of GETs of a file while one page after the other is loaded, and without pages."""
    idle, beside = [], []
    for _ in range(rounds):
        idle.append(_p99_ms(program))
        over = threading.Event()
        pages = threading.Thread(target=_load_pages, args=(program, over))
        pages.start()
        beside.append(_p99_ms(program))
        over.set()
        pages.join()
    return Figure(
        "pages",
        f"p99 of {GETS_PER_S} GETs/s of a file while five pages a second are loaded",
        "ms",
        Spread.of(beside),
        Spread.of(idle),
        "the same without pages",
        Spread.of([one / other for one, other in zip(beside, idle, strict=True)]),
        goal=Goal("compared", 2, at_most=True),
    )


def _p99_ms(program: programs.Program) -> float:
    file = databases.manifest(MIDDLE, ENTRIES)[0].key
    gets = itertools.repeat(databases.http("GET", f"/v1/metadata/{file}"))
    found = load.call_at_rate(
        program.address,
        gets,
        lambda answer: answer.startswith(b"HTTP/1.1 200"),
        per_s=GETS_PER_S,
        seconds=SECONDS,
    )
    return found.latency_s(0.99) * 1000


def _load_pages(program: programs.Program, over: threading.Event) -> None:
    for path in itertools.cycle(PAGES.values()):
        if over.is_set():
            return
        _get_ms(program, path)
        over.wait(PAUSE_S)


def _get_ms(program: programs.Program, path: str) -> float:
    connection = HTTPConnection(program.host, program.port, timeout=60)
    try:
        connection.connect()
        began = time.perf_counter()
        connection.request("GET", path, headers={"accept": "text/html"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 404), (path, answer.status)
        return (time.perf_counter() - began) * 1000
    finally:
        connection.close()
