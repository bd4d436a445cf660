"""For whom a request is: what a Host may be, and whose requests a service on loopback answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.core.records import ArtifactKey, Owner
from registry.errors import SettingsError
from registry.server.hosts import Hosts, address_of, find_authority, is_loopback
from registry.server.routes.table import CALLS
from tests.exchanges import Answer, Line, problem_of, running
from tests.support import Server, checksum
from tests.test_access import refusal_of

OWNER = Owner("hosts", "backend", "generate", 1)
KEY = ArtifactKey("hosts", "_base", "config.json")
CONTENT = b'{"read": "by nobody else"}'
VALUES = {
    "namespace": OWNER.namespace,
    "component": OWNER.component,
    "endpoint": OWNER.endpoint,
    "instance_id": "1",
    "slug": KEY.slug,
    "suffix": "_base",
    "filename": KEY.filename,
    "checksum": checksum(CONTENT),
}
FOREIGN = ["rebound.example", "192.0.2.1:8090", "127.0.0.1.rebound.example", "0.0.0.0", "[::]"]
OWN = [
    *("localhost", "LOCALHOST:1", "localhost.", "registry.localhost:80", "127.0.0.1:0"),
    *("127.1.2.3", "[::1]:8090", "[::ffff:127.0.0.1]", "127.0.0.1: \t"),
]
MALFORMED = [
    *("", " ", ":80", "a b", "127.0.0.1/evil", "127.0.0.1?evil", "127.0.0.1#evil", "..", "."),
    *("evil@127.0.0.1", "user:word@127.0.0.1", "127.0.0.1\\evil", "127.0.0.1:x", "127.0.0.1:80:80"),
    *("127.0.0.1:99999", "127.0.0.1:-1", "[::1", "::1", "[::1]x", "[127.0.0.1]", "[v1.x]", "[]"),
    *("127.0.0.1, 127.0.0.1", "localhost;x", "%31", "http://127.0.0.1", "\xe9", "'localhost'"),
    "a" * 256,
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service on loopback, without tokens."""
    with running(tmp_path_factory.mktemp("hosts")) as server:
        register(server)
        yield server


def register(server: Server) -> None:
    assert server.register_copies(OWNER, {KEY: CONTENT}).status_code == 200
    for _ in range(3):  # From memory, in the end.
        assert server.fetch(KEY).content == CONTENT


def targets() -> list[tuple[str, str]]:
    """Every call of the service, and addresses that there are none at."""
    calls = [(call.method, call.path.format(**VALUES)) for call in CALLS]
    return [*calls, ("GET", "/nothing"), ("POST", "/live"), ("OPTIONS", "*"), ("PATCH", "/v1/x")]


def answer_to(
    server: Server, method: str, target: str, *lines: str, version: str = "1.1"
) -> Answer:
    """The answer to a request with just these headers."""
    with Line(server) as line:
        head = [f"{method} {target} HTTP/{version}", *lines, "Connection: close", "", ""]
        line.send("\r\n".join(head).encode("latin-1"))
        answer = line.read_answer(method)
        assert line.read_rest() == b""
        return answer


def check_refused(method: str, answer: Answer, status: int, code: str) -> None:
    assert answer.status_code == status, answer
    assert answer.headers["x-request-id"]
    assert "etag" not in answer.headers
    if method == "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
    else:
        problem_of(answer, status, code)


@pytest.mark.parametrize("host", FOREIGN)
def test_no_route_answers_what_was_sent_to_anothers_name(shared: Server, host: str) -> None:
    for method, target in targets():
        answer = answer_to(shared, method, target, f"Host: {host}")
        check_refused(method, answer, 403, "forbidden")
    assert shared.fetch(KEY).content == CONTENT


