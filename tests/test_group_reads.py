"""A plain GET of a file, where its look-up has to be waited for: no task is needed for it, and what
a client sees is what it would see if there were one.

While a test holds the table of entries locked, look-ups wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import psycopg
import pytest

from registry.store.postgresql.address import conninfo_of
from tests.exchanges import Line, key_of, new_slug, problem_of, request, traceback_of, worker
from tests.places import on_postgresql
from tests.support import Server, checksum, wait_for

pytestmark = on_postgresql

CONTENT = b'{"model_type": "llama"}'
LARGE = b"0123456789abcdef" * (80 << 10)  # More than is answered without a task.
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'entries'::regclass"


@contextmanager
def look_ups_wait(server: Server) -> Iterator[Callable[[], None]]:
    """Nobody can look anything up in the block, until what it is given is called. Where it begins,
    nobody does."""
    conninfo = conninfo_of(server.place.url)
    with psycopg.connect(conninfo) as holder:
        holder.execute("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE")
        yield holder.rollback


def wait_until_asked(server: Server) -> None:
    """Until a look-up has come to the server of the database, and waits there."""
    with psycopg.connect(conninfo_of(server.place.url), autocommit=True) as connection:

        def is_asked() -> bool:
            row = connection.execute(WAITING).fetchone()
            return row is not None and row[0] > 0

        wait_for(is_asked)


def registered(server: Server, *contents: bytes) -> list[str]:
    """The paths of new files, each of which was read."""
    slug = new_slug()
    keys = {key_of(slug, f"{number}.json"): each for number, each in enumerate(contents)}
    assert server.register_copies(worker(slug), keys).status_code == 200
    for key, content in keys.items():
        for _ in range(2):
            assert server.fetch(key).content == content
    return [f"/v1/metadata/{key}" for key in keys]


def reads_from_memory(server: Server) -> float:
    [line] = [
        each
        for each in server.client.get("/metrics").text.splitlines()
        if each.startswith('metadata_registry_reads_total{outcome="memory"}')
    ]
    return float(line.split()[-1])


def test_a_read_is_counted_and_answered_as_any_other(shared_server: Server) -> None:
    [path] = registered(shared_server, CONTENT)
    before = reads_from_memory(shared_server)
    with Line(shared_server) as line:
        found = []
        for headers in ([], ["X-Other: 1"], ["If-Match: *"]):  # The last one takes a task.
            line.ask(path, *headers)
            found.append(line.read_answer())
    assert [each.content for each in found] == [CONTENT] * 3
    for each in found:
        each.headers.pop("date")
    assert found[0].headers == found[1].headers == found[2].headers
    assert reads_from_memory(shared_server) == before + 3


@pytest.mark.parametrize("step", [1, 50, 10_000], ids=["byte for byte", "in parts", "in one piece"])
def test_what_is_asked_behind_a_look_up_is_answered_behind_it_and_in_order(
    shared_server: Server, step: int
) -> None:
    one, two, large = registered(shared_server, CONTENT, b"two", LARGE)
    requests = [
        request(one),
        request("/live"),
        request(two),
        request(one, method="HEAD"),
        request("/v1/metadata/no/such/file"),
        request(one, 'If-None-Match: "x"', "Range: bytes=0-3"),
        request(large),
        request(two),
    ]
    sent = b"".join(requests)
    with look_ups_wait(shared_server) as go_on, Line(shared_server) as line:
        for start in range(0, len(sent), step):
            line.send(sent[start : start + step])
        wait_until_asked(shared_server)
        go_on()
        assert line.read_answer().content == CONTENT
        assert line.read_answer().json()["status"] == "ok"
        assert line.read_answer().content == b"two"
        assert line.read_answer("HEAD").headers["content-length"] == str(len(CONTENT))
        assert line.read_answer().status_code == 404
        assert (answer := line.read_answer()).status_code == 206
        assert answer.content == CONTENT[:4]
        assert line.read_answer().content == LARGE
        assert line.read_answer().content == b"two"


def test_a_body_that_comes_behind_a_look_up_is_that_of_its_own_request(
    shared_server: Server,
) -> None:
    [large] = registered(shared_server, LARGE)
    body = new_slug().encode()
    head = request(f"/v1/blobs/{checksum(body)}", f"Content-Length: {len(body)}", method="PUT")
    with look_ups_wait(shared_server) as go_on, Line(shared_server) as line:
        line.send(request(large) + head + body[:3])
        wait_until_asked(shared_server)
        go_on()
        assert line.read_answer().content == LARGE
        line.send(body[3:])
        assert line.read_answer().status_code == 201


def test_who_pipelines_without_waiting_gets_every_answer_in_order(shared_server: Server) -> None:
    """The stream is cut anywhere, so that at each moment a head has begun."""
    one, two, large = registered(shared_server, CONTENT, b"two", b"3" * 70_000)
    turns = [(one, CONTENT), (two, b"two"), (one, CONTENT), (large, b"3" * 70_000)] * 50
    stream = b"".join(request(path) for path, _ in turns)
    with Line(shared_server) as line:

        def send() -> None:
            for start in range(0, len(stream), 997):
                line.send(stream[start : start + 997])

        sender = threading.Thread(target=send)
        sender.start()
        found = [line.read_answer().content for _ in turns]
        sender.join()
    assert found == [content for _, content in turns]


def test_many_connections_wait_for_the_same_look_up(shared_server: Server) -> None:
    one, two, large = registered(shared_server, CONTENT, b"two", LARGE)
    wanted = [(one, CONTENT), (two, b"two"), (large, LARGE)] * 10
    lines = [Line(shared_server) for _ in wanted]
    try:
        with look_ups_wait(shared_server) as go_on:
            for line, (path, _) in zip(lines, wanted, strict=True):
                line.ask(path)
            wait_until_asked(shared_server)
            go_on()
            for line, (_, content) in zip(lines, wanted, strict=True):
                assert line.read_answer().content == content
    finally:
        for line in lines:
            line.socket.close()


def test_who_leaves_meanwhile_disturbs_nobody(shared_server: Server) -> None:
    [path] = registered(shared_server, CONTENT)
    since = len(shared_server.log)
    with look_ups_wait(shared_server) as go_on, Line(shared_server) as stays:
        for sent in (request(path), request(path) * 3, request(path) + b"GET /live HT"):
            with Line(shared_server) as leaves:
                leaves.send(sent)
        stays.send(request(path) * 2)
        wait_until_asked(shared_server)
        go_on()
        assert [stays.read_answer().content for _ in range(2)] == [CONTENT] * 2
    assert shared_server.client.get(path).content == CONTENT
    assert traceback_of(shared_server, since) == ""


@pytest.mark.parametrize("times", [1, 3])
def test_who_says_that_nothing_more_comes_is_answered_and_then_closed(
    shared_server: Server, times: int
) -> None:
    [path] = registered(shared_server, CONTENT)
    with look_ups_wait(shared_server) as go_on, Line(shared_server) as line:
        line.send(request(path) * times)
        line.socket.shutdown(1)
        wait_until_asked(shared_server)
        go_on()
        for _ in range(times):
            assert line.read_answer().content == CONTENT
        assert line.read_rest() == b""


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_no_request_is_refused_behind_the_answer(
    shared_server: Server, apart: bool
) -> None:
    [path] = registered(shared_server, CONTENT)
    with look_ups_wait(shared_server) as go_on, Line(shared_server) as line:
        line.send(request(path) + (b"" if apart else b"NONSENSE\r\n\r\n"))
        wait_until_asked(shared_server)
        if apart:
            line.send(b"NONSENSE\r\n\r\n")
        go_on()
        assert line.read_answer().content == CONTENT
        problem_of(line.read_answer(), 400, "malformed")
        assert line.read_rest() == b""


def test_a_file_that_was_removed_meanwhile_is_not_served(shared_server: Server) -> None:
    slug = new_slug()
    key = key_of(slug)
    assert shared_server.register_copies(worker(slug), {key: CONTENT}).status_code == 200
    for _ in range(2):
        assert shared_server.fetch(key).status_code == 200
    assert shared_server.unregister(worker(slug)).json()["released"] == 1
    with Line(shared_server) as line:
        line.send(request(f"/v1/metadata/{key}") * 2)
        for _ in range(2):
            problem_of(line.read_answer(), 404, "not_registered")
    assert shared_server.register_copies(worker(slug), {key: b"another"}).status_code == 200
    assert shared_server.fetch(key).content == b"another"


def test_a_request_to_the_name_of_another_is_refused(shared_server: Server) -> None:
    [path] = registered(shared_server, CONTENT)
    answer = shared_server.client.get(path, headers={"Host": "evil.example"})
    problem_of(answer, 403, "forbidden")


def test_a_look_up_that_takes_too_long_is_refused_once(shared_server: Server) -> None:
    """The look-up is not repeated, or the caller would wait for twice as long."""
    [path] = registered(shared_server, CONTENT)
    with look_ups_wait(shared_server), Line(shared_server) as line:
        began = time.monotonic()
        line.send(request(path) + request("/live"))
        answer = line.read_answer()
        assert time.monotonic() - began < 5
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert line.read_answer().json()["status"] == "ok"
    assert shared_server.client.get(path).content == CONTENT


def test_who_stops_the_service_lets_it_answer(serve: Callable[..., Server]) -> None:
    server = serve()
    [path] = registered(server, CONTENT)
    with look_ups_wait(server) as go_on, Line(server) as line:
        line.ask(path)
        wait_until_asked(server)
        server.process.terminate()
        wait_for(lambda: refuses_connections(server))
        go_on()
        answer = line.read_answer()
        assert (answer.content, answer.headers["connection"]) == (CONTENT, "close")
        assert line.read_rest() == b""
    assert server.stop() == 0


def refuses_connections(server: Server) -> bool:
    try:
        httpx2.get(server.url + "/live", timeout=5)
    except httpx2.TransportError:
        return True
    return False
