"""Costly reads, shortages and probes: what somebody asks for takes nothing from anybody else."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry.core.memo import Memo
from registry.core.records import ArtifactKey, Owner
from registry.errors import Busy
from registry.server.http import shortage
from registry.service.lanes import Lane, Shared
from registry.store.reads.lookup import ABSENT_BYTES, REMEMBERED_BYTES, Locator
from registry.store.sqlite.engine import Database
from tests.exchanges import Line, problem_of, running
from tests.support import Server, copied, wait_for

OWNER = Owner("lanes", "backend", "generate", 1)
KEY = ArtifactKey("lanes", "_base", "config.json")
CONTENT = b'{"served": "meanwhile"}'
HELD = """
import sys, time
from pathlib import Path
from registry import cli
from registry.service import lookups
from registry.store.reads import events, lookup, queries

def held(query):
    def wait(*arguments, **options):
        while not Path("go").exists():
            time.sleep(0.01)
        return query(*arguments, **options)
    return wait

lookups.WAITING_MAX = 3
lookups.audit = held(lookups.audit)
events.list_events = held(events.list_events)
for name in ("list_owners", "list_entries", "list_models", "explain", "find_owner"):
    setattr(queries, name, held(getattr(queries, name)))
cli.main()
"""
COSTLY = [
    "/v1/audit",
    "/v1/owners",
    "/v1/artifacts",
    "/v1/models",
    "/v1/events",
    f"/v1/artifacts/{KEY}",
    f"/v1/owners/{OWNER}",
]
"""What is answered from what may be much: four run at once, three wait."""


@pytest.fixture
def held(serve: Callable[..., Server]) -> Server:
    """A service whose costly reads take until there is a file `go`."""
    server = serve(program=("-c", HELD))
    assert server.register_copies(OWNER, {KEY: CONTENT}).status_code == 200
    return server


def everything_else_works(server: Server) -> None:
    for path in ("/live", "/health", "/metrics", "/openapi.json", "/docs"):
        assert server.client.get(path).status_code == 200, path
    assert server.fetch(KEY).content == CONTENT
    assert server.upload(CONTENT).status_code == 200
    assert server.register(OWNER, [copied(KEY, CONTENT)]).status_code == 200
    assert server.client.post(f"/v1/owners/{OWNER}/renew").status_code == 200


@pytest.fixture
def asked(held: Server) -> Iterator[Callable[[str], Line]]:
    """Asks the service for something, on a connection of its own."""
    with ExitStack() as lines:

        def ask(path: str) -> Line:
            line = lines.enter_context(Line(held))
            line.ask(path)
            return line

        yield ask


def is_answered(line: Line) -> bool:
    """Whether an answer comes at once."""
    line.socket.settimeout(0.3)
    try:
        return bool(line.socket.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        line.socket.settimeout(60)


def test_costly_reads_of_all_kinds_hold_up_nothing_but_themselves(
    held: Server, asked: Callable[[str], Line]
) -> None:
    lines = [asked(path) for path in COSTLY]
    wait_for(lambda: is_answered(asked("/v1/audit")))
    for path in COSTLY:
        answer = asked(path).read_answer()
        problem_of(answer, 503, "busy")
        assert int(answer.headers["retry-after"]) >= 1
    everything_else_works(held)
    (held.database.parent / "go").touch()
    assert {line.read_answer().status_code for line in lines} <= {200, 503}
    wait_for(lambda: all(held.client.get(path).status_code == 200 for path in COSTLY))


def test_who_hangs_up_while_waiting_leaves_the_place_to_others(
    held: Server, asked: Callable[[str], Line]
) -> None:
    lines = [asked("/v1/audit") for _ in range(7)]
    wait_for(lambda: is_answered(asked("/v1/audit")))
    for line in lines:  # Four run on, whoever they are of; three wait, and leave.
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.socket.close()
    others: list[Line] = []

    def waits() -> bool:
        others.append(asked("/v1/audit"))
        return not is_answered(others[-1])

    wait_for(waits)
    (held.database.parent / "go").touch()
    assert others[-1].read_answer().status_code == 200


def test_who_waits_is_told_when_no_turn_comes_and_who_leaves_makes_room() -> None:
    go = threading.Event()

    async def scenario() -> None:
        lane = Lane("test", threads=2, waiting_max=2, patience_s=0.2)
        running = [asyncio.create_task(lane.run(go.wait)) for _ in range(2)]
        waiting = [asyncio.create_task(lane.run(str)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="others wait"):
            await lane.run(str)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert lane.waiting == 1
        for task in (asyncio.create_task(lane.run(str)), waiting[1]):
            with pytest.raises(Busy, match="no turn came"):
                await task
        running[0].cancel()  # It runs on: what is in a thread cannot be stopped.
        with pytest.raises(Busy, match="no turn came"):
            await lane.run(str)
        go.set()
        assert await running[1] is True
        assert [await lane.run(int, number) for number in range(10)] == list(range(10))
        lane.close()

    asyncio.run(scenario())


def test_what_is_shared_is_done_once_and_fails_for_all_who_share_it() -> None:
    async def scenario() -> None:
        calls = 0

        async def work() -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0.01)
            if calls == 2:
                raise Busy
            return calls

        shared = Shared(work)
        assert await asyncio.gather(*(shared.get() for _ in range(50))) == [1] * 50
        found = await asyncio.gather(*(shared.get() for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in found] == [Busy] * 5
        impatient = asyncio.create_task(shared.get())
        other = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        impatient.cancel()
        assert await other == 3

    asyncio.run(scenario())


def test_hundreds_of_probes_at_once_are_one_look(serve: Callable[..., Server]) -> None:
    server = serve()
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(server)) for _ in range(200)]
        for line in lines:
            for path in ("/health", "/metrics"):
                line.ask(path)
        for line in lines:
            assert [line.read_answer().status_code for _ in range(2)] == [200, 200]


# Shortages

SHORT = """
from registry import cli
from registry.service import lookups
from registry.server.routes import registrations
from registry.store.reads import events, lookup, queries

