"""Heads that came before are not parsed again: what is answered is the same, whatever comes how."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from registry.config import Settings
from registry.core.records import ArtifactKey, Offer, Owner
from registry.server.app import create_app
from registry.server.http1.config import Config
from registry.server.http1.known_heads import HEAD_BYTES, KNOWN_BYTES, KnownHeads
from registry.server.http1.protocol import HttpConnection
from registry.server.http1.watch import Limits
from registry.server.process import uvicorn_options
from tests.exchanges import Line, request, running
from tests.places import Places, on_both, on_sqlite
from tests.support import Server, checksum, wait_for
from tests.test_metrics import Scraped

CONTENTS = {
    ArtifactKey("model", "_base", "a.json"): b'{"a": 1}',
    ArtifactKey("model", "_base", "b.json"): b'{"bb": 22}',
}
OWNER = Owner("n", "c", "e", 1)
A, B = (f"/v1/metadata/{key}" for key in CONTENTS)
READ_A, READ_B = request(A), request(B)
PLAIN = {
    "a": READ_A,
    "b": READ_B,
    "with headers": request(A, "Accept: */*", "X-Request-Id: mine"),
    "of an encoded path": request(A.replace("a.json", "%61.json")),
}

WHOLE: dict[str, bytes] = {
    **PLAIN,
    "of what is not there": request("/v1/metadata/model/_base/c.json"),
    "with a query": request(f"{A}?x=1"),
    "of something else": request("/live"),
    "HEAD": request(A, method="HEAD"),
    "PUT": request(A, method="PUT"),
    "lower case": request(A, method="get"),
    "a range": request(A, "Range: bytes=0-1"),
    "two ranges": request(A, "Range: bytes=0-1,3-4"),
    "a condition": request(A, f'If-None-Match: "{checksum(CONTENTS[ArtifactKey.parse(A[13:])])}"'),
    "the last one": request(A, "Connection: close"),
    "HTTP/1.0": READ_A.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0 kept": request(A, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no version": b"GET " + A.encode() + b"\r\n\r\n",
    "another version": READ_A.replace(b"HTTP/1.1", b"HTTP/3.7"),
    "no host": READ_A.replace(b"Host: localhost\r\n", b""),
    "two hosts": request(A, "Host: localhost"),
    "a host of others": READ_A.replace(b"localhost", b"elsewhere.example"),
    "a host that is none": READ_A.replace(b"localhost", b"a b"),
    "a whole URL": request(f"http://localhost{A}"),
    "a whole URL of others": request(f"http://elsewhere.example{A}"),
    "an upgrade": request(A, "Connection: upgrade", "Upgrade: h2c"),
    "an empty body": request(A, "Content-Length: 0"),
    "an expectation": request(A, "Expect: 100-continue"),
    "line feeds alone": READ_A.replace(b"\r\n", b"\n"),
    "an empty line in front": b"\r\n" + READ_A,
    "an empty line behind": READ_A + b"\r\n",
    "a letter behind": READ_A + b"G",
    "nonsense behind": READ_A + b"\0\0\0",
    "two": READ_A + READ_B,
    "two, the first with line feeds alone": READ_A.replace(b"\r\n", b"\n") + READ_B,
    "a folded header": request(A, "X-A: b", " c"),
    "a header without a name": request(A, ": b"),
    "too many headers": request(A, *["a:"] * 200),
    "a long one": request(A, f"X-Long: {'x' * HEAD_BYTES}"),
    "a read and a body": request(A, f"Content-Length: {len(READ_B)}") + READ_B,
}
PARTS: dict[str, bytes] = {
    "first half": READ_A[:30],
    "second half": READ_A[30:],
    "all but the end": READ_A[:-2],
    "the end": b"\r\n",
    "a body as long as a read": request(
        "/v1/registrations", f"Content-Length: {len(READ_A)}", method="POST"
    ),
    "chunks follow": request("/v1/renewals", "Transfer-Encoding: chunked", method="POST"),
    "a chunk as long as a read": f"{len(READ_A):x}\r\n".encode(),
    "no more chunks": b"\r\n0\r\n\r\n",
    "a read with a body": request(A, f"Content-Length: {len(READ_A)}"),
}
RANDOM = re.compile(rb'(x-request-id: |"request_id":"|boundary=|\r\n--)[0-9a-f]+')


class Wire(asyncio.Transport):
    """Keeps what a connection writes."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.written = b""
        self.closing = False

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += bytes(data)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


