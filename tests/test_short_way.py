"""The short way of a change: which requests go it, and that both ways answer the same."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.config import Settings
from registry.core.records import Owner
from registry.server import tokens
from registry.server.app import create_app
from registry.server.changes import Changing
from registry.server.routes.table import CALLS
from registry.server.short_way import BODY_BYTES
from registry.server.tokens import Role
from registry.store.sqlite.migrate import prepare
from tests.exchanges import Line, journal, key_of, new_slug, request, running, worker
from tests.support import Server, copied, owner_body, wait_for

CONTENT = b'{"model_type": "llama"}'
LONG_WAY = "Trailer: none"
"""A header that changes nothing, but that it is the application that is asked."""

Request = tuple[str, str, bytes | None]
"""Method, target and body."""


def registration(slug: str, **more: Any) -> bytes:
    artifacts = [copied(key_of(slug), CONTENT)]
    return json.dumps({"owner": owner_body(worker(slug)), "artifacts": artifacts, **more}).encode()


def of_owner(slug: str, rest: str = "") -> str:
    return f"/v1/owners/{worker(slug)}{rest}"


def other_content(slug: str) -> bytes:
    owner = owner_body(worker(slug, 2))
    artifacts = [{**copied(key_of(slug), b"other"), "size": 5}]
    return json.dumps({"owner": owner, "artifacts": artifacts}).encode()


REGISTER = "POST", "/v1/registrations"
RENEW_MANY = "POST", "/v1/renewals"

CASES: dict[str, Callable[[str], Request]] = {
    "register": lambda slug: (*REGISTER, registration(slug)),
    "register without a lease": lambda slug: (*REGISTER, registration(slug, lease_ttl_s=None)),
    "a conflict": lambda slug: (*REGISTER, other_content(slug)),
    "an unknown field": lambda slug: (*REGISTER, registration(slug, more=1)),
    "a lease too short": lambda slug: (*REGISTER, registration(slug, lease_ttl_s=0.5)),
    "a bad slug": lambda slug: (
        *REGISTER,
        registration(slug).replace(f'"slug": "{slug}"'.encode(), b'"slug": "NO SLUG"'),
    ),
    "no JSON": lambda slug: (*REGISTER, b"{"),
    "no UTF-8": lambda slug: (*REGISTER, b'{"owner": "\xff"}'),
    "an empty body": lambda slug: (*REGISTER, b""),
    "unregister": lambda slug: ("DELETE", of_owner(slug), None),
    "unregister nobody": lambda slug: ("DELETE", of_owner(f"{slug}-none"), None),
    "unregister what is no owner": lambda slug: ("DELETE", "/v1/owners/a/b/c/d/_base", None),
    "renew": lambda slug: ("POST", of_owner(slug, "/renew"), None),
    "renew nobody": lambda slug: ("POST", "/v1/owners/a/b/c/7/_base/renew", None),
    "renew what is no owner": lambda slug: ("POST", "/v1/owners/a/b/c/-7/_base/renew", None),
    "renew many": lambda slug: (
        *RENEW_MANY,
        json.dumps(
            {"owners": [owner_body(worker(slug)), owner_body(Owner("a", "b", "c", 7))]}
        ).encode(),
    ),
    "renew none": lambda slug: (*RENEW_MANY, b'{"owners": []}'),
    "renew what has no name": lambda slug: (*RENEW_MANY, b'{"owners": [{}]}'),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("short")) as server:
        server.upload(CONTENT)
        server.upload(b"other")
        yield server


def answer_of(server: Server, asked: Request, *headers: str) -> tuple[int, dict[str, str], Any]:
    method, target, body = asked
    sent = [*headers, "X-Request-Id: the-id"]
    if body is not None:
        sent += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    with Line(server) as line:
        line.send(request(target, *sent, method=method) + (body or b""))
        status, found = line.read_head()
        content = line.read(int(found["content-length"]))
        line.ask("/live")  # The connection goes on.
        assert line.read_head()[0] == 200
    del found["date"]
    return status, found, json.loads(content)


def without_names(answer: tuple[int, dict[str, str], Any], slug: str) -> str:
    text = json.dumps(answer).replace(slug, "SLUG")
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    return re.sub(r'"content-length": "\d+"', "", text)


@pytest.mark.parametrize("name", CASES)
def test_both_ways_answer_and_journal_the_same(name: str, service: Server) -> None:
    """S4, S7, S9: status, headers, body, and what the journal says."""
    found = []
    for headers in ([], [LONG_WAY]):
        slug = new_slug()
        asked = CASES[name](slug)
        if "register" not in name or name.startswith("unregister"):
            assert (
                service.register(worker(slug), [copied(key_of(slug), CONTENT)]).status_code == 200
            )
        seen = len(journal(service.place))
        answer = answer_of(service, asked, *headers)
        events = [
            (event["kind"], event["request_id"], event["actor"])
            for event in journal(service.place)[seen:]
        ]
        assert answer[1]["x-request-id"] == "the-id"
        found.append((without_names(answer, slug), events))
    assert found[0] == found[1]


@pytest.mark.parametrize("headers", [[], [LONG_WAY]], ids=["short", "long"])
def test_both_ways_are_counted_and_logged(headers: list[str], tmp_path: Path) -> None:
    with running(tmp_path) as server:
        slug = new_slug()
        server.upload(CONTENT)
        answer_of(server, (*REGISTER, registration(slug)), *headers)
        answer_of(server, ("POST", of_owner(new_slug(), "/renew"), None), *headers)

        def told() -> list[str]:
            return [line for line in server.log.splitlines() if "request_id=the-id" in line]

        wait_for(lambda: len(told()) == 2)
        lines = told()
        assert ["route=/v1/registrations status=200" in line for line in lines] == [True, False]
        assert "method=POST path=/v1/registrations" in lines[0]
        assert "code=lease_gone" in lines[1]
        assert "status=410" in lines[1]
        text = httpx2.get(f"{server.url}/metrics").text
        counted = 'requests_total{method="POST",route="/v1/registrations",status="200"} 1.0'
        assert counted in text
        assert 'request_seconds_count{route="/v1/registrations"} 1.0' in text


@pytest.mark.parametrize("headers", [[], [LONG_WAY]], ids=["short", "long"])
def test_both_ways_admit_the_same(headers: list[str], tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    made: dict[str | None, str] = {
        "ours": tokens.create(file, Role.WRITE, namespaces=["ns"])[1],
        "others": tokens.create(file, Role.WRITE, namespaces=["other"])[1],
        "admin": tokens.create(file, Role.ADMIN)[1],
    }
    expected = {None: 401, "ours": 410, "others": 403, "admin": 410}
    with running(tmp_path, token_file=file) as server:
        for name, status in expected.items():
            sent = [f"Authorization: Bearer {made[name]}"] if name in made else []
            asked = ("POST", "/v1/owners/ns/b/c/7/_base/renew", None)
            assert answer_of(server, asked, *sent, *headers)[0] == status, name
            many = json.dumps({"owners": [owner_body(Owner("ns", "b", "c", 7))]}).encode()
            answered = answer_of(server, (*RENEW_MANY, many), *sent, *headers)[0]
            assert answered == (200 if status == 410 else status), name


PLAIN = [(b"host", b"127.0.0.1")]
JSON = [*PLAIN, (b"content-type", b"application/json"), (b"content-length", b"10")]
OWNER = b"/v1/owners/a/b/c/7/_base"

HEADS: list[tuple[bool, bytes, bytes, list[tuple[bytes, bytes]]]] = [
    (True, b"POST", b"/v1/registrations", JSON),
    (True, b"POST", b"/v1/renewals", JSON),
    (True, b"POST", OWNER + b"/renew", PLAIN),
    (True, b"POST", OWNER + b"/renew", [*PLAIN, (b"content-length", b"0")]),
    (True, b"DELETE", OWNER, PLAIN),
    (False, b"POST", OWNER + b"/drain", PLAIN),
    (False, b"PUT", OWNER + b"/renew", PLAIN),
    (False, b"POST", OWNER + b"/renew", [*PLAIN, (b"content-length", b"1")]),
    (False, b"POST", OWNER + b"/renew?x=1", PLAIN),
    (False, b"POST", b"/v1/owners/a/b//7/_base/renew", PLAIN),
    (False, b"POST", b"/v1/owners/a%2f/b/c/7/_base/renew", PLAIN),
    (False, b"POST", b"/v1/owners/a/b/c/7/_base/renew/", PLAIN),
    (False, b"POST", b"/v1/owners/\xe4/b/c/7/_base/renew", PLAIN),
    (False, b"POST", b"/v1/registrations#x", JSON),
    (False, b"POST", b"/v1/registrations", PLAIN),
    (True, b"POST", b"/v1/registrations", JSON[:2]),
    (False, b"POST", b"/v1/registrations", [*JSON, (b"origin", b"http://127.0.0.1")]),
    (False, b"POST", b"/v1/registrations", [*JSON, (b"sec-fetch-site", b"same-origin")]),
    (False, b"POST", b"/v1/registrations", [*JSON, (b"expect", b"100-continue")]),
    (False, b"POST", b"/v1/registrations", [*JSON, (b"upgrade", b"h2c")]),
    (False, b"POST", b"/v1/registrations", [*JSON, (b"content-type", b"text/plain")]),
    (False, b"POST", b"/v1/registrations", [*JSON[:2], (b"transfer-encoding", b"chunked")]),
    (False, b"POST", b"/v1/registrations", [*JSON[:2], (b"content-length", b"9999999")]),
    (
        False,
        b"POST",
        b"/v1/registrations",
        [*JSON[:2], (b"content-length", b"%d" % (BODY_BYTES + 1))],
    ),
]


def test_what_goes_the_short_way(tmp_path: Path) -> None:
    asyncio.run(_look_at_heads(tmp_path))


async def _look_at_heads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    prepare(url)
    app = create_app(Settings(database_url=url))
    starlette: Any = app._app.app  # type: ignore[attr-defined]
    async with starlette.router.lifespan_context(starlette) as state:
        for is_short, method, target, headers in HEADS:
            taken = app.take(method, target, headers, state)
            assert (taken is not None) is is_short, (method, target, headers)


def test_every_change_that_workers_repeat_is_in_the_table() -> None:
    paths = {(call.method, call.path) for call in CALLS if isinstance(call.handler, Changing)}
    owner = "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}"
    assert paths == {REGISTER, RENEW_MANY, ("POST", f"{owner}/renew"), ("DELETE", owner)}


def test_requests_in_pieces_and_in_a_row_are_answered_in_order(service: Server) -> None:
    slug = new_slug()
    body = registration(slug)
    head = request(
        "/v1/registrations",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        method="POST",
    )
    with Line(service) as line:
        for piece in (head[:9], head[9:], body[:1], body[1:-1], body[-1:]):
            line.send(piece)
        status, headers = line.read_head()
        line.read(int(headers["content-length"]))
        assert status == 200
        renewal = request(of_owner(slug, "/renew"), method="POST")
        leaving = request(of_owner(slug), method="DELETE")
        line.send(renewal + head + body + leaving + renewal + request("/live"))
        found = []
        for _ in range(5):
            status, headers = line.read_head()
            line.read(int(headers["content-length"]))
            found.append(status)
        assert found == [200, 200, 200, 410, 200]


def test_a_change_is_made_for_a_caller_that_hangs_up_or_says_no_more(service: Server) -> None:
    for say_no_more in (True, False):
        slug = new_slug()
        body = registration(slug)
        with Line(service) as line:
            line.send(
                request(
                    "/v1/registrations",
                    "Content-Type: application/json",
                    f"Content-Length: {len(body)}",
                    method="POST",
                )
                + body
            )
            if say_no_more:
                line.socket.shutdown(1)
                assert line.read_head()[0] == 200
        wait_for(lambda slug=slug: bool(service.fetch(key_of(slug)).status_code == 200))  # type: ignore[misc]


def test_half_a_body_changes_nothing(service: Server) -> None:
    slug = new_slug()
    body = registration(slug)
    with Line(service) as line:
        head = request(
            "/v1/registrations",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            method="POST",
        )
        line.send(head + body[:-1])
        line.socket.shutdown(1)
        assert line.read_head()[0] == 400
    assert service.fetch(key_of(slug)).status_code == 404


FAILING = """
import sys
from registry.server import short_way
from registry.__main__ import main
def fail(*_):
    raise MemoryError
short_way.STEP = fail
main()
"""


def test_a_change_that_cannot_be_answered_ends_its_connection(tmp_path: Path) -> None:
    """Whatever fails behind the change: nobody waits for ever, and others are served."""
    program = ("-c", FAILING.replace("STEP", "problem"))
    with Server(tmp_path / "registry.db", program=program) as server, Line(server) as line:
        line.send(request("/v1/owners/a/b/c/7/_base/renew", method="POST"))
        assert line.socket.recv(1) == b""
        wait_for(lambda: "a change could not be answered" in server.log)
        assert httpx2.get(f"{server.url}/live").status_code == 200


def test_a_change_that_cannot_be_counted_is_answered_all_the_same(tmp_path: Path) -> None:
    program = ("-c", FAILING.replace("STEP", "tell_call"))
    with Server(tmp_path / "registry.db", program=program) as server, Line(server) as line:
        for _ in range(2):
            line.send(request("/v1/owners/a/b/c/7/_base/renew", method="POST"))
            status, headers = line.read_head()
            line.read(int(headers["content-length"]))
            assert status == 410
        wait_for(lambda: server.log.count("a change could not be counted") == 2)