def failing(error):
    def fail(*arguments, **options):
        raise error
    return fail

find = lookup.Locator.find
SHORTAGES = {
    "memory": MemoryError(), "stack": RecursionError("maximum recursion depth exceeded"),
    "threads": RuntimeError("can't start new thread"), "files": OSError(24, "Too many open files"),
}
def find_(self, key):
    if key[2] in SHORTAGES:
        raise SHORTAGES[key[2]]
    return find(self, key)
lookup.Locator.find = find_
lookups.audit = failing(SHORTAGES["memory"])
queries.list_models = failing(SHORTAGES["stack"])
events.list_events = failing(SHORTAGES["threads"])
registrations.decode_register = failing(SHORTAGES["memory"])
cli.main()
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that lacks something for some of what it is asked for."""
    folder = tmp_path_factory.mktemp("short")
    with running(folder, program=("-c", SHORT)) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", f"/v1/metadata/m/_base/{what}") for what in ("memory", "stack", "threads")),
        ("GET", "/v1/metadata/m/_base/files"),
        ("HEAD", "/v1/metadata/m/_base/memory"),
        ("GET", "/v1/audit"),
        ("GET", "/v1/models"),
        ("GET", "/v1/events"),
        ("POST", "/v1/registrations"),
    ],
)
def test_a_shortage_of_the_service_is_told_as_one(short: Server, method: str, path: str) -> None:
    answer = short.client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    if method != "HEAD":
        assert "not enough" in problem_of(answer, 503, "busy")["detail"]
    found = answer.headers["x-request-id"]
    wait_for(lambda: f"ERROR registry.http request {found} failed" in short.log)
    assert short.client.get("/live").status_code == 200


@pytest.mark.parametrize("error", [ValueError(), RuntimeError("x"), OSError(2, "x"), KeyError()])
def test_what_is_no_shortage_is_a_fault(error: Exception) -> None:
    assert shortage(error) is None


# Memory of what was asked for

NOBODYS = [
    "a/b/" + "x" * 60_000,
    "a/b/" + "%41" * 20_000,
    "A/b/c",
    "a" * 256 + "/_base/c",
    "a/_other/c",
    "a/_base/%00",
    "a/_base/..",
    "a/_base/a%2Fb",
    "n/c/e/a/b/" + "x" * 256,
    "n%20/c/e/a/b/c",
    "../c/e/a/b/c",
    "n/c/" + "e" * 256 + "/a/b/c",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.mark.parametrize("path", NOBODYS, ids=lambda path: path[:30])
def test_what_nobody_can_have_is_not_there(shared: Server, path: str) -> None:
    with Line(shared) as line:
        line.ask(f"/v1/metadata/{path}")
        problem_of(line.read_answer(), 404, "not_registered")


def test_whatever_is_asked_for_takes_no_memory_for_long(shared: Server) -> None:
    def memory_bytes() -> int:
        pages = Path(f"/proc/{shared.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def ask(names: list[str]) -> None:
        with Line(shared) as line:
            for name in names:
                line.ask(f"/v1/metadata/{name}")
                assert line.read_answer().status_code == 404

    ask([f"a/b/{number}" for number in range(500)])
    before = memory_bytes()
    ask([f"a/b/{number:060000}" for number in range(1000)])
    ask([f"n/c/{number:0250}/a/b/{number:0250}" for number in range(3000)])
    assert memory_bytes() - before < 16 << 20


def test_a_memo_stays_below_its_bytes_and_forgets_rather_than_grows() -> None:
    memo: Memo[str, str] = Memo(100_000)
    for number in range(10_000):
        name = f"{number:0100}"
        memo.keep(name, name)
        assert memo[name] == name
        assert memo.used_bytes <= 100_000
        assert len(memo) < 500
    memo.keep("large", "x" * 200_000)
    assert "large" not in memo
    memo.clear()
    assert (len(memo), memo.used_bytes) == (0, 0)


def test_what_nobody_holds_is_remembered_within_its_own_bytes(database: Database) -> None:
    locator = Locator(database)
    for number in range(10_000):
        assert locator.find(("a", "_base", f"{number:0200}")) is None
    assert 0 < locator._absent.used_bytes <= ABSENT_BYTES
    assert (len(locator._found), locator._found.max_bytes) == (0, REMEMBERED_BYTES)
    locator.close()
