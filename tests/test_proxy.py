"""Requests for whole URLs of others: files of live cards for whom a service is a proxy, nothing for
anybody else."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.discovery import Discovery, Kind, Record, RecordKey, model_record, open_discovery
from registry.discovery.cards import Card, CardFile, make_card
from tests import fileservers
from tests.commands import run_here
from tests.exchanges import Answer, Line, problem_of, running
from tests.fileservers import FileServer, Request
from tests.support import Server, checksum, wait_for
from tests.test_access import make_tokens

WORKER = Owner("fleet", "backend", "generate", 7)
PATH = "/v1/metadata/fleet/backend/generate/tiny/_base"
CONTENTS = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer.json": b'{"version": "1.0"}' * 5000,
    "chat_template.jinja": b"{{ messages }}",
}


def ask(server: Server, method: str, target: str, *lines: str) -> Answer:
    with Line(server) as line:
        head = [f"{method} {target} HTTP/1.1", *(lines or ["Host: whatever.example"])]
        line.send("\r\n".join([*head, "", ""]).encode("latin-1"))
        return line.read_answer(method)


class Fleet:
    """A worker that serves its files itself, a discovery store, and a service that is a proxy."""

    def __init__(self, server: Server, origin: FileServer, store: Discovery) -> None:
        self.server = server
        self.origin = origin
        self.store = store

    def publish(self, owner: Owner = WORKER, **given: object) -> None:
        """Publish a card of the worker's files; `given` replaces fields of every file."""
        files = [
            CardFile(f"{self.origin.url}{PATH}/{name}", checksum_of(content), len(content))
            for name, content in CONTENTS.items()
        ]
        card = make_card("Tiny", files)
        changed = json.loads(json.dumps(dict(card.content)), object_hook=lambda o: _with(o, given))
        self.store.publish(model_record(owner, Card(changed)))

    def get(self, filename: str = "config.json", *lines: str, method: str = "GET") -> Answer:
        return ask(self.server, method, f"{self.origin.url}{PATH}/{filename}", "Host: x", *lines)

    def wait(self, status: int = 200, filename: str = "config.json", *lines: str) -> None:
        wait_for(lambda: self.get(filename, *lines).status_code == status)


