"""What a page costs in a large registry: `make bench ONLY=pages`, not among the usual figures."""

from __future__ import annotations

import time
from http.client import HTTPConnection

from benchmarks import databases, programs
from benchmarks.measuring import Figure, Goal, Spread
from benchmarks.reading import Tell, Tools

ENTRIES = 1_000_000
MIDDLE = ENTRIES // databases.REFS // 2
GOAL_MS = 200
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
    return figures


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