def test_a_foreign_host_is_refused_behind_an_own_one_on_the_same_connection(shared: Server) -> None:
    with Line(shared) as line:
        for _ in range(2):
            for host, status in (("localhost", 200), ("rebound.example", 403), ("localhost", 200)):
                line.send(f"GET /v1/metadata/{KEY} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert line.read_answer().status_code == status


@pytest.mark.parametrize("host", OWN)
def test_every_name_of_loopback_is_answered(shared: Server, host: str) -> None:
    for method, target in targets():
        assert answer_to(shared, method, target, f"Host: {host}").status_code not in (400, 403)
    register(shared)


@pytest.mark.parametrize("host", MALFORMED)
def test_what_is_no_host_is_malformed_on_every_route(shared: Server, host: str) -> None:
    for method, target in targets():
        check_refused(method, answer_to(shared, method, target, f"Host: {host}"), 400, "malformed")


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        ([], "1.1"),
        (["Host: localhost", "Host: localhost"], "1.1"),
        (["Host: localhost", "Host: rebound.example"], "1.1"),
        (["Host: localhost", "Host:"], "1.0"),
        (["Host: localhost"], "2.0"),
        (["Host: localhost"], "0.9"),
    ],
)
def test_a_request_says_once_for_whom_it_is(shared: Server, lines: list[str], version: str) -> None:
    for method, target in targets():
        check_refused(
            method, answer_to(shared, method, target, *lines, version=version), 400, "malformed"
        )


def test_the_first_http_had_no_host(shared: Server) -> None:
    answer = answer_to(shared, "GET", f"/v1/metadata/{KEY}", version="1.0")
    assert answer.content == CONTENT


WHOLE_URLS = [
    ("http://localhost:{port}/{path}", "Host: localhost", 200),
    ("HTTP://127.0.0.1:{port}/{path}", "Host: localhost", 200),
    ("https://[::1]:{port}/{path}", "Host: [::1]:1", 200),
    ("http://rebound.example/{path}", "Host: localhost", 403),
    ("http://localhost:{port}/{path}", "Host: rebound.example", 403),
    ("http://localhost:{port}/{path}", "", 200),
    ("http://rebound.example/{path}", "", 403),
    # Others listen at other ports of this machine.
    ("http://localhost/{path}", "Host: localhost", 403),
    ("http://127.0.0.1:1/{path}", "Host: localhost", 403),
    ("https://localhost/{path}", "", 403),
    ("http://localhost:{port}/{path}", "Host: a b", 400),
    ("http://localhost:{port}/{path}", "Host: localhost\r\nHost: localhost", 400),
    ("http://evil@localhost/{path}", "Host: localhost", 400),
    ("ftp://localhost/{path}", "Host: localhost", 400),
    ("http:///{path}", "Host: localhost", 400),
    ("http://localhost:{port}", "Host: localhost", 200),
    ("http://localhost:{port}?x=1", "Host: localhost", 422),
    ("http://localhost:{port}/{path}?x=1", "Host: localhost", 422),
]


@pytest.mark.parametrize(("url", "line", "status"), WHOLE_URLS)
def test_a_target_that_is_a_whole_url_says_for_whom_it_is_as_well(
    shared: Server, url: str, line: str, status: int
) -> None:
    target = url.format(path=f"v1/metadata/{KEY}", port=shared.address[1])
    lines = [line] if line else []
    assert answer_to(shared, "GET", target, *lines).status_code == status


# Which names are own is decided when the service starts


def test_names_that_are_allowed_are_taken_beside_loopback_and_no_others(
    serve: Callable[..., Server],
) -> None:
    server = serve(allowed_host=["Registry.example", "2001:db8::1"])
    register(server)
    path = f"/v1/metadata/{KEY}"
    for host in ("registry.example", "REGISTRY.example.:443", "[2001:db8::1]:80", "127.0.0.1"):
        assert answer_to(server, "GET", path, f"Host: {host}").content == CONTENT
        assert answer_to(server, "GET", "/health", f"Host: {host}").status_code == 200
    for host in ("example", "x.registry.example", "registry.example.evil", "[2001:db8::2]"):
        check_refused("GET", answer_to(server, "GET", path, f"Host: {host}"), 403, "forbidden")


