"""What a service answers is believed only when a registry could have answered it; anything else is
an error of ours, and nothing is done with it."""

from __future__ import annotations

import copy
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.cli import main
from registry.client import RegistryClient, Resolver
from registry.client.cache import BlobCache
from registry.client.resolver import FetchLimits
from registry.client.retries import RetryPolicy
from registry.client.wanted_files import files_of
from registry.core.events import EventOrder
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.discovery.cards import Card
from registry.errors import Invalid, RegistryError, ServiceUnreachable
from tests.peers import Peer, answering, json_answer, read_request

ONCE = RetryPolicy(attempts=1)
OWNER = Owner("dynamo", "backend", "generate", 7)
KEY = ArtifactKey("tiny", "_base", "config.json")
SUM = checksum_of(b"x")
AT = "2026-01-31T12:00:00.000Z"

BODY = {
    "namespace": "dynamo",
    "component": "backend",
    "endpoint": "generate",
    "instance_id": "7",
    "lora_slug": None,
}
LEASE = {"ttl_s": 60, "expires_at": AT}
NAMES = {"slug": "tiny", "suffix": "_base", "filename": "config.json"}
ENTRY = NAMES | {
    "checksum": SUM,
    "size": 1,
    "generation": 1,
    "created_at": AT,
    "updated_at": AT,
    "holders": 1,
    "url": "/v1/metadata/tiny/_base/config.json",
    "id": 1,
}
RECORD = {
    "owner": BODY,
    "state": "active",
    "worker_name": "w-0",
    "lease": LEASE,
    "registered_at": AT,
    "renewed_at": AT,
    "drain_deadline_at": None,
    "ended_at": None,
    "end_reason": None,
    "refs": 1,
}
EVENT = NAMES | {
    "id": 1,
    "at": AT,
    "kind": "registered",
    "owner": BODY,
    "checksum": SUM,
    "previous_checksum": SUM,
    "reason": None,
    "actor": None,
    "request_id": None,
}
HOLDER = {
    "owner": BODY,
    "state": "active",
    "lease_expires_at": AT,
    "source": "in_place",
    "path": "/models/config.json",
    "status": "ok",
    "since": AT,
}
MODEL = {
    "slug": "tiny",
    "suffix": "_base",
    "files": 1,
    "bytes": 1,
    "holders": 1,
    "serveable": True,
}
REGISTERED = NAMES | {"checksum": SUM, "size": 1, "url": "/", "outcome": "created"}

Use = Callable[[RegistryClient], object]

ANSWERS: dict[str, tuple[Use, Any]] = {
    "renew": (lambda c: c.renew(OWNER), {"owner": BODY, "lease": LEASE, "refs": 1}),
    "register": (
        lambda c: c.register(OWNER, [], lease_ttl_s=60),
        {"owner": BODY, "lease": LEASE, "artifacts": [REGISTERED]},
    ),
    "unregister": (
        lambda c: c.unregister_for_owner(OWNER),
        {"owner": BODY, "released": 1, "removed": [NAMES], "kept": [NAMES | {"holders": 1}]},
    ),
    "drain": (
        lambda c: c.drain(OWNER),
        {"owner": BODY, "state": "draining", "drain_deadline_at": AT},
    ),
    "owner": (
        lambda c: c.owner(OWNER),
        RECORD | {"entries": [NAMES | {"checksum": SUM, "size": 1}]},
    ),
    "owners": (lambda c: list(c.owners()), {"owners": [RECORD], "next": None}),
    "artifacts": (lambda c: list(c.artifacts()), {"artifacts": [ENTRY], "next": None}),
    "models": (lambda c: list(c.models()), {"models": [MODEL], "next": None}),
    "events": (lambda c: c.events(), {"events": [EVENT], "next": "5", "last": "9"}),
    "explain": (
        lambda c: c.explain(KEY),
        {"entry": ENTRY, "holders": [HOLDER], "events": [EVENT]},
    ),
}
"""Every answer that is read, as a registry gives it."""

NUMBERS = [-1, -(2**63), 2**63, 10**30, 1e308, -1e308, 0.5, "1", [], {}]
TEXTS = ["", "..", "/etc/passwd", "a/b", "a\0b", "x" * 5000, "\x1b[2J", 7, [], {}]
TIMES = ["", "never", "2026-01-31T12:00:00", "0001-01-01T00:00:00Z", "9" * 500, 7, [], {}]
CHECKSUMS = ["blake3:", "blake3:..", "blake3:/etc/passwd", "blake3:" + "A" * 64, "sha1:x", 7]