def _with(value: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    if "checksum" not in value:
        return value
    return {name: each for name, each in (value | given).items() if each is not None}


@pytest.fixture
def make_fleet(tmp_path: Path, serve: Callable[..., Server]) -> Iterator[Callable[..., Fleet]]:
    with contextlib.ExitStack() as stack:

        def make(manners: dict[str, fileservers.Manner] | None = None, **flags: object) -> Fleet:
            url = f"file:{tmp_path}/kv"
            store = open_discovery(url)
            stack.callback(store.close)
            origin = stack.enter_context(FileServer(CONTENTS, manners))
            return Fleet(serve(proxy_for=url, **flags), origin, store)

        yield make


def test_what_is_not_held_comes_once_from_where_its_card_says(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait()
    for name, content in CONTENTS.items():
        for _ in range(3):
            answer = fleet.get(name)
            assert answer.status_code == 200
            assert answer.content == content
            assert answer.headers["etag"] == f'"{checksum(content)}"'
        assert fleet.get(name, method="HEAD").status_code == 200
        assert fleet.get(name, "Range: bytes=1-3").content == content[1:4]
        assert fleet.get(name, f'If-None-Match: "{checksum(content)}"').status_code == 304
        assert fleet.origin.times(name) == 1


def test_what_is_held_comes_from_here_under_whatever_key(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    held = {
        ArtifactKey("tiny", "_base", "config.json"): CONTENTS["config.json"],
        # The bytes of the card, under another key; and other bytes under the key of the URL.
        ArtifactKey("tiny-12345678", "_base", "tokenizer.json"): CONTENTS["tokenizer.json"],
        ArtifactKey("tiny", "_base", "tokenizer.json"): b"{}",
    }
    assert fleet.server.register_copies(WORKER, held).status_code == 200
    fleet.publish()
    fleet.wait()
    for name in ("config.json", "tokenizer.json"):
        assert fleet.get(name).content == CONTENTS[name]
        assert fleet.origin.times(name) == 0


def test_a_holder_without_the_bytes_is_no_reason_not_to_ask_the_worker(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    path = root / "config.json"
    path.write_bytes(CONTENTS["config.json"])
    fleet = make_fleet(artifact_root=root)
    line = {"slug": "tiny", "suffix": "_base", "filename": path.name, "path": str(path)}
    assert fleet.server.register(WORKER, [line]).status_code == 200
    path.unlink()
    fleet.publish()
    fleet.wait()
    assert fleet.get().content == CONTENTS["config.json"]
    assert fleet.origin.times("config.json") == 1
    fleet.server.unregister(WORKER)


def test_any_holder_that_has_the_bytes_is_good_enough(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    """The worker is gone; one file in place is gone as well; a copy is there under a third key."""
    root = tmp_path / "models"
    root.mkdir()
    path = root / "config.json"
    path.write_bytes(CONTENTS["config.json"])
    fleet = make_fleet({"config.json": _failing}, artifact_root=root)
    for slug in ("a-first", "tiny"):
        line = {"slug": slug, "suffix": "_base", "filename": path.name, "path": str(path)}
        owner = Owner("fleet", "backend", "generate", len(slug))
        assert fleet.server.register(owner, [line]).status_code == 200
    path.unlink()
    other = Owner("fleet", "backend", "generate", 99)
    held = {ArtifactKey("z-last", "_base", path.name): CONTENTS[path.name]}
    assert fleet.server.register_copies(other, held).status_code == 200
    fleet.publish()
    fleet.wait()
    assert fleet.get().content == CONTENTS["config.json"]
    for instance_id in (4, 7):
        fleet.server.unregister(Owner("fleet", "backend", "generate", instance_id))


def test_the_urls_of_a_card_before_it_was_rewritten_are_good_as_well(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet()
    origin = f"{fleet.origin.url}{PATH}/config.json"
    content = CONTENTS["config.json"]
    url = f"http://registry.example/v1/metadata/tiny/_base/config.json#origin={quote(origin)}"
    card = make_card("Tiny", [CardFile(url, checksum(content), len(content))])
    fleet.store.publish(model_record(WORKER, card))
    fleet.wait()
    assert fleet.get().content == content


def test_a_card_that_contradicts_another_takes_nothing_from_it(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait(200, "chat_template.jinja")
    lies: list[dict[str, Any]] = [{"checksum": "blake3:" + "0" * 64}, {"size": 1}, {"size": 0}]
    for number, given in enumerate(lies):
        fleet.publish(Owner("other", "backend", "generate", number), **given)
    marker = Owner("other", "backend", "generate", 9)
    fleet.store.publish(model_record(marker, _card_of(f"{fleet.origin.url}{PATH}/marker.json")))
    fleet.wait(502, "marker.json")
    for name in ("config.json", "tokenizer.json"):
        assert fleet.get(name).content == CONTENTS[name]


def _card_of(url: str) -> Card:
    return make_card("Marker", [CardFile(url, checksum(b"?"), 1)])


def test_cards_that_nobody_saw_leave_stay_known(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait()
    (tmp_path / "kv").rename(tmp_path / "away")
    marker = Owner("other", "backend", "generate", 9)
    fleet.store.publish(model_record(marker, _card_of(f"{fleet.origin.url}{PATH}/marker.json")))
    fleet.wait(502, "marker.json")
    assert fleet.get("tokenizer.json").status_code == 200


@pytest.mark.parametrize("size", [None, 10_000_000], ids=["no size", "a size"])
def test_a_worker_that_drips_keeps_nobody_from_the_others(
    make_fleet: Callable[..., Fleet], size: int | None
) -> None:
    fleet = make_fleet(dict.fromkeys(map(str, range(24)), _dripping))
    fleet.publish(size=size)
    slow = FileServer({}, dict.fromkeys(map(str, range(24)), _dripping))
    with slow:
        files = [
            {"path": f"{slow.url}{PATH}/{name}", "checksum": checksum(name.encode()), "size": size}
            for name in map(str, range(24))
        ]
        owner = Owner("slow", "backend", "generate", 1)
        record = model_record(owner, make_card("Slow", []))
        card = {**record.content["card_json"], "extra_files": files}
        fleet.store.publish(Record(record.key, {**record.content, "card_json": card}))
        fleet.wait()
        with contextlib.ExitStack() as stack:
            for name in map(str, range(24)):
                line = stack.enter_context(Line(fleet.server))
                line.send(f"GET {slow.url}{PATH}/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_for(lambda: len(slow.asked) >= 4)
            assert fleet.get("tokenizer.json").content == CONTENTS["tokenizer.json"]
            assert fleet.get("chat_template.jinja").content == CONTENTS["chat_template.jinja"]
            assert len(slow.asked) == 4


def _dripping(request: Request) -> None:
    request.head(200, Content_Length=10_000_000)
    with contextlib.suppress(OSError):
        for _ in range(200):
            request.send(b"x")
            time.sleep(0.1)


def test_a_card_that_is_withdrawn_opens_nothing_any_more(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    other = Owner("fleet", "backend", "generate", 8)
    for owner in (WORKER, other):
        fleet.publish(owner)
    fleet.wait()
    fleet.store.withdraw(RecordKey(Kind.MODEL, WORKER))
    fleet.store.withdraw(RecordKey(Kind.MODEL, other))
    fleet.wait(403)


# What a worker may answer


def _endless(request: Request) -> None:
    request.head(200, Content_Length=1 << 40)
    with contextlib.suppress(OSError):
        while True:
            request.send(bytes(1 << 16))


def _moved(request: Request) -> None:
    request.head(302, Location="http://127.0.0.1:1/elsewhere", Content_Length=0)


def _failing(request: Request) -> None:
    request.head(500, Content_Length=0)


def _other(request: Request) -> None:
    request.head(200, Content_Length=3)
    request.send(b"{ }")


def _short(request: Request) -> None:
    request.head(200, Content_Length=len(request.content))
    request.send(request.content[:3])
    request.cut()


def _early(request: Request) -> None:
    with contextlib.suppress(OSError):
        for _ in range(1 << 16):
            request.send(b"HTTP/1.1 103 Early\r\n\r\n")


def _in_crumbs(request: Request) -> None:
    request.head(200, Transfer_Encoding="chunked")
    with contextlib.suppress(OSError):
        for _ in range(1 << 16):
            request.send(b"1\r\nx\r\n")


def _compressed(request: Request) -> None:
    request.head(200, Content_Length=3, Content_Encoding="gzip")
    request.send(b"\x1f\x8b\x08")


BAD = [_endless, _moved, _failing, _other, _short, _early, _in_crumbs, _compressed]


def test_what_a_worker_answers_is_believed_for_its_checksum_alone(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait(200, "tokenizer.json")
    for manner in BAD:
        fleet.origin.manners["config.json"] = manner
        problem = problem_of(fleet.get(), 502, "origin_unavailable")
        assert fleet.origin.url in problem["detail"]
    assert fleet.get("chat_template.jinja").content == CONTENTS["chat_template.jinja"]
    del fleet.origin.manners["config.json"]
    assert fleet.get().content == CONTENTS["config.json"]


def test_a_worker_that_cannot_be_reached_is_502(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait(200, "tokenizer.json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        fleet.origin.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        fleet.publish()
        fleet.wait(502)
    problem_of(fleet.get(), 502, "origin_unavailable")
    assert fleet.get("tokenizer.json").status_code == 200


def test_a_card_without_sizes_is_good_enough(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    fleet.publish(size=None)
    fleet.wait()
    assert fleet.get().content == CONTENTS["config.json"]


def test_what_is_too_large_by_its_card_is_not_asked_for(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(max_blob_bytes=1000)
    fleet.publish()
    fleet.wait()
    problem_of(fleet.get("tokenizer.json"), 502, "origin_unavailable")
    assert fleet.origin.times("tokenizer.json") == 0


USELESS: list[dict[str, object]] = [
    {"checksum": "blake3:" + "0" * 63},
    {"checksum": 7},
    {"size": -1},
    {"size": "many"},
    {"path": None},
    {"path": 7},
    {"path": "file:///etc/passwd"},
    {"path": "/etc/passwd"},
    {"path": "http://a b/v1/metadata/a/b/c"},
    {"path": "http://user:word@127.0.0.1/v1/metadata/a/b/c"},
    {"path": "http://127.0.0.1:99999/v1/metadata/a/b/c"},
    {"path": "http://127.0.0.1/latest/meta-data"},
    {"path": "http://[::1/v1/metadata/a/b/c"},
    {"path": "http://my_worker:1/v1/metadata/a/b/c"},
    {"path": "http://" + "a" * 9000 + "/v1/metadata/a/b/c"},
    {"path": "\x00\ud800"},
]


def test_a_card_that_nothing_can_be_made_of_harms_no_other(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet()
    for number, given in enumerate(USELESS):
        owner = Owner("useless", "backend", "generate", number)
        record = model_record(owner, make_card("Useless", []))
        file = {"path": f"{fleet.origin.url}{PATH}/config.json", "checksum": "", "size": 1} | given
        card = {**record.content["card_json"], "extra_files": [file]}
        with contextlib.suppress(UnicodeEncodeError):
            fleet.store.publish(Record(record.key, {**record.content, "card_json": card}))
    fleet.publish()
    fleet.wait()
    assert fleet.get("tokenizer.json").content == CONTENTS["tokenizer.json"]


# Who may ask, and for what


@pytest.mark.parametrize("token_as", ["password", "user", "bearer"])
def test_a_token_is_given_with_the_address_of_the_proxy(
    make_fleet: Callable[..., Fleet], tmp_path: Path, token_as: str
) -> None:
    made = make_tokens(tmp_path / "tokens.toml")
    token = made["reader"]
    fleet = make_fleet(token_file=tmp_path / "tokens.toml", require_read_token=True)
    fleet.publish()
    basic = {"password": f"me:{token}", "user": f"{token}:", "bearer": ""}[token_as]
    sent = f"Basic {base64.b64encode(basic.encode()).decode()}" if basic else f"Bearer {token}"
    fleet.wait(200, "config.json", f"Proxy-Authorization: {sent}")
    for lines in ([], ["Proxy-Authorization: Basic bWU6d3Jvbmc="], [f"Authorization: {sent}"]):
        answer = fleet.get("config.json", *lines)
        problem_of(answer, 407, "proxy_unauthenticated")
        assert answer.headers["proxy-authenticate"].startswith("Basic")


FOREIGN = [
    "http://whatever.example",
    "http://127.0.0.1:1",
    "http://localhost:2379",
    "http://[::1]:9",
    "https://whatever.example:443",
    "HTTP://WHATEVER.example:8090",
]
CALLS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/owners"),
    ("GET", "/v1/audit"),
    ("GET", "/"),
    ("GET", f"{PATH}/config.json"),
    ("GET", "/v1/metadata/tiny/_base/config.json"),
    ("GET", f"{PATH}/../../../../../owners"),
    ("GET", f"{PATH}/config.json?x=1"),
    ("HEAD", f"{PATH}/config.json"),
    ("POST", f"{PATH}/config.json"),
    ("POST", "/v1/registrations"),
    ("POST", "/v1/renewals"),
    ("PUT", "/v1/blobs/blake3:" + "0" * 64),
    ("DELETE", "/v1/owners/fleet/backend/generate/7/_base"),
    ("DELETE", "/v1/artifacts/tiny/_base"),
    ("OPTIONS", "/v1/owners"),
    ("PATCH", "/v1/owners"),
    ("TRACE", "/v1/owners"),
]


@pytest.fixture(scope="module", params=["no proxy", "no proxy, open", "a proxy"])
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A service that holds something, which is no proxy for what is asked of it here."""
    folder = tmp_path_factory.mktemp("foreign")
    flags: dict[str, Any] = {}
    if request.param == "no proxy, open":
        flags["insecure"] = True
    if request.param == "a proxy":
        flags["proxy_for"] = f"file:{folder}/kv"
    with running(folder, **flags) as server:
        held = {ArtifactKey("tiny", "_base", "config.json"): CONTENTS["config.json"]}
        assert server.register_copies(WORKER, held).status_code == 200
        yield server


@pytest.mark.parametrize("url", FOREIGN)
def test_nothing_is_done_under_the_name_of_another(foreign: Server, url: str) -> None:
    for method, path in CALLS:
        answer = ask(foreign, method, url + path, "Host: localhost", "Content-Length: 0")
        assert answer.status_code == 403, (method, url + path)
        if method != "HEAD":
            assert "proxy" in answer.json()["detail"]
    assert foreign.fetch(ArtifactKey("tiny", "_base", "config.json")).status_code == 200


@pytest.mark.parametrize(
    "target", ["whatever.example:443", "127.0.0.1:1", "localhost:8090", "/", "*", "http://a/"]
)
def test_there_is_no_way_through_by_connect(foreign: Server, target: str) -> None:
    answer = ask(foreign, "CONNECT", target)
    assert answer.status_code in (400, 403, 404, 405), answer.content
    assert answer.json()["code"]


def test_the_own_urls_are_answered_whole_as_well(foreign: Server) -> None:
    for path, status in (("/live", 200), ("/v1/metadata/tiny/_base/config.json", 200), ("/x", 404)):
        answer = ask(foreign, "GET", foreign.url + path, "Host: localhost")
        assert answer.status_code == status


@pytest.mark.parametrize(
    "url", ["http://other.example:{port}", "http://127.0.0.2:{port}", "http://{host}:1"]
)
def test_an_address_that_no_card_names_is_refused(
    make_fleet: Callable[..., Fleet], url: str
) -> None:
    fleet = make_fleet()
    fleet.publish()
    fleet.wait()
    host, port = fleet.origin.url.removeprefix("http://").split(":")
    named = url.format(host=host, port=port)
    assert ask(fleet.server, "GET", f"{named}{PATH}/config.json").status_code == 403
    # The worker's own address, and another file of it.
    for path in (f"{PATH}/weights.json", "/v1/metadata/tiny/_base/config.json"):
        problem_of(ask(fleet.server, "GET", fleet.origin.url + path), 404, "not_registered")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        target = f"{fleet.origin.url}{PATH}/config.json"
        assert ask(fleet.server, method, target, "Host: x", "Content-Length: 0").status_code == 403
    assert ask(fleet.server, "GET", f"{fleet.origin.url}/health").status_code == 403


@pytest.mark.parametrize("url", ["kv", "http://a", "file:", "etcd://a b"])
def test_a_store_that_cannot_be_one_is_refused_at_the_start(tmp_path: Path, url: str) -> None:
    done = run_here(
        "serve", "--port", "0", "--database-url", f"sqlite:///{tmp_path}/r.db", "--proxy-for", url
    )
    assert done.returncode == 2
    assert "discovery store" in done.stderr or "etcd" in done.stderr


def test_what_keeps_cards_from_being_followed_is_told_and_tried_again(tmp_path: Path) -> None:
    """Here it is the environment, of which the client of other tests would not hear either."""
    options = ["--port", "0", "--database-url", f"sqlite:///{tmp_path}/registry.db"]
    process = subprocess.Popen(
        [sys.executable, "-m", "registry", "serve", *options, "--proxy-for", "etcd://192.0.2.1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HTTP_PROXY": "nonsense://x"},
        text=True,
    )
    with process:
        assert process.stderr is not None
        words = ("registry.proxy", "Traceback")
        told = next(line for line in process.stderr if any(word in line for word in words))
        process.terminate()
        rest = process.stderr.read()
    assert "cannot be followed; trying again: HTTP_PROXY is" in told
    assert "Traceback" not in rest
    assert process.returncode == 0