@pytest.mark.parametrize("flags", [{"insecure": True}, {"insecure": True, "host": "0.0.0.0"}])
def test_whoever_says_insecure_is_reached_under_any_name(
    serve: Callable[..., Server], flags: dict[str, object]
) -> None:
    server = serve(**flags)
    for host in FOREIGN:
        assert answer_to(server, "GET", "/v1/owners", f"Host: {host}").status_code == 200
    check_refused("GET", answer_to(server, "GET", "/v1/owners", "Host: a b"), 400, "malformed")


def test_names_that_are_allowed_are_the_only_ones_wherever_it_listens(
    serve: Callable[..., Server],
) -> None:
    server = serve(insecure=True, allowed_host="registry.example")
    assert answer_to(server, "GET", "/live", "Host: registry.example").status_code == 200
    assert answer_to(server, "GET", "/live", "Host: rebound.example").status_code == 403


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"Example.COM:80", ("example.com", 80)),
        (b" a-b_c.d. ", ("a-b_c.d", None)),
        (b"[::1]:", ("::1", None)),
        (b"[fe80::1%eth0]", ("fe80::1%eth0", None)),
        (b"[::1%]", None),
        (b"[1:2]", None),
        (b"a:65536", None),
        (b"a\n", None),
        (b"a\x00", None),
    ],
)
def test_a_host_header_is_a_name_and_perhaps_a_port(
    value: bytes, found: tuple[str, int | None] | None
) -> None:
    assert find_authority(value) == found


@pytest.mark.parametrize("name", ["a:80", "a b", "http://a", "", "[::1]:80", "*", ".a@b"])
def test_an_allowed_host_is_a_name_without_a_port(name: str) -> None:
    with pytest.raises(SettingsError, match="allowed_hosts"):
        Hosts("127.0.0.1", [name], checks=True)


def test_hosts_are_not_remembered_without_end() -> None:
    hosts = Hosts("127.0.0.1", [], checks=True)
    assert all(hosts.takes(b"127.0.%d.%d" % (n // 250, n % 250)) for n in range(10_000))
    assert len(hosts._known) < 100


# The address to listen on


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("[::ffff:7f00:1]", "::ffff:7f00:1"),
    ],
)
def test_loopback_is_known_however_it_is_written(setting: str, address: str) -> None:
    assert address_of(setting) == address
    assert is_loopback(address)


@pytest.mark.parametrize(
    "setting", ["::ffff:192.0.2.1", "[2001:db8::1]", "0.0.0.0", "host.example"]
)
def test_other_addresses_are_taken_for_what_they_are(setting: str) -> None:
    assert not is_loopback(address_of(setting))


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("127.0.0.1:8090", "--host 127.0.0.1 --port 8090"),
        ("localhost:80", "--host localhost --port 80"),
        ("[::1]:9", "--host ::1 --port 9"),
        ("http://127.0.0.1", "127.0.0.1, ::1 or localhost"),
        ("[127.0.0.1]", "127.0.0.1, ::1 or localhost"),
        ("[::1", "127.0.0.1, ::1 or localhost"),
        ("999.1.1.1", "127.0.0.1, ::1 or localhost"),
        ("127.0.0", "127.0.0.1, ::1 or localhost"),
        ("::1::2", "127.0.0.1, ::1 or localhost"),
        ("a b", "127.0.0.1, ::1 or localhost"),
        ("x/y", "127.0.0.1, ::1 or localhost"),
    ],
)
def test_what_is_no_address_is_called_that(setting: str, hint: str) -> None:
    with pytest.raises(SettingsError, match="not an address") as refused:
        address_of(setting)
    assert hint in str(refused.value)


def test_the_service_says_so_before_it_does_anything(tmp_path: Path) -> None:
    said = refusal_of(tmp_path, "--host", "127.0.0.1:8090")
    assert "not an address" in said
    assert "others can reach" not in said
    assert "allowed_hosts" in refusal_of(tmp_path, "--allowed-host", "a:80")


@pytest.mark.parametrize("host", ["[::1]", "::ffff:127.0.0.1"])
def test_it_listens_on_loopback_however_that_is_written(
    serve: Callable[..., Server], host: str
) -> None:
    server = serve(host=host)
    assert server.client.get("/live").status_code == 200
    assert server.client.delete(f"/v1/owners/{OWNER}").status_code == 200