WORDS = ["", "x", 7, None]
OBJECTS = [7, "x", [], {}]
LISTED = [7, {}, [7], [{}], None]

WRONG: dict[str, list[Any]] = {
    name: values
    for names, values in {
        "size bytes files refs holders released generation id": NUMBERS,
        "ttl_s": [-1, 0, 1e308, 10**30, 1e9, "60", None],
        "serveable": [1, "yes", None],
        "slug filename namespace component endpoint": TEXTS,
        "suffix lora_slug worker_name": TEXTS,
        "checksum previous_checksum": CHECKSUMS,
        "expires_at created_at updated_at at since registered_at renewed_at": TIMES,
        "drain_deadline_at ended_at lease_expires_at": TIMES,
        "path": ["", "a\0b", "x" * 5000, 7],
        "state source status outcome": WORDS,
        "owner lease entry": OBJECTS,
        "owners artifacts models events entries removed kept": LISTED,
        "last": ["", "x", "-1", "9" * 5000, "9" * 30, 7, None],
        "next": ["x", "-1", "9" * 5000, 7],
    }.items()
    for name in names.split()
}
"""What no registry answers in a field of a name."""

UNNAMED = {"kind", "end_reason", "reason", "actor", "request_id", "url", "instance_id"}
"""Fields whose text is shown and nothing else, and an id that may also be a number."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field in an answer."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield (*path, name)
            yield from places(each, (*path, name))
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from places(each, (*path, number))


def put(answer: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(answer)
    at = changed
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return changed


def client_of(answer: Callable[[httpx2.Request], httpx2.Response]) -> RegistryClient:
    return RegistryClient("http://registry", retries=ONCE, transport=httpx2.MockTransport(answer))


def outcome_of(use: Use, client: RegistryClient) -> type[BaseException] | None:
    """What a call raises; None if it was content."""
    try:
        use(client)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_as_a_registry_gives_it_is_understood(name: str) -> None:
    use, answer = ANSWERS[name]
    with client_of(lambda request: httpx2.Response(200, json=answer)) as client:
        use(client)


@pytest.mark.parametrize("name", ANSWERS)
def test_no_field_of_an_answer_is_believed_unseen(name: str) -> None:
    use, answer = ANSWERS[name]
    sent: list[bytes] = []
    tried = 0
    with client_of(lambda request: httpx2.Response(200, content=sent[-1])) as client:
        for place in places(answer):
            if place[-1] in UNNAMED or (name != "events" and place[-1] == "next"):
                continue
            is_list = place == ("holders",)
            for value in LISTED[:-2] if is_list else WRONG[place[-1]]:
                sent.append(json.dumps(put(answer, place, value)).encode())
                assert outcome_of(use, client) is ServiceUnreachable, f"{place} is {value!r}"[:200]
                tried += 1
    assert tried > 10


STRANGE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "half of it": b'{"owner": ',
    "deep": b"[" * 200_000,
    "deep objects": b'{"owner":' * 200_000,
    "not UTF-8": b'{"owner": "\xff"}',
    "a lone surrogate": b'{"owner": "\\ud800"}',
    "numbers without end": b'{"refs": ' + b"9" * 100_000 + b"}",
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("status", [200, 206, 226, 400, 404, 409, 410, 424, 500, 503, 599])
@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE)
def test_a_strange_body_is_an_error_of_ours(status: int, body: bytes) -> None:
    with client_of(lambda request: httpx2.Response(status, content=body)) as client:
        for name, (use, _) in ANSWERS.items():
            outcome = outcome_of(use, client)
            assert outcome is not None, name
            assert issubclass(outcome, RegistryError), name


PROBLEM = {"type": "t", "title": "t", "status": 409, "detail": "why", "code": "conflict"}
CONFLICT = {**NAMES, "registered": SUM, "offered": SUM, "holders": []}
HOLDS = {**BODY, "state": "active", "lease_expires_at": None, "source": "copied"}

PROBLEMS: dict[str, tuple[int, dict[str, Any]]] = {
    "a conflict over no key": (409, PROBLEM | {"conflicts": [CONFLICT | {"filename": "../x"}]}),
    "a conflict with no checksum": (409, PROBLEM | {"conflicts": [CONFLICT | {"offered": "x"}]}),
    "a holder since never": (
        409,
        PROBLEM | {"conflicts": [CONFLICT | {"holders": [HOLDS | {"since": "2026-01-01T00:00"}]}]},
    ),
    "missing content that is a path": (
        424,
        PROBLEM | {"code": "content_missing", "missing": ["blake3:/etc/passwd"]},
    ),
    "a message without end": (400, PROBLEM | {"detail": "x" * 10_000_000, "code": "invalid"}),
    "a code of this side": (400, PROBLEM | {"code": "discovery_unavailable"}),
    "a setting of this side": (400, PROBLEM | {"code": "settings"}),
}


@pytest.mark.parametrize(("status", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_strange_problem_is_a_plain_error(status: int, problem: dict[str, Any]) -> None:
    with (
        client_of(lambda request: httpx2.Response(status, json=problem)) as client,
        pytest.raises(RegistryError) as raised,
    ):
        client.register(OWNER, [], lease_ttl_s=60)
    assert type(raised.value) in (RegistryError, Invalid)
    assert len(raised.value.detail) < 5000


@pytest.mark.parametrize("code", ["conflict", "file_unreadable", "superseded", "lease_gone"])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failure_of_the_service_is_no_refusal_whatever_its_code(status: int, code: str) -> None:
    problem = PROBLEM | {"status": status, "code": code}
    with (
        client_of(lambda request: httpx2.Response(status, json=problem)) as client,
        pytest.raises(RegistryError) as raised,
    ):
        client.register(OWNER, [], lease_ttl_s=60)
    assert raised.value.code != code


@pytest.mark.parametrize("retry_after_s", [-5, 10**30])
def test_a_busy_service_does_not_make_its_callers_wait_for_ever(retry_after_s: int) -> None:
    busy = PROBLEM | {"status": 503, "code": "busy", "retry_after_s": retry_after_s}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(503, json=busy))
    policy = RetryPolicy(attempts=2, first_pause_s=0, give_up_after_s=5)
    with (
        RegistryClient("http://registry", retries=policy, transport=transport) as client,
        pytest.raises(RegistryError),
    ):
        client.renew(OWNER)


EVENT = {
    **dict.fromkeys(("slug", "suffix", "filename", "checksum", "previous_checksum")),
    **dict.fromkeys(("reason", "actor", "request_id", "owner")),
    "at": "2026-01-01T00:00:00.000Z",
    "kind": "upgraded",
}


@pytest.mark.parametrize("ids", [[1, 1], [2, 1], [1, 3, 2]], ids=str)
@pytest.mark.parametrize("order", EventOrder)
def test_a_page_of_a_journal_that_does_not_get_on_is_refused(
    order: EventOrder, ids: list[int]
) -> None:
    wrong = ids if order is EventOrder.OLDEST else [4 - each for each in ids]
    page = {"events": [EVENT | {"id": each} for each in wrong], "next": None, "last": "3"}
    with (
        client_of(lambda request: httpx2.Response(200, json=page)) as client,
        pytest.raises(ServiceUnreachable, match="goes back"),
    ):
        client.events(order=order)


@pytest.mark.parametrize(
    ("status", "code", "held"),
    [(503, "unserveable", True), (404, "not_registered", False), (200, "", True), (416, "x", True)],
)
def test_whether_a_key_is_held_is_asked_again_where_no_body_said_it(
    status: int, code: str, held: bool
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "HEAD":
            return httpx2.Response(503)
        return httpx2.Response(status, json=PROBLEM | {"status": status, "code": code})

    with client_of(answer) as client:
        assert client.is_held("m/_base/f") is held


@pytest.mark.parametrize("code", ["busy", "storage_unavailable"])
def test_a_service_that_is_short_of_something_does_not_say_that_a_key_is_held(code: str) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        body = PROBLEM | {"status": 503, "code": code}
        return httpx2.Response(503, json=None if request.method == "HEAD" else body)

    with client_of(answer) as client, pytest.raises(RegistryError) as raised:
        client.is_held("m/_base/f")
    assert raised.value.code == code


# As it comes over the wire


def packed(name: str, pack: Callable[[bytes], bytes]) -> bytes:
    return json_answer(pack(bytes(50 << 20)), 200, f"Content-Encoding: {name}")


WIRE: dict[str, bytes] = {
    "a gzip bomb": packed("gzip", gzip.compress),
    "a deflate bomb": packed("deflate", zlib.compress),
    "an unknown encoding": json_answer(b"{}", 200, "Content-Encoding: br, zstd, x"),
    "a length that is too long": b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n{}",
    "a length that is too short": b"HTTP/1.1 200 X\r\nContent-Length: 1\r\n\r\n{}{}",
    "a length that is none": b"HTTP/1.1 200 X\r\nContent-Length: -1\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "header bytes": b"HTTP/1.1 200 X\r\nX: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    "a header that is none": b"HTTP/1.1 200 X\r\nX Y\r\nContent-Length: 2\r\n\r\n{}",
    "a NUL in a header": b"HTTP/1.1 200 X\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "a status that is none": b"HTTP/1.1 9999 X\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "switching": b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n",
    "headers without end": b"HTTP/1.1 200 X\r\n" + b"X: y\r\n" * 100_000,
    "a redirect to nowhere": json_answer(b"", 302, "Location: http://[::1/"),
    "a redirect to a file": json_answer(b"", 302, "Location: file:///etc/passwd"),
    "a redirect with a password": json_answer(b"", 302, "Location: http://u:s3cret@h/"),
    "cookies": json_answer(b"{}", 200, *["Set-Cookie: a=b; Expires=x; Max-Age=9e9"] * 50),
}


@pytest.mark.parametrize("answer", WIRE.values(), ids=WIRE)
def test_strange_http_is_an_error_of_ours(tmp_path: Path, answer: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    with (
        Peer(behave) as peer,
        RegistryClient(peer.url, timeout_s=5, retries=ONCE) as client,
    ):
        with pytest.raises(RegistryError) as raised:
            client.renew(OWNER)
        assert "s3cret" not in str(raised.value)
        with pytest.raises(RegistryError), (tmp_path / "f").open("w+b") as into:
            client.download(KEY, SUM, 1, into)
        file = {"path": f"{peer.url}/config.json", "checksum": SUM, "size": 1}
        resolver = Resolver(peer.url, cache=BlobCache(tmp_path / "cache"), retries=ONCE)
        with pytest.raises(RegistryError):
            resolver.fetch("tiny")
        with pytest.raises(RegistryError):
            resolver.fetch_card(Card({"model_info": {"hf_config_json": file}}))


def test_a_token_goes_to_no_other_host(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def note(connection: Any) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(json_answer(b"x"))

    with (
        Peer(note) as other,
        Peer(answering(lambda t: json_answer(b"", 307, f"Location: {other.url}/x"))) as peer,
    ):
        with (
            RegistryClient(peer.url, token="s3cret", retries=ONCE) as client,
            pytest.raises(ServiceUnreachable, match="sends callers on"),
        ):
            client.renew(OWNER)
        file = {"path": f"{peer.url}/config.json", "checksum": SUM, "size": 1}
        card = Card({"model_info": {"hf_config_json": file}})
        cache = BlobCache(tmp_path / "cache")
        Resolver(peer.url, token="s3cret", cache=cache, retries=ONCE).fetch_card(card)
    assert len(asked) == 1
    assert b"s3cret" not in asked[0]


# Lists


def page(rows: str, found: list[Any], following: str | None) -> bytes:
    return json_answer(json.dumps({rows: found, "next": following}).encode())


def entries(*numbers: int) -> list[Any]:
    return [ENTRY | {"id": number, "filename": f"{number}.json"} for number in numbers]


def owner_rows(*numbers: int) -> list[Any]:
    return [RECORD | {"owner": BODY | {"instance_id": str(number)}} for number in numbers]


def counter() -> Callable[[], int]:
    numbers = iter(range(1, 1 << 60))
    return lambda: next(numbers)


def endless(rows: str, found: Callable[[int], list[Any]], following: Callable[[int], str]) -> Any:
    number = counter()

    def answer(target: str) -> bytes:
        n = number()
        return page(rows, found(n), following(n))

    return answer


LISTS: dict[str, tuple[Callable[[RegistryClient], object], Callable[[str], bytes]]] = {
    "empty pages of artifacts": (
        lambda c: list(c.artifacts()),
        endless("artifacts", lambda n: [], str),
    ),
    "one page again and again": (
        lambda c: list(c.artifacts()),
        endless("artifacts", lambda n: entries(1, 2), str),
    ),
    "artifacts that go back": (
        lambda c: list(c.artifacts()),
        endless("artifacts", lambda n: entries(1000 - n), str),
    ),
    "a cursor that stays": (
        lambda c: list(c.artifacts()),
        endless("artifacts", lambda n: entries(n), lambda n: "7"),
    ),
    "empty pages of owners": (lambda c: list(c.owners()), endless("owners", lambda n: [], str)),
    "owners in a circle": (
        lambda c: list(c.owners()),
        endless("owners", lambda n: owner_rows(n % 2), str),
    ),
    "empty pages of models": (lambda c: list(c.models()), endless("models", lambda n: [], str)),
    "one model again and again": (
        lambda c: list(c.models()),
        endless("models", lambda n: [MODEL], str),
    ),
}


@pytest.mark.parametrize(("use", "answer"), LISTS.values(), ids=LISTS)
def test_a_list_without_end_is_an_error(use: Use, answer: Callable[[str], bytes]) -> None:
    with (
        Peer(answering(answer)) as peer,
        RegistryClient(peer.url, retries=ONCE) as client,
        pytest.raises(ServiceUnreachable, match="its list"),
    ):
        use(client)


@pytest.mark.parametrize(
    "command", [["ls"], ["owners"], ["models"], ["events"], ["events", "--after", "0"]]
)
def test_no_command_lists_for_ever(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = counter()

    def answer(target: str) -> bytes:
        n = number()
        rows = target.split("?")[0].rpartition("/")[2]
        # Events come by number, newest first without --after.
        following = str(10**6 - n if "order=newest" in target else n)
        body = {rows: [], "next": following, "last": "9"}
        return json_answer(json.dumps(body).encode())

    with Peer(answering(answer)) as peer:
        monkeypatch.setattr("sys.argv", ["metadata-registry", *command, "--url", peer.url])
        with pytest.raises(SystemExit) as exited:
            main()
    assert exited.value.code == 2
    assert "no metadata registry" in capsys.readouterr().err


# What is fetched


def listing(*rows: dict[str, Any]) -> bytes:
    return page("artifacts", [ENTRY | row for row in rows], None)


@pytest.mark.parametrize(
    "rows",
    [
        [{"slug": "other"}],
        [{"suffix": "other"}],
        [{}, {"id": 2}],
        [{"size": -1}],
        [{"checksum": "blake3:../../x"}],
        [{"filename": ".."}],
    ],
    ids=str,
)
def test_a_list_of_other_files_than_asked_for_is_not_fetched(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    asked: list[str] = []

    def answer(target: str) -> bytes:
        asked.append(target)
        return listing(*rows) if target.startswith("/v1/artifacts") else json_answer(b"x")

    with Peer(answering(answer)) as peer:
        resolver = Resolver(peer.url, cache=BlobCache(tmp_path / "cache"), retries=ONCE)
        with pytest.raises(ServiceUnreachable, match="no metadata registry"):
            resolver.fetch("tiny", to=tmp_path / "out")
    assert all(target.startswith("/v1/artifacts") for target in asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (
            "http://h/v1/metadata/tiny/_base/config.json",
            "/v1/metadata/tiny/_base/config.json",
        ),
        (
            "https://h/prefix/v1/metadata/n/c/e/tiny/lora/a%20b.json",
            "/v1/metadata/n/c/e/tiny/lora/a%20b.json",
        ),
        ("http://h/v1/metadata/../owners/x", None),
        ("http://h/v1/metadata/a/b/../../../owners/x", None),
        ("http://h/v1/metadata/tiny/_base/..%2f..%2fowners/x", None),
        ("http://h/elsewhere/config.json", None),
        ("hf://h/v1/metadata/tiny/_base/config.json", None),
        ("file:///v1/metadata/tiny/_base/config.json", None),
    ],
)
def test_registries_are_asked_only_for_content(url: str, path: str | None) -> None:
    [file] = files_of(Card({"f": {"path": url, "checksum": SUM, "size": 1}}))
    assert file.path == path


@pytest.mark.parametrize("url", ["http://[::1/x/config.json", "http://[v1/config.json"])
def test_a_card_with_a_url_that_is_none_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        files_of(Card({"f": {"path": url, "checksum": SUM, "size": 1}}))


def test_a_total_is_bounded_whatever_sizes_are_said(tmp_path: Path) -> None:
    rows = [{"id": n, "filename": f"{n}", "size": 1 << 20} for n in range(1, 5)]
    with Peer(answering(lambda target: listing(*rows))) as peer:
        limits = FetchLimits(total_max_bytes=1 << 20)
        cache = BlobCache(tmp_path / "cache")
        with pytest.raises(RegistryError, match="together"):
            Resolver(peer.url, cache=cache, limits=limits, retries=ONCE).fetch("tiny")
