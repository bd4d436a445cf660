"""What peers can make the service hold or wait for: others are answered, and memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from registry.content.budget import Room
from registry.content.uploads import UPLOADS_MAX
from registry.core.records import ArtifactKey, Owner
from registry.errors import Busy
from registry.store.engine import Engine
from registry.store.group_commit import WAITING_ROWS_MAX, Writer
from tests.exchanges import Answer, Line, problem_of, request, running
from tests.places import Places
from tests.support import Server, checksum, copied, wait_for

KEY = ArtifactKey("model", "_base", "config.json")
CONTENT = b'{"a": "small file"}'
LARGE = ArtifactKey("model", "_base", "large.bin")
LARGE_CONTENT = bytes(range(256)) * (16 << 10)  # 4 MiB
OWNER = Owner("limits", "backend", "generate", 1)
FILE = f"/v1/metadata/{KEY}"
JSON_TYPE = "Content-Type: application/json"
MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _many_descriptors() -> Iterator[None]:
    """This process is the peer of all those connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def shared(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that waits for nobody longer than two seconds."""
    folder = tmp_path_factory.mktemp("limits")
    with places.at(folder) as place, running(place, body_timeout_s=2) as server:
        contents = {KEY: CONTENT, LARGE: LARGE_CONTENT}
        assert server.register_copies(OWNER, contents).status_code == 200
        assert server.fetch(LARGE).content == LARGE_CONTENT
        yield server


def memory_bytes(server: Server) -> int:
    """Resident memory of the service."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


@contextlib.contextmanager
def bounded(server: Server, growth_bytes: int) -> Iterator[None]:
    """The block leaves the service answering others, and its memory about as it was."""
    answers_others(server)
    before = memory_bytes(server)
    yield
    answers_others(server)
    assert memory_bytes(server) - before < growth_bytes


def answers_others(server: Server) -> None:
    """Reads, writes and uploads of somebody else are answered."""
    for _ in range(5):
        assert server.fetch(KEY).content == CONTENT
        assert server.register(OWNER, [copied(KEY, CONTENT)]).status_code == 200
        assert server.upload(CONTENT).status_code == 200


@contextlib.contextmanager
def connected(server: Server, count: int) -> Iterator[list[Line]]:
    """So many connections, closed when the block ends."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Line(server)) for _ in range(count)]


def closes(line: Line, within_s: float = 30) -> bytes:
    """What still comes on a connection that the service closes."""
    line.socket.settimeout(within_s)
    return line.read_rest()


# Many connections


def test_a_thousand_idle_connections_hold_up_nobody(shared: Server) -> None:
    with connected(shared, 1000), bounded(shared, 64 * MIB):
        pass


def test_one_connection_more_than_the_limit_is_told_so_and_may_come_back(
    serve: Callable[..., Server],
) -> None:
    server = serve(max_connections=20)
    server.client.close()
    with connected(server, 20) as full:
        for line in full:
            line.ask("/live")
            assert line.read_answer().status_code == 200
        with Line(server) as one_more:
            answer = one_more.read_answer()
            problem_of(answer, 503, "busy")
            assert answer.headers["retry-after"] == "1"
            assert closes(one_more) == b""
        full[0].ask("/live")
        assert full[0].read_answer().status_code == 200
    with httpx2.Client(base_url=server.url) as client:
        wait_for(lambda: client.get("/live").status_code == 200)


# Slow peers


def test_two_hundred_writers_of_a_byte_a_second_hold_up_nobody_and_are_cut_off(
    shared: Server,
) -> None:
    head = f"PUT /v1/blobs/{checksum(b'slow')} HTTP/1.1\r\nHost: localhost\r\n"
    with connected(shared, 200) as slow, bounded(shared, 64 * MIB):
        for line in slow:
            line.send(head.encode() + b"Content-Length: 1000\r\n\r\n")
        waiting = set(range(200))
        deadline = time.monotonic() + 60
        while waiting and time.monotonic() < deadline:
            for number in list(waiting):
                try:
                    slow[number].send(b"x")
                except OSError:
                    waiting.discard(number)  # Cut off.
            answers_others(shared)
        assert not waiting
    with Line(shared) as line:
        line.send(head.encode() + b"Content-Length: 1000\r\n\r\nx")
        problem_of(line.read_answer(), 408, "request_timeout")
        assert closes(line) == b""


def test_a_body_that_comes_steadily_may_take_longer_than_the_timeout(shared: Server) -> None:
    content = bytes(40_000) + b"steady"
    with Line(shared) as line:
        line.send(
            f"PUT /v1/blobs/{checksum(content)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
        )
        for start in range(0, len(content), 5_000):
            line.send(content[start : start + 5_000])
            time.sleep(0.5)
        assert line.read_answer().status_code == 201


@pytest.mark.parametrize("start", [b"G", b"GET /live HTTP/1.1\r\n", b"GET /live HTTP/1.1\r\nA: "])
def test_a_head_that_does_not_end_is_cut_off(shared: Server, start: bytes) -> None:
    with Line(shared) as line:
        line.send(start)
        problem_of(line.read_answer(), 408, "request_timeout")
        assert closes(line) == b""


def test_a_head_that_does_not_end_behind_one_that_was_answered_is_cut_off(shared: Server) -> None:
    whole = f"GET /v1/metadata/{KEY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with Line(shared) as line:
        for sent in (whole, whole + b"GET /live HTTP/1.1\r\nA: "):
            line.send(sent)
            assert line.read_answer().status_code == 200
        problem_of(line.read_answer(), 408, "request_timeout")
        assert closes(line) == b""


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off(shared: Server) -> None:
    with Line(shared) as line:
        line.send(b"GET /live HTTP/1.1\r\nA: ")
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                line.send(b"a")
                time.sleep(0.2)
        assert time.monotonic() < deadline


def test_who_says_nothing_is_cut_off(shared: Server) -> None:
    with Line(shared) as line:
        assert closes(line) == b""


@pytest.mark.parametrize("path", [f"/v1/metadata/{KEY}", "/live"])
def test_a_kept_connection_may_be_silent_for_longer(shared: Server, path: str) -> None:
    with Line(shared) as line:
        for _ in range(2):
            line.ask(path)
            assert line.read_answer().status_code == 200
            time.sleep(4)


SOON = (
    "from registry import cli; from registry.server import process; "
    "process.KEEP_ALIVE_S = 1; cli.main()"
)


@pytest.mark.parametrize("path", [f"/v1/metadata/{KEY}", "/live"])
def test_a_kept_connection_is_closed_in_the_end_however_it_was_answered(
    serve: Callable[..., Server], path: str
) -> None:
    """What is in memory is answered without a timer for each request."""
    server = serve(program=("-c", SOON))
    server.register_copies(OWNER, {KEY: b"{}"})
    assert server.fetch(KEY).status_code == 200
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert connection.recv(4096) == b""


def test_a_reader_that_takes_nothing_is_cut_off(shared: Server) -> None:
    with Line(shared, receive_buffer_bytes=4096) as line:
        line.ask(f"/v1/metadata/{LARGE}")
        status, headers = line.read_head()
        assert (status, int(headers["content-length"])) == (200, len(LARGE_CONTENT))
        time.sleep(8)
        assert len(line.read(len(LARGE_CONTENT))) < len(LARGE_CONTENT)


def test_sixty_four_readers_that_take_nothing_hold_up_nobody(shared: Server) -> None:
    with contextlib.ExitStack() as stack, bounded(shared, 96 * MIB):
        for _ in range(64):
            line = stack.enter_context(Line(shared, receive_buffer_bytes=4096))
            line.ask(f"/v1/metadata/{LARGE}")
            assert line.read_head()[0] == 200
        answers_others(shared)


def test_a_body_that_nobody_wants_is_not_taken_in_for_ever(shared: Server) -> None:
    with Line(shared) as line:
        line.send(
            b"POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: text/plain\r\nContent-Length: 1000000000\r\n\r\n"
        )
        problem_of(line.read_answer(), 415, "unsupported_media_type")
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                line.send(bytes(1000))
                time.sleep(0.05)
        assert time.monotonic() < deadline


def test_more_uploads_at_once_than_the_limit_are_told_to_come_back(shared: Server) -> None:
    content = b"upload"
    head = f"PUT /v1/blobs/{checksum(content)} HTTP/1.1\r\nHost: localhost\r\n".encode()
    length = b"Content-Length: %d\r\n\r\n" % len(content)
    with connected(shared, UPLOADS_MAX) as begun:
        for line in begun:
            line.send(head + b"Expect: 100-continue\r\n" + length)
        for line in begun:
            assert line.read(len(b"HTTP/1.1 100 Continue\r\n\r\n")).startswith(b"HTTP/1.1 100")
        problem_of(shared.upload(b"one more"), 503, "busy")
        for line in begun:
            line.send(content)
        assert {line.read_answer().status_code for line in begun} == {200, 201}
    assert shared.upload(b"one more").status_code == 201


# Pipelining


def test_ten_thousand_pipelined_requests_are_answered_in_order(shared: Server) -> None:
    count = 10_000
    with Line(shared) as line, bounded(shared, 32 * MIB):
        sent = b"".join(
            request(FILE if number % 2 else "/v1/metadata/none/_base/x") for number in range(count)
        )
        sender = threading.Thread(target=line.send, args=(sent,))
        sender.start()
        for number in range(count):
            answer = line.read_answer()
            assert answer.status_code == (200 if number % 2 else 404)
            if number % 1000 == 0:
                answers_others(shared)
        sender.join()


def test_pipelined_changes_are_made_in_order(shared: Server) -> None:
    owners = [Owner("pipelined", "backend", "generate", number) for number in range(300)]
    with Line(shared) as line:
        line.send(
            b"".join(
                request(f"/v1/owners/{owner}", method="DELETE") + request(f"/v1/owners/{owner}")
                for owner in owners
            )
        )
        for owner in owners:
            assert line.read_answer().json()["owner"]["instance_id"] == str(owner.instance_id)
            problem_of(line.read_answer(), 404, "unknown_owner")


def test_pipelined_requests_with_bodies_are_answered_in_order(shared: Server) -> None:
    contents = [b"pipelined %d" % number * 100 for number in range(100)]
    with Line(shared) as line:
        for content in contents:
            head = request(
                f"/v1/blobs/{checksum(content)}", f"Content-Length: {len(content)}", method="PUT"
            )
            line.send(head + content)
        for content in contents:
            assert line.read_answer().json()["checksum"] == checksum(content)


def test_who_pipelines_and_reads_nothing_takes_bounded_memory(shared: Server) -> None:
    with connected(shared, 50) as greedy, bounded(shared, 96 * MIB):
        for line in greedy:
            line.socket.setblocking(False)
        for _ in range(5):
            for line in greedy:
                with contextlib.suppress(OSError):
                    line.socket.send(request("/v1/owners") * 5000)
            answers_others(shared)


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "later"])
def test_nonsense_behind_a_request_is_refused_behind_its_answer(shared: Server, wait: bool) -> None:
    with Line(shared) as line:
        line.send(request("/v1/owners"))
        if wait:
            assert line.read_answer().status_code == 200
            line.send(request("/live"))
        line.send(b"nonsense\r\n\r\n")
        assert line.read_answer().status_code == 200
        problem_of(line.read_answer(), 400, "malformed")
        assert closes(line) == b""


def test_an_upgrade_to_another_protocol_is_not_taken(shared: Server) -> None:
    with Line(shared) as line:
        upgrade = request("/live", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
        line.send(upgrade + request("/live") + upgrade)
        assert [line.read_answer().status_code for _ in range(3)] == [200, 200, 200]


# Heads


POST = request("/v1/registrations", JSON_TYPE, "Transfer-Encoding: chunked", method="POST")
BOMBS = {
    "header line": (b"GET /live HTTP/1.1\r\nA: ", b"a" * 65_536),
    "headers": (b"GET /live HTTP/1.1\r\n", b"a: b\r\n" * 1000),
    "url": (b"GET /", b"a" * 65_536),
    "query": (b"GET /live?", b"a" * 65_536),
    "trailers": (POST + b"0\r\nA: ", b"a" * 65_536),
    "chunk extension": (POST + b"1;", b"a" * 65_536),
    "empty lines": (b"", b"\r\n" * 30_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_endless_head_is_refused(shared: Server, bomb: str) -> None:
    start, part = BOMBS[bomb]
    with connected(shared, 20) as peers, bounded(shared, 32 * MIB):
        for line in peers:
            line.send(start)
        for _ in range(50):
            for line in peers:
                with contextlib.suppress(OSError):
                    line.send(part)
        answers_others(shared)
        for line in peers:
            with contextlib.suppress(ConnectionResetError):
                problem_of(line.read_answer(), 431, "headers_too_large")
                closes(line)


def test_the_refusal_of_a_head_can_be_read(shared: Server) -> None:
    with Line(shared) as line:
        line.send(request("/live", "A: " + "a" * 80_000))
        problem_of(line.read_answer(), 431, "headers_too_large")
        assert closes(line) == b""


def headers(count: int) -> list[str]:
    return [f"A{number}: b" for number in range(count)]


def test_as_many_headers_as_are_allowed_are_taken_and_more_are_not(shared: Server) -> None:
    with Line(shared) as line:
        line.ask("/live", *headers(127))
        assert line.read_answer().status_code == 200
        line.ask("/live", *headers(128))
        problem_of(line.read_answer(), 431, "headers_too_large")


def test_the_largest_head_is_a_setting(serve: Callable[..., Server]) -> None:
    server = serve(max_header_bytes=16 << 10)

    def answer_to(size: int) -> Answer:
        with Line(server) as line:
            line.ask("/live", "A: " + "a" * size)
            return line.read_answer()

    assert answer_to(10_000).status_code == 200
    problem_of(answer_to(30_000), 431, "headers_too_large")


# Memory of what is on its way in


def test_what_does_not_fit_into_a_room_is_refused_and_what_left_makes_room() -> None:
    room = Room(10, Busy)
    with room.share() as first:
        first.take(6)
        with room.share() as second:
            second.take(4)
            with pytest.raises(Busy):
                second.take(1)
            with pytest.raises(Busy):
                first.take(1)
        first.take(4)
    assert room.used_bytes == 0
    with pytest.raises(Busy), room.share() as third:
        third.take(11)
    assert room.used_bytes == 0


def test_writes_of_too_many_rows_are_refused_while_others_wait(database: Engine) -> None:
    writer = Writer(database)

    async def scenario() -> None:
        first = asyncio.create_task(writer.submit(_nothing, 1, rows=WAITING_ROWS_MAX))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await writer.submit(_nothing, 2)
        writer.start()
        assert await first == 1
        assert await writer.submit(_nothing, 3, rows=2 * WAITING_ROWS_MAX) == 3

    asyncio.run(scenario())
    writer.close()


def _nothing(_conn: object, _now: int, items: object) -> list[int]:
    return list(items)  # type: ignore[call-overload,no-any-return]


def test_the_service_raises_its_own_limit_of_open_files(serve: Callable[..., Server]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = serve()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with connected(server, 500):
        assert server.client.get("/live").status_code == 200
