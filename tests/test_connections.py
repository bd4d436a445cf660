"""What a connection does by itself: answers that it writes, times, trailers, and its end."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import httptools
import pytest

from registry import errors
from registry.core.records import ArtifactKey, Owner
from registry.server import tokens
from registry.server.http import request_id_for
from registry.server.http1.refusals import cause_of
from registry.server.tokens import Role
from tests.exchanges import Answer, Line, problem_of, request, running
from tests.support import Server, checksum, owner_body, wait_for

KEY = ArtifactKey("model", "_base", "config.json")
LARGE = ArtifactKey("model", "_base", "large.bin")
CONTENT = b'{"a": "small file"}'
LARGE_CONTENT = bytes(range(256)) * (16 << 10)  # 4 MiB
OWNER = Owner("connections", "backend", "generate", 1)
TIMEOUT_S = 3
HOST = "Host: localhost\r\n"
JSON_TYPE = "Content-Type: application/json"
CHUNKED = f"{HOST}Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("connections")
    with running(folder, body_timeout_s=TIMEOUT_S) as server:
        contents = {KEY: CONTENT, LARGE: LARGE_CONTENT}
        assert server.register_copies(OWNER, contents).status_code == 200
        for _ in range(3):
            assert server.fetch(KEY).content == CONTENT
        yield server


# Wishes for another protocol, which is not spoken here (RFC 9110, 7.8)

UPGRADES = {
    "another protocol": "Upgrade: x\r\nConnection: Upgrade\r\n",
    "HTTP/2": "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
    "WebSocket": "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
}


def framed(body: bytes, how: str) -> bytes:
    if how == "length":
        return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    parts = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (body[:3], body[3:]))
    return b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\nA: trailer\r\n\r\n"


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "byte for byte"])
@pytest.mark.parametrize("how", ["length", "chunks"])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_the_body_of_who_asks_for_another_protocol_is_its_body(
    shared: Server, upgrade: str, how: str, apart: bool
) -> None:
    """And not the next request."""
    body = f"DELETE /v1/owners/{OWNER} HTTP/1.1\r\n{HOST}\r\n".encode()
    head = f"PUT /v1/blobs/{checksum(body)} HTTP/1.1\r\n{HOST}{UPGRADES[upgrade]}".encode()
    sent = head + framed(body, how) + request("/live")
    with Line(shared) as line:
        for start in range(len(sent)) if apart else [None]:
            line.send(sent if start is None else sent[start : start + 1])
        assert line.read_answer().status_code in (200, 201)
        assert line.read_answer().json()["status"] == "ok"
        line.ask("/live", *UPGRADES[upgrade].strip().split("\r\n"))
        assert line.read_answer().status_code == 200
        line.ask(f"/v1/metadata/{KEY}")
        assert line.read_answer().content == CONTENT


# Answers that no application gives

H = f"GET /live HTTP/1.1\r\n{HOST}"
REFUSED = {
    "nonsense": ("NONSENSE\r\n\r\n", 400, "malformed"),
    "no host": ("GET /live HTTP/1.1\r\n\r\n", 400, "malformed"),
    "header line": (f"{H}A: {'a' * 80_000}\r\n\r\n", 431, "headers_too_large"),
    "headers": (H + "a: b\r\n" * 200 + "\r\n", 431, "headers_too_large"),
    "chunk": (f"POST /v1/registrations HTTP/1.1\r\n{CHUNKED}\r\nx\r\n", 400, "malformed"),
    "half a head": (f"{H}A: b", 408, "request_timeout"),
    "half a body": (
        f"PUT /v1/blobs/{checksum(b'x')} HTTP/1.1\r\n{HOST}Content-Length: 9\r\n\r\nx",
        408,
        "request_timeout",
    ),
}


def lines_with(server: Server, request_id: object) -> str:
    """What the log says under an id, once it says something."""
    wait_for(lambda: f"request_id={request_id}\n" in server.log)
    return "\n".join(line for line in server.log.splitlines() if f"={request_id}" in line)


def check_whole(answer: Answer, status: int, code: str, line: Line) -> dict[str, object]:
    """An answer that the connection wrote itself lacks nothing that others have."""
    problem = problem_of(answer, status, code)
    assert re.fullmatch("[0-9a-f]{20}|mine", answer.headers["x-request-id"])
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 60
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert line.read_rest() == b""
    return problem


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_connection_answers_is_a_whole_answer(shared: Server, name: str) -> None:
    sent, status, code = REFUSED[name]
    with Line(shared) as line:
        line.send(sent.encode())
        phrase = {400: "Bad Request", 408: "Request Timeout"}.get(
            status, "Request Header Fields Too Large"
        )
        first = line.socket.recv(1 << 16, socket.MSG_PEEK).split(b"\r\n")[0]
        assert first == f"HTTP/1.1 {status} {phrase}".encode()
        problem = check_whole(line.read_answer(), status, code, line)
    assert f"refused status={status} code={code}" in lines_with(shared, problem["request_id"])


def test_one_connection_too_many_is_answered_whole(serve: Callable[..., Server]) -> None:
    server = serve(max_connections=2)
    server.client.close()
    with Line(server) as first, Line(server) as second:
        for line in (first, second):
            line.ask("/live")
            line.read_answer()
        with Line(server) as third:
            answer = third.read_answer()
            assert answer.headers["retry-after"] == "1"
            check_whole(answer, 503, "busy", third)


@pytest.mark.parametrize("end", ["A: " + "a" * 80_000, "Host: again"])
def test_the_callers_id_is_in_what_the_connection_answers(shared: Server, end: str) -> None:
    with Line(shared) as line:
        line.send(f"{H}X-Request-Id: mine\r\n{end}\r\n\r\n".encode())
        answer = line.read_answer()
        assert answer.headers["x-request-id"] == "mine"


def test_the_id_of_one_request_is_not_in_the_answer_to_the_next(shared: Server) -> None:
    for target in (f"/v1/metadata/{KEY}", "/live"):
        with Line(shared) as line:
            line.ask(target, "X-Request-Id: mine")
            assert line.read_answer().status_code == 200
            line.send(b"nonsense\r\n\r\n")
            assert line.read_answer().headers["x-request-id"] != "mine"


def test_a_refusal_of_head_has_no_body(shared: Server) -> None:
    with Line(shared) as line:
        line.send(f"HEAD /v1/metadata/{KEY} HTTP/1.1\r\n\r\n".encode())
        status, headers = line.read_head()
        assert (status, line.read_rest()) == (400, b"")
        assert int(headers["content-length"]) > 0


def test_refusals_are_counted(shared: Server) -> None:
    with Line(shared) as line:
        line.send(b"nonsense\r\n\r\n")
        line.read_answer()
    pattern = r'_requests_total\{method="other",route="unmatched",status="400"\} (\d+)'
    wait_for(lambda: re.search(pattern, shared.client.get("/metrics").text) is not None)


CAUSES: list[tuple[BaseException | None, str]] = [
    (None, "malformed"),
    (httptools.HttpParserInvalidURLError("x"), "malformed"),
    (errors.HeadersTooLarge(), "headers_too_large"),
    (MemoryError(), "busy"),
    (RecursionError(), "busy"),
    (RuntimeError("can't start new thread"), "busy"),
    (KeyError("a fault of ours"), "internal"),
]


@pytest.mark.parametrize(("cause", "code"), CAUSES, ids=repr)
def test_what_fails_at_a_head_is_not_put_on_the_caller(
    cause: BaseException | None, code: str
) -> None:
    error = httptools.HttpParserError("the parser gave up")
    error.__context__ = cause
    assert cause_of(error).code == code
    assert cause_of(MemoryError()).code == "busy"


# Errors of files

FILE_ERRORS = {
    "not registered": ("GET", "/v1/metadata/model/_base/none", [], 404),
    "no key": ("GET", "/v1/metadata/MODEL/_base/none", [], 404),
    "a query": ("GET", f"/v1/metadata/{KEY}?v=1", [], 422),
    "a method": ("POST", f"/v1/metadata/{KEY}", [], 405),
    "a condition": ("GET", f"/v1/metadata/{KEY}", ['If-Match: "x"'], 412),
    "a range": ("GET", f"/v1/metadata/{KEY}", ["Range: bytes=900-"], 416),
    "head": ("HEAD", "/v1/metadata/model/_base/none", [], 404),
    "a foreign host": ("GET", "http://rebound.example/v1/metadata/a/_base/b", [], 403),
}


@pytest.mark.parametrize("name", FILE_ERRORS)
def test_the_error_of_a_file_and_its_line_in_the_log_carry_the_request_id(
    shared: Server, name: str
) -> None:
    method, target, lines, status = FILE_ERRORS[name]
    for given in (f"mine-{name.replace(' ', '-')}", None):
        more = [] if given is None else [f"X-Request-Id: {given}"]
        with Line(shared) as line:
            line.ask(target, *lines, *more, method=method)
            answer = line.read_answer(method)
        assert answer.status_code == status
        request_id = answer.headers["x-request-id"]
        assert request_id == (given or request_id)
        if method != "HEAD":
            assert answer.json()["request_id"] == request_id
        assert f"status={status}" in lines_with(shared, request_id)


# Trailers


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    folder = tmp_path_factory.mktemp("guarded")
    _, token = tokens.create(folder / "tokens.toml", Role.ADMIN, name="admin")
    with running(folder, token_file=folder / "tokens.toml") as server:
        yield server, token


BODY = json.dumps({"owner": owner_body(OWNER), "artifacts": []})
TRAILERS = {
    "a token, on a routed call": ("DELETE /v1/owners/n/c/e/1/_base", "", "", "AUTH", 401),
    "a token, on a call of a fixed path": ("POST /v1/registrations", "", BODY, "AUTH", 401),
    "a content type": (
        "POST /v1/registrations",
        "AUTH",
        BODY,
        "Content-Type: application/json",
        415,
    ),
    "another site": ("DELETE /v1/owners/n/c/e/1/_base", "AUTH", "", "Origin: http://evil", 200),
    "a site": ("DELETE /v1/owners/n/c/e/1/_base", "AUTH", "", "Sec-Fetch-Site: cross-site", 200),
    "a host": ("DELETE /v1/owners/n/c/e/1/_base", "AUTH", "", "Host: evil", 200),
    "a condition": (f"GET /v1/metadata/{KEY}", "AUTH", "", "Range: bytes=0-1", 404),
    "a request id": ("GET /live", "", "", "X-Request-Id: trailed", 200),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
@pytest.mark.parametrize("name", TRAILERS)
def test_a_trailer_is_no_header(guarded: tuple[Server, str], name: str, apart: bool) -> None:
    server, token = guarded
    call, header, body, trailer, status = TRAILERS[name]
    auth = f"Authorization: Bearer {token}"
    head = f"{call} HTTP/1.1\r\n{CHUNKED}" + (f"{auth}\r\n" if header == "AUTH" else "") + "\r\n"
    chunks = f"{len(body):x}\r\n{body}\r\n" if body else ""
    rest = f"{chunks}0\r\n{auth if trailer == 'AUTH' else trailer}\r\n\r\n"
    with Line(server) as line:
        line.send(head.encode())
        if apart:
            time.sleep(0.05)  # Either way it is the same; this only makes both likely.
        line.send(rest.encode() if apart else rest.encode() + request("/live"))
        answer = line.read_answer()
        assert answer.status_code == status
        assert answer.headers["x-request-id"] != "trailed"
        if not apart:
            assert line.read_answer().status_code == 200


# Times


def test_the_times_of_requests_do_not_add_up_on_a_slow_link(shared: Server) -> None:
    whole = request(f"/v1/metadata/{KEY}")
    with Line(shared) as line:
        until = time.monotonic() + 2.5 * TIMEOUT_S
        while time.monotonic() < until:
            for start in range(0, len(whole), 20):
                line.send(whole[start : start + 20])
                time.sleep(0.6 * 20 / len(whole))
            assert line.read_answer().content == CONTENT


def test_the_times_of_bodies_do_not_add_up(shared: Server) -> None:
    content = b"slowly, but it comes"
    head = request(
        f"/v1/blobs/{checksum(content)}", f"Content-Length: {len(content)}", method="PUT"
    )
    with Line(shared) as line:
        until = time.monotonic() + 2.5 * TIMEOUT_S
        while time.monotonic() < until:
            line.send(head)
            for start in range(0, len(content), 5):
                time.sleep(0.15)
                line.send(content[start : start + 5])
            assert line.read_answer().status_code in (200, 201)


@pytest.mark.parametrize("path", [f"/v1/metadata/{KEY}", "/live"])
def test_who_pipelines_without_a_break_is_not_cut_off(shared: Server, path: str) -> None:
    """The stream of requests is cut anywhere, so that at each moment a head has begun."""
    stop = threading.Event()
    whole = request(path)
    with Line(shared) as line:

        def send() -> None:
            stream, at = whole * 50, 0
            while not stop.is_set():
                line.send(stream[at : at + 997])
                at = (at + 997) % len(whole)
            line.send(stream[at : len(whole)] if at else b"")

        sender = threading.Thread(target=send)
        until = time.monotonic() + 2.5 * TIMEOUT_S
        sender.start()
        try:
            while time.monotonic() < until:
                assert line.read_answer().status_code == 200
        finally:
            stop.set()
            while sender.is_alive():
                line.socket.recv(1 << 20)


def test_a_reader_that_takes_some_of_each_answer_is_not_cut_off(shared: Server) -> None:
    with Line(shared, receive_buffer_bytes=4096) as line:
        line.ask(f"/v1/metadata/{LARGE}")
        status, headers = line.read_head()
        assert (status, int(headers["content-length"])) == (200, len(LARGE_CONTENT))
        taken, until = 0, time.monotonic() + 2.5 * TIMEOUT_S
        while time.monotonic() < until:
            taken += len(line.read(100_000))
            time.sleep(0.2)
        assert taken + len(line.read(len(LARGE_CONTENT) - taken)) == len(LARGE_CONTENT)


# Connections that are half closed

HALF_CLOSED = {
    "a file": [request(f"/v1/metadata/{KEY}")],
    "a large file": [request(f"/v1/metadata/{LARGE}")],
    "a file that is not there": [request("/v1/metadata/none/_base/x")],
    "a route": [request("/v1/owners")],
    "a fixed path": [request("/health")],
    "a change": [request("/v1/owners/n/c/e/1/_base", method="DELETE")],
    "a body": [request(f"/v1/blobs/{checksum(b'x')}", "Content-Length: 1", method="PUT") + b"x"],
    "many": [request("/v1/owners"), request(f"/v1/metadata/{KEY}"), request("/live")] * 30,
    "many files": [request(f"/v1/metadata/{KEY}")] * 1000,
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
@pytest.mark.parametrize("name", HALF_CLOSED)
def test_whoever_has_shut_the_sending_side_is_answered(
    shared: Server, name: str, apart: bool
) -> None:
    requests = HALF_CLOSED[name]
    with Line(shared) as line:
        line.send(b"".join(requests))
        if apart:
            time.sleep(0.05)
        line.socket.shutdown(socket.SHUT_WR)
        for _ in requests:
            answer = line.read_answer()
            assert answer.status_code in (200, 201, 404)
            assert answer.complete
        assert line.read_rest() == b""


@pytest.mark.parametrize(
    "end", ["GET /li", f"{H}A", f"PUT /v1/blobs/{checksum(b'xy')} HTTP/1.1\r\n{CHUNKED}\r\n1\r\nx"]
)
@pytest.mark.parametrize("before", ["", "/live", f"/v1/metadata/{KEY}"])
def test_what_was_cut_off_by_its_sender_is_told_so(shared: Server, before: str, end: str) -> None:
    with Line(shared) as line:
        line.send((request(before) if before else b"") + end.encode())
        line.socket.shutdown(socket.SHUT_WR)
        if before:
            assert line.read_answer().status_code == 200
        check_whole(line.read_answer(), 400, "malformed", line)


def test_a_silent_connection_that_is_shut_is_closed(shared: Server) -> None:
    for asks in (False, True):
        with Line(shared) as line:
            if asks:
                line.ask("/live")
                line.read_answer()
            line.socket.shutdown(socket.SHUT_WR)
            assert line.read_rest() == b""


def test_ids_that_are_made_up_come_in_the_order_of_time() -> None:
    """What is journalled together is together in the index of request ids."""
    before = time.time_ns() // 1_000_000
    ids = [request_id_for([]) for _ in range(1000)]
    times = [int(each[:11], 16) for each in ids]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
