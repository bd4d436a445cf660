"""Who may call what: every route for every role, token files, other sites, addresses, TLS."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from registry.core.model_revisions import revision_slug
from registry.core.records import ArtifactKey, Owner
from registry.errors import SettingsError
from registry.server import tokens
from registry.server.file_keys import ROUTES as READ_ROUTES
from registry.server.pages.urls import OWNER as OWNER_PAGE
from registry.server.routes.owners import PATH as OWNER
from registry.server.routes.table import ROUTES
from registry.server.tokens import Role
from tests.commands import run_here
from tests.exchanges import problem_of, running
from tests.places import on_both
from tests.support import ROOT, Server, bearer, checksum, copied, owner_body, wait_for

pytestmark = on_both

OURS, OTHERS = "prod", "test"
HELD = Owner(OURS, "backend", "generate", 1)
KEY = ArtifactKey("llama-1", "_base", "config.json")
CONTENT = b'{"content": "held"}'
_numbers = itertools.count(100)

CALLERS = ("nobody", "stranger", "reader", "writer", "other_writer", "narrow_writer", "admin")
"""No token; one that is not known; then by role: a writer of the namespace, of another, and one
of the namespace whose slugs are others."""


@dataclass(frozen=True)
class RequestSpec:
    """A request as it is made once for each caller, and what it answers if it is allowed."""

    make: Callable[[], dict[str, Any]]
    kind: str
    status: int = 200


def plain(url: str, kind: str, status: int = 200, **request: Any) -> RequestSpec:
    return RequestSpec(lambda: {"url": url, **request}, kind, status)


def registering() -> dict[str, Any]:
    owner = Owner(OURS, "backend", "generate", next(_numbers))
    return {
        "url": "/v1/registrations",
        "json": {"owner": owner_body(owner), "artifacts": [copied(KEY, CONTENT)]},
    }


def uploading() -> dict[str, Any]:
    content = b"upload %d" % next(_numbers)
    return {"url": f"/v1/blobs/{checksum(content)}", "content": content}


def of_held(rest: str = "") -> str:
    return f"/v1/owners/{HELD}{rest}"


CALLS: dict[tuple[str, str], RequestSpec] = {
    ("GET", READ_ROUTES[3]): plain(f"/v1/metadata/{KEY}", "read"),
    ("HEAD", READ_ROUTES[3]): plain(f"/v1/metadata/{KEY}", "read"),
    ("GET", READ_ROUTES[6]): plain(f"/v1/metadata/{OURS}/backend/generate/{KEY}", "read"),
    ("HEAD", READ_ROUTES[6]): plain(f"/v1/metadata/{OURS}/backend/generate/{KEY}", "read"),
    ("POST", "/v1/registrations"): RequestSpec(registering, "register"),
    ("PUT", "/v1/blobs/{checksum}"): RequestSpec(uploading, "write", 201),
    ("HEAD", "/v1/blobs/{checksum}"): plain(f"/v1/blobs/{checksum(CONTENT)}", "read"),
    ("GET", "/v1/owners"): plain("/v1/owners", "read"),
    ("GET", OWNER): plain(of_held(), "read"),
    ("DELETE", OWNER): plain(f"/v1/owners/{OURS}/a/b/9/_base", "owner"),
    ("POST", f"{OWNER}/renew"): plain(of_held("/renew"), "owner"),
    ("POST", "/v1/renewals"): plain("/v1/renewals", "owner", json={"owners": [owner_body(HELD)]}),
    ("POST", f"{OWNER}/drain"): plain(of_held("/drain"), "owner"),
    ("GET", "/v1/artifacts"): plain("/v1/artifacts", "read"),
    ("DELETE", "/v1/artifacts/{slug}/{suffix}"): plain("/v1/artifacts/none/_base", "administer"),
    ("GET", "/v1/artifacts/{slug}/{suffix}/{filename}"): plain(f"/v1/artifacts/{KEY}", "read"),
    ("GET", "/v1/models"): plain("/v1/models", "read"),
    ("GET", "/v1/events"): plain("/v1/events", "read"),
    ("GET", "/v1/audit"): plain("/v1/audit", "read"),
    ("GET", "/v1/sweep"): plain("/v1/sweep", "read"),
    ("POST", "/v1/sql"): plain("/v1/sql", "administer", json={"query": "SELECT 1"}),
    ("GET", "/metrics"): plain("/metrics", "read"),
    ("GET", "/openapi.json"): plain("/openapi.json", "read"),
    ("GET", "/docs"): plain("/docs", "read"),
    ("GET", "/"): plain("/", "read"),
    ("GET", "/ui/models"): plain("/ui/models", "read"),
    ("GET", "/ui/models/{slug}/{suffix}"): plain(f"/ui/models/{KEY.slug}/{KEY.suffix}", "read"),
    ("GET", "/ui/artifacts/{slug}/{suffix}/{filename}"): plain(f"/ui/artifacts/{KEY}", "read"),
    ("GET", "/ui/owners"): plain("/ui/owners", "read"),
    ("GET", OWNER_PAGE): plain(f"/ui/owners/{HELD}", "read"),
    ("GET", "/ui/events"): plain("/ui/events", "read"),
    ("GET", "/ui/audit"): plain("/ui/audit", "read"),
    ("GET", "/ui/words"): plain("/ui/words", "read"),
    ("GET", "/ui/sql"): plain("/ui/sql?q=SELECT+1", "administer"),
    ("GET", "/live"): plain("/live", "open"),
    ("GET", "/health"): plain("/health", "open"),
}
"""Every call of the service. HEAD is as GET where it is not named."""

OK = "ok"
ALLOWED: dict[str, tuple[int | str, ...]] = {
    # nobody, stranger, reader, writer, other writer, narrow writer, admin
    "open": (OK, OK, OK, OK, OK, OK, OK),
    "read": (OK, OK, OK, OK, OK, OK, OK),
    "read with a token": (401, 401, OK, OK, OK, OK, OK),
    "write": (401, 401, 403, OK, OK, OK, OK),
    "owner": (401, 401, 403, OK, 403, OK, OK),
    "register": (401, 401, 403, OK, 403, 403, OK),
    "administer": (401, 401, 403, 403, 403, 403, OK),
}
"""What each kind of call answers each caller."""


def routes() -> set[tuple[str, str]]:
    found = {(method, route.path) for route in ROUTES for method in route.methods or ()}
    return found | {(method, path) for path in READ_ROUTES.values() for method in ("GET", "HEAD")}


def call_of(method: str, path: str) -> RequestSpec:
    found = CALLS.get((method, path))
    return found or CALLS["GET" if method == "HEAD" else method, path]


def make_tokens(path: Path) -> dict[str, str]:
    """A token file with a token for each caller that has one."""
    path.parent.mkdir(exist_ok=True)
    made = {
        "reader": tokens.create(path, Role.READ, name="reader"),
        "writer": tokens.create(path, Role.WRITE, name="writer", namespaces=[OURS]),
        "other_writer": tokens.create(path, Role.WRITE, name="other", namespaces=[OTHERS]),
        "narrow_writer": tokens.create(
            path, Role.WRITE, name="narrow", namespaces=[OURS], slugs=["gemma-*", "qwen"]
        ),
        "admin": tokens.create(path, Role.ADMIN, name="admin"),
    }
    return {name: token for name, (_, token) in made.items()}


@dataclass(frozen=True)
class Guarded:
    """A service with tokens, and the headers of each caller."""

    server: Server
    tokens: dict[str, str]

    def headers_of(self, caller: str) -> dict[str, str]:
        if caller == "nobody":
            return {}
        return bearer(self.tokens.get(caller, "mreg_" + "0" * 43))

    def send(self, caller: str, method: str, request: dict[str, Any]) -> httpx2.Response:
        headers = {**request.pop("headers", {}), **self.headers_of(caller)}
        return self.server.client.request(method, **request, headers=headers)


@pytest.fixture(scope="module", params=["reads_are_open", "reads_need_a_token"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    made = make_tokens(folder / "tokens.toml")
    flags: dict[str, Any] = {"token_file": folder / "tokens.toml"}
    if request.param == "reads_need_a_token":
        flags["require_read_token"] = True
    with running(folder, **flags) as server:
        service = Guarded(server, made)
        upload = {"url": f"/v1/blobs/{checksum(CONTENT)}", "content": CONTENT}
        assert service.send("admin", "PUT", upload).status_code == 201
        body = {"owner": owner_body(HELD), "artifacts": [copied(KEY, CONTENT)]}
        held = service.send("admin", "POST", {"url": "/v1/registrations", "json": body})
        assert held.status_code == 200
        yield service
        for token in made.values():
            assert token not in server.log


def test_every_route_is_in_the_table_of_who_may_call_it() -> None:
    listed = {route for route in routes() if (route[0], route[1]) in CALLS}
    as_get = {("HEAD", path) for method, path in CALLS if method == "GET"}
    assert routes() - as_get == listed - as_get
    assert set(CALLS) <= routes()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("method", "path"), sorted(routes()))
def test_a_route_answers_those_who_may_call_it_and_nobody_else(
    guarded: Guarded, method: str, path: str, caller: str, request: pytest.FixtureRequest
) -> None:
    call = call_of(method, path)
    kind = call.kind
    if kind == "read" and "reads_need_a_token" in request.node.name:
        kind = "read with a token"
    expected = ALLOWED[kind][CALLERS.index(caller)]
    answer = guarded.send(caller, method, call.make())
    assert answer.status_code == (call.status if expected == OK else expected), answer.text
    if method == "HEAD" or expected == OK:
        return
    if expected == 401:
        problem = problem_of(answer, 401, "unauthenticated")
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith('Bearer realm="metadata-registry"')
        assert ("invalid_token" in challenge) == (caller == "stranger")
    else:
        problem = problem_of(answer, 403, "forbidden")
    assert problem["detail"].endswith(".")


@pytest.mark.parametrize("caller", CALLERS)
def test_nothing_else_is_there_for_anybody(guarded: Guarded, caller: str) -> None:
    known = routes()
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    for path in sorted({path for _, path in known}):
        for method in methods:
            if (method, path) in known:
                continue
            url = re.sub(r"\{instance_id\}", "1", path).replace("{", "").replace("}", "")
            answer = guarded.send(caller, method, {"url": url})
            assert answer.status_code in (401, 405), (method, path)
    for url in (
        "/ui",
        "/ui/",
        "/ui/nothing",
        "/v1",
        "/v1/",
        "/v1/owners/",
        "/v2/owners",
        "/live/",
        "/admin",
        "/docs/x",
    ):
        assert guarded.send(caller, "GET", {"url": url}).status_code == 404


def test_a_change_is_journalled_with_the_name_of_its_token(guarded: Guarded) -> None:
    owner = Owner(OURS, "backend", "generate", next(_numbers))
    body = {"owner": owner_body(owner), "artifacts": [copied(KEY, CONTENT)]}
    for caller, method, request in (
        ("writer", "POST", {"url": "/v1/registrations", "json": body}),
        ("narrow_writer", "POST", {"url": f"/v1/owners/{owner}/drain"}),
        ("admin", "DELETE", {"url": f"/v1/owners/{owner}"}),
    ):
        assert guarded.send(caller, method, request).status_code == 200
    events = guarded.send(
        "reader", "GET", {"url": "/v1/events", "params": {"owner": str(owner)}}
    ).json()["events"]
    actors = {event["kind"]: event["actor"] for event in events}
    expected = {"attached": "writer", "drained": "narrow", "detached": "admin"}
    assert {kind: actors.get(kind) for kind in expected} == expected


@pytest.mark.parametrize("slug", ["gemma-2", "qwen"])
def test_a_writer_may_register_the_slugs_of_its_patterns(guarded: Guarded, slug: str) -> None:
    body = {
        "owner": owner_body(Owner(OURS, "backend", "generate", next(_numbers))),
        "artifacts": [copied(ArtifactKey(slug, "_base", "config.json"), CONTENT)],
    }
    request = {"url": "/v1/registrations", "json": body}
    assert guarded.send("narrow_writer", "POST", request).status_code == 200


def test_one_slug_outside_of_the_patterns_refuses_the_whole_manifest(guarded: Guarded) -> None:
    keys = [ArtifactKey(slug, "_base", "c.json") for slug in ("gemma-3", "qwen-2")]
    body = {
        "owner": owner_body(Owner(OURS, "backend", "generate", next(_numbers))),
        "artifacts": [copied(key, CONTENT) for key in keys],
    }
    request = {"url": "/v1/registrations", "json": body}
    problem = problem_of(guarded.send("narrow_writer", "POST", request), 403, "forbidden")
    assert "'qwen-2'" in problem["detail"]
    with guarded.server.place.sql() as connection:
        assert connection.execute("SELECT * FROM entries WHERE slug = 'gemma-3'").fetchall() == []


def test_a_token_for_a_slug_is_good_for_its_revisions_and_for_no_other_slug(
    guarded: Guarded,
) -> None:
    """S17: what is offered is compared with the patterns, and not where it goes."""
    slugs = []
    for slug, content in (("qwen", CONTENT), ("qwen", b"other"), ("qwen-2", b"other")):
        upload = {"url": f"/v1/blobs/{checksum(content)}", "content": content}
        assert guarded.send("narrow_writer", "PUT", upload).is_success
        body = {
            "owner": owner_body(Owner(OURS, "backend", "generate", next(_numbers))),
            "artifacts": [copied(ArtifactKey(slug, "_base", "c.json"), content)],
            "on_conflict": "revision",
        }
        request = {"url": "/v1/registrations", "json": body}
        answer = guarded.send("narrow_writer", "POST", request)
        slugs.append(answer.json()["artifacts"][0]["slug"] if answer.is_success else None)
    revision = revision_slug("qwen", [("c.json", checksum(b"other"))])
    assert slugs == ["qwen", revision, None]


@pytest.mark.parametrize(
    "header",
    [
        "{token}",
        "Basic {token}",
        "Bearer",
        "Bearer {token}x",
        "Bearer x{token}",
        "Bearer {token},{token}",
        "Bearer " + "x" * 10_000,
        "Bearer \xe9",
    ],
)
def test_what_is_not_exactly_a_known_token_is_refused(guarded: Guarded, header: str) -> None:
    value = header.format(token=guarded.tokens["admin"]).encode("latin-1")
    answer = guarded.server.client.delete(
        "/v1/artifacts/none/_base", headers=[(b"authorization", value)]
    )
    problem_of(answer, 401, "unauthenticated")


def test_two_authorization_headers_are_refused(guarded: Guarded) -> None:
    value = f"Bearer {guarded.tokens['admin']}"
    answer = guarded.server.client.delete(
        "/v1/artifacts/none/_base", headers=[("authorization", value), ("authorization", value)]
    )
    problem_of(answer, 401, "unauthenticated")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_the_scheme_is_taken_in_any_case(guarded: Guarded, scheme: str) -> None:
    answer = guarded.server.client.delete(
        "/v1/artifacts/none/_base",
        headers={"authorization": f"{scheme} {guarded.tokens['admin']}"},
    )
    assert answer.status_code == 200


# Other sites


CROSS_SITE = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://[::1"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"host": "rebound.example"},
    {"host": "rebound.example", "origin": "http://rebound.example"},
    {"host": "127.0.0.1.evil.example:8090"},
    {"host": "0.0.0.0:8090"},
]
SAME_SITE = [
    {},
    {"host": "localhost:1234"},
    {"host": "LOCALHOST"},
    {"host": "[::1]:80"},
    {"host": "127.0.0.99:1"},
    {"origin": "http://localhost:9", "host": "localhost:9", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("shared")) as server:
        yield server


CHANGES = [
    ("POST", "/v1/registrations"),
    ("PUT", f"/v1/blobs/{checksum(b'x')}"),
    ("DELETE", of_held()),
    ("POST", of_held("/renew")),
    ("POST", of_held("/drain")),
    ("POST", "/v1/renewals"),
    ("DELETE", "/v1/artifacts/none/_base"),
    ("POST", "/v1/sql"),
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
@pytest.mark.parametrize(("method", "url"), CHANGES)
def test_a_change_that_another_site_asks_for_is_refused(
    shared: Server, method: str, url: str, headers: dict[str, str]
) -> None:
    answer = shared.client.request(method, url, headers=headers, content=b"x")
    problem_of(answer, 403, "forbidden")


@pytest.mark.parametrize("headers", SAME_SITE, ids=str)
def test_a_change_that_comes_from_here_is_made(shared: Server, headers: dict[str, str]) -> None:
    assert shared.client.delete(of_held(), headers=headers).status_code == 200


@pytest.mark.parametrize("headers", CROSS_SITE[:2], ids=str)
def test_another_site_may_have_its_visitor_read(shared: Server, headers: dict[str, str]) -> None:
    assert shared.client.get("/v1/owners", headers=headers).status_code == 200


def test_every_change_is_among_those_that_other_sites_were_refused() -> None:
    templates = {(method, path) for method, path in routes() if method not in ("GET", "HEAD")}
    assert len(CHANGES) == len(templates)


def test_with_tokens_any_name_of_the_host_is_taken(guarded: Guarded) -> None:
    request = {"url": of_held("/renew"), "headers": {"host": "registry.example"}}
    assert guarded.send("admin", "POST", request).status_code == 200


def test_a_token_does_not_let_another_site_write(guarded: Guarded) -> None:
    request = {"url": of_held("/renew"), "headers": {"origin": "https://evil.example"}}
    problem_of(guarded.send("admin", "POST", request), 403, "forbidden")


# Starting


def refusal_of(tmp_path: Path, *arguments: object) -> str:
    """What a service says that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "registry", "serve", "--port", "0", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "registry.db").exists()
    return done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "registry.example"])