Found = tuple[bytes, list[tuple[tuple[object, ...], float | None]], int]


class Application:
    """An application with two files in memory, which is asked through connections of its own."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stack = AsyncExitStack()
        loop.run_until_complete(self._start(url))

    async def _start(self, url: str) -> None:
        self._app = create_app(Settings(database_url=url))
        starlette: Any = self._app._app.app  # type: ignore[attr-defined]
        context = starlette.router.lifespan_context(starlette)
        self._state = await self._stack.enter_async_context(context)
        registry = self._state["registry"]
        for content in CONTENTS.values():
            await registry.upload(checksum(content), _only(content), None, None)
        offers = [Offer(key, None, checksum(each), None) for key, each in CONTENTS.items()]
        await registry.register(OWNER, offers, lease_ttl_ms=None)
        self._limits = Limits(10, 16 << 10, 60)

    def config(self) -> Config:
        config = Config(self._app, self._limits, **uvicorn_options())
        config.load()
        return config

    def answers(self, config: Config, pieces: Sequence[tuple[bytes, bool]]) -> Found:
        """What is answered to pieces, each by itself; behind some of them all is waited for. And
        what the connection waits for behind each, and how many requests were answered."""
        return self._loop.run_until_complete(self._answers(config, pieces))

    async def _answers(self, config: Config, pieces: Sequence[tuple[bytes, bool]]) -> Found:
        state, wire = ServerState(), Wire()
        state.default_headers = [(b"date", b"today")]
        connection = HttpConnection(config, state, self._state)
        connection.connection_made(wire)
        phases = []
        for piece, waits in pieces:
            if not wire.closing:
                connection.data_received(piece)
            phases.append(connection._waits_for())
            while waits and state.tasks:
                await asyncio.wait(state.tasks)
        deadline = self._loop.time() + 1
        while state.tasks and self._loop.time() < deadline:
            await asyncio.wait(state.tasks, timeout=0.05)
            if connection.cycle is not None and connection.cycle.more_body:
                break  # It waits for what does not come.
        phases.append(connection._waits_for())
        wire.closing = True
        connection.connection_lost(None)
        while state.tasks:
            await asyncio.wait(state.tasks)
        return RANDOM.sub(rb"\1", wire.written), phases, state.total_requests

    def close(self) -> None:
        self._loop.run_until_complete(self._stack.aclose())


async def _only(content: bytes) -> Any:
    yield content


@pytest.fixture(scope="module")
def application(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with places.at(tmp_path_factory.mktemp("heads")) as place, asyncio.Runner() as runner:
        place.migrate()
        made = Application(place.url, runner.get_loop())
        # Paths are remembered when they were found once.
        for head in PLAIN.values():
            made.answers(made.config(), [(head, True)])
        yield made
        made.close()


def learned(application: Application, *more: bytes) -> Config:
    """A process that has met the plain reads often enough, and other heads after that."""
    config = application.config()
    for head in (*PLAIN.values(), *more):
        for _ in range(3):
            application.answers(config, [(head, True)])
    assert set(PLAIN.values()) <= set(config.known_heads)
    return config


@on_both
@pytest.mark.parametrize("name", WHOLE)
def test_a_head_that_was_met_before_is_answered_as_at_first(
    application: Application, name: str
) -> None:
    head = WHOLE[name]
    first = application.answers(application.config(), [(head, True), (READ_B, True)])
    config = learned(application, head)
    again = application.answers(config, [(head, True), (READ_B, True)])
    assert again == first
    assert (head in config.known_heads) == (name in PLAIN)


@on_both
def test_a_connection_that_reads_again_and_again_is_not_idle(application: Application) -> None:
    """What it waits for is another request each time."""
    config = learned(application)
    for head in (READ_A, request("/live")):
        for count in range(1, 4):
            pieces = [(head, True), *[(READ_A, True)] * count]
            _, [*_, (waits_for, _)], answered = application.answers(config, pieces)
            assert waits_for == ("request", count + 1)
            assert answered == count + 1


PIECES = st.sampled_from([*WHOLE.values(), *PARTS.values(), *[READ_A, READ_B] * 8])


@on_both
@given(pieces=st.lists(st.tuples(PIECES, st.booleans()), max_size=8))
def test_whatever_comes_in_pieces_is_answered_as_if_nothing_was_known(
    application: Application, pieces: list[tuple[bytes, bool]]
) -> None:
    """A body or half of a head that looks like a known read is not taken for one."""
    expected = application.answers(application.config(), pieces)
    config = learned(application)
    for _ in range(4):
        assert application.answers(config, pieces) == expected


def test_what_is_remembered_is_bounded_and_heads_that_come_once_are_not() -> None:
    known = KnownHeads()
    for number in range(30_000):
        head = request(f"{A}{number}")
        known.learn(head, A.encode(), [])
        assert head not in known
        known.learn(head, A.encode(), [])
        assert known[head] == (A.encode(), [])
        assert known.used_bytes <= KNOWN_BYTES
    assert len(known) < 30_000


# A service


@pytest.fixture(scope="module")
def service(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with places.at(tmp_path_factory.mktemp("known")) as place, running(place) as server:
        yield server


def ask(line: Line, status: int = 200) -> bytes:
    line.send(PLAIN["with headers"])
    answer = line.read_answer()
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["x-request-id"] == "mine"
    return answer.content


@on_both
def test_a_known_head_is_answered_with_what_is_registered_now(service: Server) -> None:
    """S1, S3: a read shows every change that was acknowledged before it."""
    key = ArtifactKey.parse(A[13:])
    with Line(service) as line, Line(service) as other:
        for number in range(3):
            content = f"content {number}".encode()
            assert service.register_copies(OWNER, {key: content}).status_code == 200
            for _ in range(3):
                assert ask(line) == ask(other) == content
            assert service.unregister(OWNER).status_code == 200
            for _ in range(3):
                ask(line, 404)
                ask(other, 404)


@on_sqlite
def test_what_fails_for_a_known_head_is_answered(serve: Callable[..., Server]) -> None:
    """Not with an end of the connection. The service meets with a column that somebody renamed."""
    service = serve()
    key = ArtifactKey.parse(A[13:])
    service.register_copies(OWNER, {key: b"renamed"})
    with Line(service) as line:
        for _ in range(3):
            ask(line)
    with service.place.sql() as connection:
        connection.execute("ALTER TABLE entries RENAME COLUMN size TO length")
        codes = set()
        for _ in range(20):
            with Line(service) as line:
                line.send(PLAIN["with headers"])
                answer = line.read_answer()
            codes.add(answer.json()["code"])
            assert answer.headers["x-request-id"] == "mine"
        connection.execute("ALTER TABLE entries RENAME COLUMN length TO size")
    assert "internal" in codes
    assert codes <= {"internal", "storage_unavailable", "busy"}
    wait_for(lambda: service.fetch(key).status_code == 200)
    assert service.unregister(OWNER).status_code == 200


@on_both
def test_reads_of_known_heads_are_counted(service: Server) -> None:
    key = ArtifactKey.parse(A[13:])
    service.register_copies(OWNER, {key: b"counted"})
    with Line(service) as line:
        ask(line)
        before = _reads(service)
        for _ in range(10):
            ask(line)
        assert _reads(service) == before + 10
    service.unregister(OWNER)


def _reads(server: Server) -> float:
    return Scraped(server).get("reads_total", outcome="memory")