def test_an_address_that_others_reach_is_refused_without_tokens(tmp_path: Path, host: str) -> None:
    said = refusal_of(tmp_path, "--host", host)
    for way_out in ("token new", "--token-file", "127.0.0.1", "--insecure"):
        assert way_out in said


def test_insecure_listens_anywhere_and_takes_any_host(serve: Callable[..., Server]) -> None:
    server = serve(host="0.0.0.0", insecure=True)
    answer = server.client.delete(of_held(), headers={"host": "registry.example"})
    assert answer.status_code == 200


def test_tokens_let_it_listen_anywhere_with_a_warning_about_clear_text(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    made = make_tokens(tmp_path / "tokens.toml")
    server = serve(host="0.0.0.0", token_file=tmp_path / "tokens.toml", token=made["admin"])
    assert server.client.delete(of_held()).status_code == 200
    assert "tokens travel unencrypted" in server.log


def test_asking_readers_for_tokens_without_a_token_file_is_refused(tmp_path: Path) -> None:
    assert "--token-file" in refusal_of(tmp_path, "--require-read-token")


def test_a_secret_below_an_artifact_root_is_refused(tmp_path: Path) -> None:
    make_tokens(tmp_path / "models" / "tokens.toml")
    link = tmp_path / "tokens.toml"
    link.symlink_to(tmp_path / "models" / "tokens.toml")
    for file in (link, tmp_path / "models" / "tokens.toml"):
        said = refusal_of(tmp_path, "--artifact-root", tmp_path / "models", "--token-file", file)
        assert "below an artifact root" in said


# Token files


def test_a_new_token_is_the_last_word_of_the_output_and_only_its_hash_is_kept(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tokens.toml"
    command = [sys.executable, "-m", "registry", "token", "new", "--role", "write"]
    command += ["--namespace", "prod", "--namespace", "test", "--slug", "llama-*"]
    done = subprocess.run(
        [*command, "--token-file", str(file)], capture_output=True, text=True, check=True
    )
    token = done.stdout.split()[-1]
    assert re.fullmatch(r"mreg_[A-Za-z0-9_-]{43}", token)
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    grant = tokens.load(file).find(token)
    assert grant is not None
    assert (grant.role, grant.namespaces, grant.slugs) == (
        Role.WRITE,
        ("prod", "test"),
        ("llama-*",),
    )


def test_a_token_is_added_behind_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text("# ours\n" + GOOD.rstrip())
    file.chmod(0o640)
    _, token = tokens.create(file, Role.READ)
    text = file.read_text()
    assert text.startswith("# ours\n" + GOOD)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert tokens.load(file).find(token) is not None
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_link_to_the_token_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "tokens.toml"
    link.symlink_to(tmp_path / "real" / "tokens.toml")
    _, token = tokens.create(link, Role.READ)
    assert link.is_symlink()
    assert tokens.load(link).find(token) is not None


def test_tokens_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(tokens.create(file, Role.READ)[1]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = tokens.load(file)
    assert len(made) == 16
    assert all(found.find(token) is not None for token in made)


def listed(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        run_here("token", "list", "--token-file", file, "--json").stdout
    )["tokens"]
    return found


def test_tokens_are_listed_with_what_they_may_do_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    made = make_tokens(file)
    done = run_here("token", "list", "--token-file", file)
    assert done.returncode == 0
    assert done.stdout.split()[:4] == ["NAME", "ROLE", "NAMESPACES", "SLUGS"]
    assert "narrow  write  prod        gemma-*, qwen" in done.stdout
    narrow = {"role": "write", "namespaces": [OURS], "slugs": ["gemma-*", "qwen"]}
    assert listed(file)[3] == {"name": "narrow", **narrow}
    text = file.read_text()
    assert not any(token in done.stdout for token in made.values())
    assert not re.search("[0-9a-f]{64}", done.stdout)
    assert re.search("[0-9a-f]{64}", text)


@pytest.mark.parametrize("name", ["reader", "narrow", "admin"])
def test_a_token_that_is_taken_back_leaves_the_rest_of_the_file_as_it_is(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "tokens.toml"
    made = make_tokens(file)
    comments = file.read_text().replace("[[tokens]]", "# whose\n  [[ tokens ]] # this one")
    file.write_text(f"# ours\n{comments}# the end\n")
    file.chmod(0o640)
    before = file.read_text()
    done = run_here("token", "revoke", name, "--token-file", file)
    assert done.returncode == 0, done
    assert f"{name} is not in {file} any more." in done.stdout
    assert ("no token of the file has the role admin" in done.stderr) == (name == "admin")
    after = file.read_text()
    assert [each["name"] for each in listed(file)] == [
        each for each in ("reader", "writer", "other", "narrow", "admin") if each != name
    ]
    gone = [line for line in before.splitlines() if line and line not in after.splitlines()]
    assert {line.split(" = ")[0] for line in gone} >= {"name", "hash"}
    assert all(name in line or line.split(" = ")[0] in GRANT_FIELDS for line in gone)
    assert after.count("# whose") == before.count("# whose")
    assert after.startswith("# ours\n")
    assert after.endswith("# the end\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    caller = "narrow_writer" if name == "narrow" else name
    found = tokens.load(file)
    assert {each for each, token in made.items() if found.find(token) is None} == {caller}


GRANT_FIELDS = ("name", "role", "hash", "namespaces", "slugs")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has the name 'a'"),
        (f"tokens = [{{name = 'a', role = 'read', hash = 'sha256:{'0' * 64}'}}]", "an editor"),
        ("[[tokens]]\nname = 'a'", "role"),
    ],
)
def test_what_cannot_be_taken_back_changes_nothing(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    file.chmod(0o600)
    done = run_here("token", "revoke", "a", "--token-file", file)
    assert done.returncode == (1 if not text else 2)
    assert says in done.stderr
    assert file.read_text() == text
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_token_that_was_taken_back_is_refused_from_sighup_on(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    made = make_tokens(file)
    server = serve(token_file=file, token=made["writer"])
    assert server.client.delete(of_held()).status_code == 200
    assert run_here("token", "revoke", "writer", "--token-file", file).returncode == 0
    assert server.client.delete(of_held()).status_code == 200
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.client.delete(of_held()).status_code == 401)


@pytest.mark.parametrize(
    ("role", "limits"),
    [
        (Role.ADMIN, {"namespaces": [OURS]}),
        (Role.READ, {"slugs": ["a"]}),
        (Role.WRITE, {}),
        (Role.READ, {"name": "two words"}),
    ],
    ids=str,
)
def test_a_grant_that_makes_no_sense_is_refused(
    tmp_path: Path, role: Role, limits: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError):
        tokens.create(tmp_path / "tokens.toml", role, **limits)
    assert os.listdir(tmp_path) == []


GOOD = f"[[tokens]]\nname = 'a'\nrole = 'read'\nhash = 'sha256:{'0' * 64}'\n"


WRITER = GOOD.replace("'read'", "'write'")
BAD_FILES = {
    "nonsense": ("nonsense\n", "line 1"),
    "cut off": ("\n\n[[tokens]]\nname = \n", "line 4"),
    "another key": ("colour = 'red'", "'colour'"),
    "tokens as text": ("tokens = 'a'", "tokens"),
    "tokens as texts": ("tokens = ['a']", "tokens"),
    "unknown role": (GOOD.replace("'read'", "'root'"), "token 1 in .*'root'.* read, write, admin"),
    "no role": (GOOD.replace("role = 'read'", ""), "role is None"),
    "no name": (GOOD.replace("name = 'a'", ""), "name is None"),
    "name with a space": (GOOD.replace("'a'", "'a b'"), "name is 'a b'"),
    "token as name": (GOOD.replace("'a'", "'mreg_abcdef'"), "name looks like a token"),
    "number as name": (GOOD + GOOD.replace("'a'", "7"), "token 2 in .*: name is 7"),
    "short hash": (GOOD.replace("sha256:0", "sha256:"), "hash must be"),
    "token as hash": (GOOD.replace("sha256:" + "0" * 64, "mreg_abcdef"), "hash must be"),
    "another field": (GOOD + "colour = 'red'\n", "'colour' is no field"),
    "reader with namespaces": (GOOD + "namespaces = ['a']\n", "limit the role write only"),
    "reader with slugs": (GOOD + "slugs = ['a']\n", "limit the role write only"),
    "writer without namespaces": (WRITER, "namespaces is missing"),
    "namespaces as text": (WRITER + "namespaces = 'a'\n", "namespaces is 'a'"),
    "namespace that is none": (WRITER + "namespaces = ['a/b']\n", "namespaces is"),
    "slug that is none": (WRITER + "namespaces = ['a']\nslugs = ['A']\n", "slugs is"),
    "same name": (GOOD + GOOD, "the name a twice"),
    "same hash": (GOOD + GOOD.replace("'a'", "'b'"), "the hash sha256:0* twice"),
    "too large": ("#" * (1 << 20) + "#", "more than 1048576 bytes"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_token_file_that_is_not_as_it_should_be_is_refused_by_place(
    tmp_path: Path, what: str
) -> None:
    text, said = BAD_FILES[what]
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match=said) as refused:
        tokens.load(file)
    assert str(file) in refused.value.detail
    assert "abcdef" not in refused.value.detail
    with pytest.raises(SettingsError):
        tokens.create(file, Role.READ)
    assert file.read_text() == text


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602, 0o777])
def test_a_token_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(GOOD)
    file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        tokens.load(file)


def test_a_missing_token_file_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    assert "token new" in refusal_of(tmp_path, "--token-file", tmp_path / "none.toml")


def test_a_service_with_a_broken_token_file_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(GOOD.replace("'read'", "'root'"))
    file.chmod(0o600)
    assert "role is 'root'" in refusal_of(tmp_path, "--token-file", file)


def test_an_empty_token_file_admits_nobody(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.touch(mode=0o600)
    server = serve(token_file=file)
    problem_of(server.client.delete(of_held()), 401, "unauthenticated")
    assert server.client.get("/v1/owners").status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_takes_new_tokens_and_drops_old_ones_and_a_broken_file_changes_nothing(
    serve: Callable[..., Server], tmp_path: Path, workers: int
) -> None:
    file = tmp_path / "tokens.toml"
    _, first = tokens.create(file, Role.ADMIN, name="first")
    server = serve(token_file=file, workers=workers)

    def all_answer(token: str, status: int) -> bool:
        """Every worker: each connection may reach another one."""
        for _ in range(8 * workers):
            with httpx2.Client(base_url=server.url, headers=bearer(token)) as client:
                if client.delete("/v1/artifacts/none/_base").status_code != status:
                    return False
        return True

    assert all_answer(first, 200)
    _, second = tokens.create(file, Role.ADMIN, name="second")
    assert all_answer(second, 401)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: all_answer(second, 200))
    assert all_answer(first, 200)

    whole = file.read_text()
    file.write_text(whole + "broken")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.log.count("the tokens stay as they were") == workers)
    assert all_answer(first, 200)

    file.write_text("[[tokens]]" + whole.split("[[tokens]]")[2])
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: all_answer(first, 401))
    assert all_answer(second, 200)
    assert first not in server.log
    assert second not in server.log


# TLS


@dataclass(frozen=True)
class Certificates:
    """A certificate for 127.0.0.1, its key, and what trusts it."""

    chain: Path
    key: Path
    trust: ssl.SSLContext


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(chain, append=number > 0)
    issued.private_key_pem.write_to_path(key)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return Certificates(chain, key, trust)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_https_with_a_certificate(
    serve: Callable[..., Server], certificates: Certificates, workers: int
) -> None:
    server = serve(
        tls_certificate=certificates.chain,
        tls_key=certificates.key,
        trust=certificates.trust,
        workers=workers,
    )
    assert server.url.startswith("https://")
    assert server.register_copies(HELD, {KEY: CONTENT}).status_code == 200
    assert server.fetch(KEY).content == CONTENT
    own = server.client.delete(of_held(), headers={"origin": server.url})
    assert own.status_code == 200


def test_who_does_not_trust_the_certificate_is_not_served(
    serve: Callable[..., Server], certificates: Certificates
) -> None:
    flags = {"tls_certificate": certificates.chain, "tls_key": certificates.key}
    server = serve(**flags, trust=certificates.trust)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/live")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(server.url.replace("https", "http") + "/live")
    assert server.client.get("/live").status_code == 200


def test_a_certificate_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, certificates: Certificates
) -> None:
    other = trustme.CA().issue_cert("127.0.0.1")
    wrong = tmp_path / "wrong.pem"
    other.private_key_pem.write_to_path(wrong)
    chain = certificates.chain
    for arguments in (
        ["--tls-certificate", chain, "--tls-key", wrong],
        ["--tls-certificate", chain],
        ["--tls-certificate", tmp_path / "none.pem"],
        ["--tls-certificate", ROOT / "README.md", "--tls-key", certificates.key],
    ):
        said = refusal_of(tmp_path, *arguments)
        assert str(arguments[1]) in said
        assert "tls_certificate" in said
    assert "--tls-certificate" in refusal_of(tmp_path, "--tls-key", certificates.key)
