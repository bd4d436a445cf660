"""The pages: what they show, to whom, that names in them are harmless, and that lists are whole."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

import httpx2
import pytest

from registry.core.findings import Severity
from registry.core.records import ArtifactKey, Owner
from registry.server import tokens
from registry.server.pages.advice import ADVICE, SEVERITIES
from registry.server.pages.charts import bar_chart, line_chart
from registry.server.pages.findings import NAME_PATHS
from registry.server.pages.markup import broken, coded, linked
from registry.server.pages.running import TURN_S, _gently
from registry.server.pages.sql import questions
from registry.server.pages.words import WORDS
from registry.server.tokens import Role
from registry.store.opening import open_for_command
from registry.store.reads import deaths, owner_lines
from registry.store.reads.audit import CLASSES
from registry.store.reads.deaths import what_would_go_dark
from registry.store.reads.owner_lines import owners_of_instance
from tests.documents import blocks, section
from tests.exchanges import new_slug, problem_of, running, worker
from tests.support import ROOT, Server, bearer, checksum, in_place, sql, wait_for

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
VOID = {"meta", "br", "wbr", "link", "input"}
DOCUMENT = ROOT / "docs" / "audit.md"

HOSTILE = (
    "<script>alert(1)<!--.json",
    "\"onmouseover='alert(1)'.json",
    "{{ 7 * 7 }}{% raw %}.json",
    "safe\u202egpj.json",
    "in\u200bvisible\u2066.json",
    "&amp;javascript:alert(1).json",
    "x" * 250 + ".json",
    "größe 大きさ.json",
)
"""Names of files that a writer may choose."""


@dataclass
class Page(HTMLParser):
    """What is in a page: its elements, its links, and its text."""

    source: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def links(self) -> list[str]:
        return [str(a["href"]) for a in self.of("a")]

    @property
    def next(self) -> list[str]:
        """Where what follows is."""
        return [str(a["href"]) for a in self.of("a") if a.get("rel") == "next"]


def look(
    server: Server, url: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Page:
    """A page as a browser gets it, with all that every page has to keep to."""
    answer = server.client.get(url, headers={**BROWSER, **(headers or {})})
    assert answer.status_code == status, (url, answer.text)
    return checked(answer)


def checked(answer: httpx2.Response) -> Page:
    page = Page(answer.text)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "base"})
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}
        for name in ("href", "src", "action"):
            target = attributes.get(name) or "/"
            assert re.match("[/#](?!/)|data:image/svg", target), target
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == 1
    assert page.source.partition("</head>")[0].count("<title>") == 1
    labelled = {attributes.get("for") for attributes in page.of("label")}
    for control in (*page.of("input"), *page.of("select"), *page.of("textarea")):
        assert control["id"] in labelled
    return page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "models").mkdir()
    with running(folder, artifact_root=str(folder / "models")) as started:
        hold(started, "hostile", *HOSTILE)
        yield started


def hold(server: Server, slug: str, *filenames: str, instance_id: int = 1) -> Owner:
    owner = worker(slug, instance_id)
    contents = {ArtifactKey(slug, "_base", name): slug.encode() for name in filenames}
    assert server.register_copies(owner, contents).status_code == 200
    return owner


# What every page has to keep to


def test_every_link_of_the_pages_leads_to_a_page(server: Server) -> None:
    leaving = hold(server, new_slug(), "config.json")
    server.unregister(leaving)
    seen: dict[str, int] = {}
    found = ["/"]
    while found and len(seen) < 150:
        url = found.pop(0)
        if url in seen or not re.match(r"/$|/ui/", url):
            continue
        # Those about what is gone say so, with what is left of it.
        may_be_gone = url.startswith(("/ui/models/", "/ui/artifacts/", "/ui/owners/"))
        answer = server.client.get(url, headers=BROWSER)
        seen[url] = answer.status_code
        assert answer.status_code == 200 or (may_be_gone and answer.status_code == 404), url
        links = checked(answer).links
        found += [link for link in links if not link.startswith(("#", "/ui/sql?"))]
    assert {urlsplit(url).path.split("/")[2] for url in seen if url != "/"} == {
        *("models", "owners", "artifacts", "events", "audit", "sql", "words")
    }
    assert 404 in seen.values()


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_shown_as_the_text_that_it_is(server: Server, name: str) -> None:
    path = f"/ui/artifacts/hostile/_base/{quote(name, safe='')}"
    for url in (path, "/ui/models/hostile/_base", "/ui/events?slug=hostile", "/"):
        page = look(server, url)
        assert "alert" not in "".join(str(attributes) for attributes in page.of("script"))
        unseen = re.search("[\u200b\u202e\u2066]", page.source)
        assert unseen is None
    page = look(server, path)
    shown = "".join(c if c not in "\u200b\u202e\u2066" else ascii(c)[1:-1] for c in name)
    assert f"hostile/_base/{shown}" in page.text
    model = look(server, "/ui/models/hostile/_base")
    assert path in model.links


def test_a_hostile_value_of_a_statement_is_shown_as_text(server: Server) -> None:
    query = "SELECT '<img src=x onerror=alert(1)>' AS \"<b>\", char(0x202e) || 'x', 1, NULL"
    page = look(server, f"/ui/sql?{urlencode({'q': query})}")
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "\\u202ex" in page.text
    assert [str(each) for each in page.of("b")] == []


@pytest.mark.parametrize(
    "query",
    [
        *("?q=%22%3E%3Cscript%3E", "?q=" + "%E2%80%AE" * 300, "?q=a/b/c/d/e/f", "?q=a//b"),
        *("?after=%00", "?after=../..", "?nothing=1", "?q=1&q=2", "?q=" + "9" * 1001),
    ],
)
@pytest.mark.parametrize("path", ["/ui/models", "/ui/owners", "/ui/events", "/ui/audit", "/ui/sql"])
def test_a_hostile_query_is_answered_by_a_harmless_page(
    server: Server, path: str, query: str
) -> None:
    answer = server.client.get(path + query, headers=BROWSER)
    assert answer.status_code in (200, 303, 422)
    if answer.status_code != 303:
        assert "\u202e" not in checked(answer).source
    else:
        assert answer.headers["location"].startswith("/ui/")


# Who asks


def test_programs_get_json_at_the_root_and_people_a_page(server: Server) -> None:
    expected = {"docs": "/docs", "openapi": "/openapi.json", "name": "metadata-registry"}
    for accept in ("*/*", "application/json", "text/html;q=0", "text/html;q=x", "text/plain", ""):
        answer = server.client.get("/", headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["vary"] == "Accept"
        assert answer.json().items() >= expected.items()
    for accept in (BROWSER["accept"], "text/html", "TEXT/HTML;q=0.5", "application/xhtml+xml"):
        checked(server.client.get("/", headers={"accept": accept}))
    both = {"accept": "text/html;q=0.5, application/json"}
    assert server.client.get("/", headers=both).headers["content-type"] == "application/json"


def test_a_refusal_is_a_page_for_browsers_and_a_problem_for_programs(server: Server) -> None:
    for url, status, code in (
        ("/ui/owners/a/b/c/1/_base", 404, "unknown_owner"),
        ("/ui/owners/a/b/c/x/_base", 422, "invalid"),
        ("/ui/models/UPPER/_base", 422, "invalid"),
        ("/ui/nothing", 404, "not_found"),
        ("/ui/events?kind=none", 422, "invalid"),
        ("/ui/events?until=yesterday", 422, "invalid"),
        ("/ui/events?request_id=%00", 422, "invalid"),
        ("/ui/sql?q=DELETE+FROM+owners", 422, "invalid"),
        ("/ui/sql?q=SELECT+1&format=xml", 422, "invalid"),
    ):
        problem = problem_of(server.client.get(url), status, code)
        assert problem["detail"] in look(server, url, status).text
    posted = server.client.post("/ui/models", headers=BROWSER)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")
    checked(posted)


def test_what_is_no_page_refuses_browsers_with_a_problem_too(server: Server) -> None:
    problem_of(server.client.get("/v1/nothing", headers=BROWSER), 404, "not_found")


@dataclass(frozen=True)
class Guarded:
    server: Server
    tokens: dict[Role, str]
    path: str


@pytest.fixture(scope="module", params=[False, True], ids=["reads open", "reads by token"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    models = folder / "models"
    models.mkdir()
    (models / "config.json").write_text("{}")
    file = folder / "tokens.toml"
    made = {
        role: tokens.create(file, role, namespaces=["prod"] if role is Role.WRITE else [])[1]
        for role in Role
    }
    flags: dict[str, Any] = {"require_read_token": True} if request.param else {}
    with running(folder, token_file=file, artifact_root=str(models), **flags) as server:
        server.client.headers.update(bearer(made[Role.ADMIN]))
        owner = Owner("prod", "backend", "generate", 1)
        key = ArtifactKey("placed", "_base", "config.json")
        assert server.register(owner, [in_place(key, models / "config.json")]).status_code == 200
        (models / "config.json").write_text("[]")
        assert server.fetch(key).status_code == 503
        del server.client.headers["authorization"]
        yield Guarded(server, made, str(models / "config.json"))


def basic(password: str, user: str = "anybody") -> dict[str, str]:
    code = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {code}"}


PAGES = ("/", "/ui/models", "/ui/artifacts/placed/_base/config.json", "/ui/audit", "/ui/events")


@pytest.mark.parametrize("role", [None, *Role], ids=str)
def test_paths_on_disk_and_sql_are_for_administrators(guarded: Guarded, role: Role | None) -> None:
    server = guarded.server
    headers = {} if role is None else basic(guarded.tokens[role])
    reads_open = server.client.get("/v1/owners").status_code == 200
    for url in PAGES:
        if role is None and not reads_open:
            assert server.client.get(url, headers=BROWSER).status_code == 401
            continue
        # A count of the overview may be older than what was found since.
        wait_for(lambda: "drifted_ref" in look(server, "/ui/audit", headers=headers).text)
        page = look(server, url, headers=headers)
        has_path = url.startswith("/ui/artifacts") or url == "/ui/audit"
        assert (guarded.path in page.text) == (has_path and role is Role.ADMIN), url
        if role is not None:
            assert f"signed in as {role}" in page.text
    status = {None: 401, Role.ADMIN: 200}.get(role, 403)
    look(server, "/ui/sql?q=SELECT+1", status, headers)
    assert server.client.get("/ui/sql", headers=headers).status_code == status


def test_a_browser_is_asked_for_a_password_and_a_program_for_a_bearer_token(
    guarded: Guarded,
) -> None:
    client = guarded.server.client
    for wrong in ({}, basic("mreg_" + "0" * 43), {"authorization": "Basic !"}):
        asked = client.get("/ui/sql", headers={**BROWSER, **wrong})
        assert asked.status_code == 401
        assert (
            asked.headers["www-authenticate"] == 'Basic realm="metadata-registry", charset="UTF-8"'
        )
        checked(asked)
        problem = client.get("/ui/sql", headers=wrong)
        problem_of(problem, 401, "unauthenticated")
        assert problem.headers["www-authenticate"].startswith("Bearer")
    token = guarded.tokens[Role.ADMIN]
    for right in (basic(token), basic(token, ""), basic("", token), bearer(token)):
        assert client.get("/ui/sql", headers={**BROWSER, **right}).status_code == 200


def test_a_password_is_good_for_pages_alone(guarded: Guarded) -> None:
    headers = basic(guarded.tokens[Role.ADMIN])
    client = guarded.server.client
    assert client.delete("/v1/artifacts/none/_base", headers=headers).status_code == 401


def test_without_tokens_sql_and_paths_are_not_for_others_who_can_reach_the_service(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_text("{}")
    server = serve(host="0.0.0.0", insecure=True, artifact_root=str(tmp_path / "models"))
    key = ArtifactKey("placed", "_base", "config.json")
    placed = in_place(key, tmp_path / "models" / "config.json")
    assert server.register(worker("placed"), [placed]).status_code == 200
    assert "--token-file" in look(server, "/ui/sql", 403).text
    assert str(tmp_path) not in look(server, f"/ui/artifacts/{key}").text


def test_on_loopback_without_tokens_paths_are_shown(server: Server) -> None:
    slug = new_slug()
    path = server.database.parent / "models" / slug
    path.write_text("{}")
    key = ArtifactKey(slug, "_base", "config.json")
    assert server.register(worker(slug), [in_place(key, path)]).status_code == 200
    assert str(path) in look(server, f"/ui/artifacts/{key}").text


# Without jinja2


def test_without_jinja2_programs_are_answered_and_people_told_what_to_install(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "without" / "jinja2").mkdir(parents=True)
    (tmp_path / "without" / "jinja2" / "__init__.py").write_text("raise ImportError('left out')\n")
    paths = [str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    server = serve()
    assert server.client.get("/").json()["docs"] == "/docs"
    for url in ("/", "/ui/models", "/ui/nothing"):
        answer = server.client.get(url, headers=BROWSER)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "pip install 'metadata-registry[web]'" in answer.text
    assert server.client.get("/docs").status_code == 200


# What is shown


def test_a_worker_shows_which_models_would_go_dark_without_it(server: Server) -> None:
    alone, shared = new_slug(), new_slug()
    owner = Owner(alone, "backend", "generate", 77)
    lora = Owner(alone, "backend", "generate", 77, "adapter")
    prefill = Owner(alone, "backend", "prefill", 77)
    other = Owner(alone, "backend", "generate", 78)
    keys = [ArtifactKey(alone, "_base", "a.json"), ArtifactKey(shared, "_base", "a.json")]
    server.register_copies(owner, dict.fromkeys(keys, b"1"))
    server.register_copies(prefill, {keys[0]: b"1"})
    server.register_copies(lora, {ArtifactKey(alone, "adapter", "adapter_config.json"): b"2"})
    server.register_copies(other, {keys[1]: b"1"})
    page = look(server, f"/ui/owners/{owner}")
    dark = page.source.partition('id="dark"')[2].partition("Owners of this instance")[0]
    assert f"/ui/models/{alone}/_base" in dark
    assert f"/ui/models/{alone}/adapter" in dark
    assert shared not in dark
    assert {f"/ui/owners/{each}" for each in (owner, lora, prefill)} <= set(page.links)
    assert "No model would go dark" in look(server, f"/ui/owners/{other}").text


@dataclass(frozen=True)
class Drifted:
    slug: str
    key: ArtifactKey
    holders: list[Owner]


@pytest.fixture(scope="module")
def drifted(server: Server) -> Drifted:
    """A file in place whose two holders hold the same path, which has other bytes by now."""
    slug = new_slug()
    path = server.database.parent / "models" / slug
    path.write_text("{}")
    key = ArtifactKey(slug, "_base", "config.json")
    holders = [worker(slug, 1), worker(slug, 2)]
    for each in holders:
        registered = server.register(
            each, [in_place(key, path)], worker_name=f"gpu-{each.instance_id}", lease_ttl_s=600
        )
        assert registered.status_code == 200
    path.write_text("[]")
    assert server.fetch(key).status_code == 503
    wait_for(lambda: "both holders have other bytes" in look(server, f"/ui/models?q={slug}").text)
    wait_for(lambda: f"/ui/models/{slug}/_base" in look(server, "/").source.partition("Find")[0])
    return Drifted(slug, key, holders)


def test_what_is_dark_already_is_told_apart_from_what_would_go_dark(
    server: Server, drifted: Drifted
) -> None:
    slug, alone = drifted.slug, new_slug()
    key, first = drifted.key, drifted.holders[0]
    page = look(server, f"/ui/owners/{first}")
    dark = page.source.partition('id="dark"')[2].partition("What it holds")[0]
    assert "No model would go dark" in dark
    assert "not serveable already" in dark
    assert f"/ui/artifacts/{key}" in dark
    assert "both holders have other bytes than were registered" in dark
    assert "1 with wrong bytes" in page.text
    held = page.text.partition("What it holds")[2]
    assert re.search(r"drifted (less than 1 s|\d+ s) ago not serveable", held)
    assert "Not all was looked at" not in page.text
    assert server.register_copies(first, {ArtifactKey(alone, "_base", "a"): b"1"}).is_success
    dark = look(server, f"/ui/owners/{first}").source.partition('id="dark"')[2]
    models = dark.partition("not serveable already")[0]
    assert f"/ui/models/{alone}/_base" in models
    assert slug not in models


def test_a_worker_says_when_it_would_go_dark(server: Server) -> None:
    slug, other = new_slug(), new_slug()
    with_lease, without = worker(slug), worker(other)
    key = ArtifactKey(slug, "_base", "a")
    assert server.register_copies(with_lease, {key: b"1"}, lease_ttl_s=600).is_success
    other_key = ArtifactKey(other, "_base", "a")
    assert server.register_copies(without, {other_key: b"1"}, lease_ttl_s=None).is_success
    assert re.search(
        r"When: 2\d{3}-[-\d]+ [\d:]+ UTC, in \d+ min( \d+ s)?, .* the grace of \d+ \w+ are over",
        look(server, f"/ui/owners/{with_lease}").text,
    )
    assert "1 of its owners has no lease" in look(server, f"/ui/owners/{without}").text


def test_only_what_was_not_looked_at_is_said_to_be_left_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = new_slug()
    hold(server, slug, "a", "b", "c")
    engine = open_for_command(server.place.url, to_write=False)
    with closing(engine), engine.read() as conn:
        (line,) = owners_of_instance(conn, worker(slug))
        assert what_would_go_dark(conn, [line]).all_refs
        monkeypatch.setattr(deaths, "REFS_LOOKED_AT", 2)
        few = what_would_go_dark(conn, [line])
    assert (few.all_refs, few.dark) == (False, (deaths.DarkModel(slug, "_base", 2),))


def test_the_overview_says_first_which_models_cannot_be_served(
    server: Server, drifted: Drifted
) -> None:
    slug, key = drifted.slug, drifted.key
    page = look(server, "/")
    assert re.search(r"\d+ models? cannot be served", page.text.partition("Find")[0])
    assert f"/ui/artifacts/{key}" in page.source.partition("Find")[0]
    models = page.source.partition('id="models"')[2]
    assert models.index(f"/ui/models/{slug}/_base") < models.index('"badge ok"')
    kinds = [link.partition("=")[2] for link in page.links if link.startswith("/ui/audit?")]
    assert kinds.index("unserveable_entry") < kinds.index("drifted_ref")
    for url in ("/", "/ui/audit?class=drifted_ref", "/ui/audit"):
        assert "why a file cannot be served" in look(server, url).text
    scale = look(server, "/ui/audit").text.partition("How bad it is")[2]
    assert all(f"{name}{meaning}" in scale for name, meaning in SEVERITIES.items())


def test_what_is_typed_is_shown_as_code_wherever_advice_is_given(
    server: Server, drifted: Drifted
) -> None:
    assert coded("`a` & <b>`") == "<code>a</code> &amp; &lt;b&gt;`"
    for url in ("/", "/ui/audit"):
        page = look(server, url)
        assert "<code>metadata-registry rm SLUG/SUFFIX</code>" in page.source
        assert not re.search("<code>|`", page.text)


def test_names_in_a_text_lead_to_their_pages_and_nothing_else_does() -> None:
    owner, checksum = "a/b/c/1/_base", "blake3:" + "0" * 64
    link = f'<a href="/ui/owners/{owner}">{owner.replace("/", "/<wbr>")}</a>'
    assert linked(f"held by {owner}: which?") == f"held by {link}: which?"
    assert linked(f"(superseded by {owner})") == f"(superseded by {link})"
    assert linked(checksum) == f'<code title="{checksum}">{checksum[:19]}</code>'
    for text in (
        f"/tmp/{owner}",
        f"{owner}/x",
        "a/b/c/99999999999999999999/_base",
        f"x{checksum}0",
    ):
        assert "href" not in linked(text)
    assert linked("<a href='x'>\u202e") == "&lt;a href=&#39;x&#39;&gt;\\u202e"
    assert broken("<x>/" + "y" * 50) == (f'&lt;x&gt;/<wbr><span class="long">{"y" * 50}</span>')


def test_an_owner_that_never_registered_has_a_page_with_its_events(server: Server) -> None:
    slug = new_slug()
    key = ArtifactKey(slug, "_base", "config.json")
    hold(server, slug, "config.json")
    stranger = worker(slug, 987654)
    assert server.register_copies(stranger, {key: b"other"}).status_code == 409
    page = look(server, f"/ui/owners/{stranger}", 404)
    assert "was refused: others hold the key with other content" in page.text
    assert f"/ui/owners/{worker(slug)}" in page.links
    assert f"/ui/events?owner={quote(str(stranger), safe='')}" in page.links
    assert f"/ui/owners/{stranger}" in look(server, "/ui/owners?q=987654").links
    # What is found wrong is shown where it is: on the pages of the file, the model, the owner.
    wait_for(lambda: f"/ui/owners/{stranger}" in look(server, "/ui/audit").links)
    for url, status in (
        (f"/ui/artifacts/{key}", 200),
        (f"/ui/models/{slug}/_base", 200),
        (f"/ui/owners/{stranger}", 404),
    ):
        page = look(server, url, status)
        wrong = page.text.partition("What is wrong here")[2]
        assert "unresolved_conflict" in wrong
        assert "--on-conflict revision" in wrong
        assert f"/ui/owners/{stranger}" in page.links
    assert "What is wrong here" not in look(server, "/ui/models/hostile/_base").text


def test_a_removed_model_is_found_by_its_beginning(server: Server) -> None:
    slug = f"{new_slug()}-removed"
    server.unregister(hold(server, slug, "config.json"))
    page = look(server, f"/ui/models?q={slug[:-3]}")
    assert f"/ui/events?slug={slug}&kind=removed" in page.links
    assert "knows none" in look(server, f"/ui/models?q={slug}-x").text


def test_what_was_removed_together_is_one_line_that_says_whether_it_came_back(
    server: Server,
) -> None:
    slug = new_slug()

    def removed() -> str:
        text = look(server, "/").text.partition("Removed last")[2]
        return text.partition(f"{slug}/_base: ")[2].partition("the file is gone")[0].strip()

    server.unregister(hold(server, slug, "a", "b", "c"))
    assert removed() == "3 files"
    hold(server, slug, "a")
    assert removed() == "3 files 1 of them registered again since"
    hold(server, slug, "b", "c")
    assert removed() == "3 files registered again since"


def test_an_owner_that_ended_says_what_it_held(server: Server) -> None:
    slug = new_slug()
    server.unregister(hold(server, slug, "early"))
    owner = hold(server, slug, "config.json")
    server.unregister(owner)
    page = look(server, f"/ui/owners/{owner}")
    assert "When it ended it let go of these" in page.text
    assert f"/ui/artifacts/{slug}/_base/config.json" in page.links
    assert f"/ui/artifacts/{slug}/_base/early" not in page.links


def test_who_took_the_place_of_an_owner_is_a_link(server: Server) -> None:
    slug = new_slug()
    old, new = worker(slug, 1), worker(slug, 2)
    for each in (old, new):
        contents = {ArtifactKey(slug, "_base", "a"): b"1"}
        assert server.register_copies(each, contents, worker_name="gpu").is_success
    for url in (f"/ui/owners/{old}", f"/ui/events?owner={quote(str(old))}"):
        page = look(server, url)
        assert f"superseded by {new}" in page.text
        assert f"/ui/owners/{new}" in page.links


def test_owners_are_listed_by_state(server: Server) -> None:
    slug = new_slug()
    ended, live = hold(server, slug, "a", instance_id=1), hold(server, slug, "a", instance_id=2)
    server.unregister(ended)

    def listed(query: str) -> set[str]:
        ours = f"/ui/owners/{slug}/"
        return set(all_of(server, f"/ui/owners{query}", lambda link: link.startswith(ours)))

    gone, there = f"/ui/owners/{ended}", f"/ui/owners/{live}"
    assert listed("") == listed("?state=active") == {there}
    assert listed("?state=detached") == {gone}
    assert listed("?state=all") == listed(f"?q={slug}") == {gone, there}
    assert listed("?state=suspect") == set()
    look(server, "/ui/owners?state=none", 422)
    wait_for(lambda: "/ui/owners?state=detached" in look(server, "/").links)


def test_owners_are_listed_by_state_a_part_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = new_slug()
    owners = [hold(server, slug, "a", instance_id=number) for number in range(1, 4)]
    server.unregister(owners[0])
    monkeypatch.setattr(owner_lines, "STATES_LOOKED_AT", 2)
    engine = open_for_command(server.place.url, to_write=False)
    after: Owner | None = worker(slug, 0)
    found = list[Owner]()
    with closing(engine), engine.read() as conn:
        for _ in range(2):
            lines, after = owner_lines.owners_in_states(conn, after, {"active", "suspect"}, 50)
            found += [line.record.owner for line in lines if line.record.owner.namespace == slug]
    assert found == owners[1:]


def test_the_last_look_at_a_file_says_when_it_was(server: Server, drifted: Drifted) -> None:
    page = look(server, f"/ui/artifacts/{drifted.key}")
    assert re.search(r"drifted (less than 1 s|\d+ (s|min)( \d+ s)?) ago", page.text)
    assert "gpu-1" in page.text


def test_times_are_spelled_in_one_way(server: Server, drifted: Drifted) -> None:
    owner = f"/ui/owners/{drifted.holders[0]}"
    for url in ("/", "/ui/audit", "/ui/events", owner, f"/ui/artifacts/{drifted.key}"):
        text = look(server, url).text
        assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
        assert re.search(r"\d\dT\d\d:\d\d:\d\d", text) is None


def test_every_word_is_explained(server: Server) -> None:
    page = look(server, "/ui/words")
    assert all(f"{word}{meaning}" in page.text for word, meaning in WORDS.items())
    assert "/ui/words" in look(server, "/").links


def test_a_file_that_is_gone_says_why_and_when(server: Server) -> None:
    slug = new_slug()
    owner = hold(server, slug, "config.json")
    server.unregister(owner)
    page = look(server, f"/ui/artifacts/{slug}/_base/config.json", 404)
    assert "the file is gone: its last holder detached" in page.text
    gone = look(server, f"/ui/models/{slug}/_base", 404)
    (link,) = [each for each in gone.links if each.startswith("/ui/events?")]
    assert "its last holder detached" in look(server, link).text


def test_a_model_that_cannot_be_served_says_which_file_and_why(server: Server) -> None:
    slug = new_slug()
    path = server.database.parent / "models" / slug
    path.write_text("{}")
    key = ArtifactKey(slug, "_base", "config.json")
    assert server.register(worker(slug), [in_place(key, path)]).status_code == 200
    assert "not serveable" not in look(server, f"/ui/models?q={slug}").text
    path.write_text("[]")
    assert server.fetch(key).status_code == 503
    why = "not serveable config.json: its only holder has other bytes than were registered"
    wait_for(lambda: why in look(server, f"/ui/models?q={slug}").text)


def test_what_is_wrong_is_shown_with_what_to_do(server: Server) -> None:
    slug = new_slug()
    hold(server, slug, "config.json")
    refused = server.register_copies(
        worker(slug, 2), {ArtifactKey(slug, "_base", "config.json"): b"other"}
    )
    assert refused.status_code == 409
    refused_owner = f"/ui/owners/{worker(slug, 2)}"
    wait_for(lambda: refused_owner in look(server, "/ui/audit").links)
    for url in ("/", "/ui/audit", "/ui/audit?class=unresolved_conflict"):
        assert "--on-conflict revision" in look(server, url).text
    page = look(server, "/ui/audit?class=unresolved_conflict")
    assert refused_owner in page.links
    assert f"/ui/artifacts/{slug}/_base/config.json" in page.links
    assert "immortal_owner" not in page.text


def test_the_overview_counts_what_is_there_and_draws_the_last_day(server: Server) -> None:
    wait_for(lambda: len(look(server, "/").of("svg")) == 2)  # It may still be counting.
    page = look(server, "/")
    with sql(server.database) as connection:
        ((events,),) = connection.execute("SELECT MAX(id) FROM events").fetchall()
    changes = re.search(r"([\d,]+) changes in the last 24 hours", page.text)
    assert changes is not None
    assert 0 < int(changes[1].replace(",", "")) <= events


def test_the_last_backup_is_shown(serve: Callable[..., Server], tmp_path: Path) -> None:
    from tests.commands import run_here

    server = serve()
    with sql(server.database) as connection:
        before = connection.execute("SELECT * FROM settings WHERE name = 'last_backup_at'")
        assert before.fetchall() == []
    url = f"sqlite:///{server.database}"
    assert run_here("db", "backup", tmp_path / "copy.db", "--database-url", url).returncode == 0
    shown = re.compile(r"Last backup\s*(less than 1 s|\d+ s) ago").search
    wait_for(lambda: shown(look(server, "/").text) is not None)


@pytest.mark.parametrize(
    ("typed", "leads_to"),
    [
        ("hostile/_base", "/ui/models/hostile/_base"),
        ("hostile/_base/a b.json", "/ui/artifacts/hostile/_base/a%20b.json"),
        ("none/none", None),
        ("Hostile", None),
    ],
)
def test_what_is_typed_is_found(server: Server, typed: str, leads_to: str | None) -> None:
    answer = server.client.get("/ui/models", params={"q": typed}, headers=BROWSER)
    if leads_to is None:
        assert answer.status_code == 200
        assert ("/ui/models/hostile/_base" in checked(answer).links) == (typed == "Hostile")
    else:
        assert (answer.status_code, answer.headers["location"]) == (303, leads_to)


def test_a_worker_is_found_by_instance_by_name_and_by_its_beginning(server: Server) -> None:
    slug = new_slug()
    owner = Owner(slug, "backend", "generate", 424242)
    lora = Owner(slug, "backend", "generate", 424242, "adapter")
    for each in (owner, lora):
        assert server.register(each, [], worker_name=f"gpu-of-{slug}").status_code == 200
    both = {f"/ui/owners/{owner}", f"/ui/owners/{lora}"}
    beginnings = [slug, f"{slug}/backend", f"{slug}/backend/generate/424242"]
    for typed in ("424242", f"gpu-of-{slug}", *beginnings):
        found = look(server, f"/ui/owners?{urlencode({'q': typed})}").links
        assert {link for link in found if slug in link} == both, typed
    whole = server.client.get("/ui/owners", params={"q": str(owner)}, headers=BROWSER)
    assert whole.headers["location"] == f"/ui/owners/{owner}"


# Lists are whole


def all_of(server: Server, url: str, wanted: Callable[[str], bool]) -> list[str]:
    """The links on a list and on all that follow it."""
    found: list[str] = []
    following = [url]
    while following:
        assert len(found) < 1000
        page = look(server, following[0])
        found += [link for link in dict.fromkeys(page.links) if wanted(link)]
        following = page.next
    return found


def test_lists_are_shown_in_parts_of_which_none_is_missing(server: Server) -> None:
    slug = new_slug()
    models = [f"{slug}-many-{number:03}" for number in range(120)]
    owner = worker(slug, 500)
    contents = {ArtifactKey(model, "_base", "config.json"): b"1" for model in models}
    assert server.register_copies(owner, contents).status_code == 200
    listed = all_of(server, f"/ui/models?q={slug}-many", lambda link: f"/{slug}-many-" in link)
    assert listed == [f"/ui/models/{model}/_base" for model in models]
    held = all_of(server, f"/ui/owners/{owner}", lambda link: "/ui/artifacts/" in link)
    assert sorted(held) == [f"/ui/artifacts/{model}/_base/config.json" for model in models]

    key = ArtifactKey(models[0], "_base", "config.json")
    others = [Owner(slug, "backend", "generate", number) for number in range(100, 220)]
    for each in others:
        assert server.register(each, [{**_line(key, b"1")}]).status_code == 200
    everybody = sorted(f"/ui/owners/{each}" for each in (*others, owner))
    is_owner = re.compile(f"/ui/owners/{slug}/").match
    by_file = all_of(server, f"/ui/artifacts/{key}", lambda link: bool(is_owner(link)))
    # The last events of the file name some of them again.
    assert sorted(set(by_file)) == everybody
    by_model = all_of(server, f"/ui/models/{models[0]}/_base", lambda link: bool(is_owner(link)))
    assert sorted(by_model) == everybody
    by_name = all_of(server, f"/ui/owners?q={slug}/backend", lambda link: bool(is_owner(link)))
    assert sorted(by_name) == everybody

    files = {ArtifactKey(slug, "_base", f"{number:03}.json"): b"1" for number in range(120)}
    assert server.register_copies(worker(slug, 501), files).status_code == 200
    of_model = all_of(server, f"/ui/models/{slug}/_base", lambda link: "/ui/artifacts/" in link)
    assert of_model == [f"/ui/artifacts/{each}" for each in files]


def _line(key: ArtifactKey, content: bytes) -> dict[str, object]:
    names = {"slug": key.slug, "suffix": key.suffix, "filename": key.filename}
    return {**names, "checksum": checksum(content), "size": len(content)}


def test_the_journal_is_shown_whole_and_by_filters(server: Server) -> None:
    slug = new_slug()
    for _ in range(15):
        server.unregister(hold(server, slug, "config.json"))
    with sql(server.database) as connection:
        rows = connection.execute(
            "SELECT id, kind FROM events WHERE slug = ? ORDER BY id DESC", [slug]
        ).fetchall()
    url, shown = f"/ui/events?slug={slug}", list[int]()
    while url:
        page = look(server, url)
        shown += map(int, re.findall(r", event (\d+)", page.text))
        url = page.next[0] if page.next else ""
    assert shown == [event_id for event_id, _ in rows]
    removed = look(server, f"/ui/events?slug={slug}&kind=removed&owner=&until=")
    assert removed.text.count("its last holder detached") == 15
    assert "Events, the newest first" not in look(server, "/ui/events?until=2001-01-01T00:00").text
    assert look(server, "/ui/events?until=2999-01-01T00:00").text.count("event ") >= 50


# SQL


def ask(server: Server, query: str, **more: str) -> httpx2.Response:
    return server.client.get("/ui/sql", params={"q": query, **more}, headers=BROWSER)


def test_a_statement_is_answered_as_a_table_as_csv_and_as_json(server: Server) -> None:
    query = "SELECT 1 AS one, 'a,\"b\"' AS two, NULL AS three, x'00ff' AS four"
    page = checked(ask(server, query))
    assert query in page.text
    assert "00ff" in page.text
    csv = ask(server, query, format="csv")
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert csv.headers["content-disposition"].startswith("attachment")
    assert csv.text == 'one,two,three,four\r\n1,"a,""b""",,00ff\r\n'
    found = ask(server, query, format="json")
    assert found.headers["content-type"] == "application/json"
    assert json.loads(found.text) == [{"one": 1, "two": 'a,"b"', "three": None, "four": "00ff"}]


MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"


def test_a_page_shows_the_first_rows_and_data_is_never_a_part(server: Server) -> None:
    assert "1,000 rows: the first of more" in checked(ask(server, MANY.format(1001))).text
    assert len(ask(server, MANY.format(10_000), format="json").json()) == 10_000
    refused = ask(server, MANY.format(10_001), format="csv")
    assert refused.status_code == 422
    assert "LIMIT" in checked(refused).text


@pytest.mark.parametrize(
    "query",
    [
        *("DELETE FROM owners", "ATTACH 'x' AS y", "PRAGMA user_version = 7", "SELECT 1; SELECT 2"),
        *("nonsense", "SELECT * FROM nothing", "SELECT hex(zeroblob(1 << 24))", "SELECT 1 --\0"),
    ],
)
def test_what_is_refused_is_said_beside_the_statement(server: Server, query: str) -> None:
    answer = ask(server, query)
    assert answer.status_code == 422
    page = checked(answer)
    assert "refused" in page.text
    if query.isprintable():
        assert query in page.text


def test_another_site_cannot_have_a_browser_ask_but_by_a_link(server: Server) -> None:
    for site, destination, status in (
        ("cross-site", "image", 403),
        ("same-site", "empty", 403),
        ("cross-site", "iframe", 403),
        ("cross-site", "document", 200),
        ("none", "document", 200),
        ("same-origin", "document", 200),
    ):
        headers = {"sec-fetch-site": site, "sec-fetch-dest": destination}
        look(server, "/ui/sql?q=SELECT+1", status, headers)


@pytest.mark.parametrize("question", questions(), ids=lambda question: question[0])
def test_every_saved_question_is_answered(server: Server, question: tuple[str, str]) -> None:
    answer = ask(server, question[1])
    assert answer.status_code == 200, answer.text
    links = [urljoin("/", link) for link in look(server, "/ui/sql").links]
    assert f"/ui/sql?{urlencode({'q': question[1]})}" in links


def test_the_saved_questions_are_those_of_the_documentation() -> None:
    documented = [block.text for block in blocks(DOCUMENT) if block.language == "sql"]
    assert [query for _, query in questions()] == documented
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [title for title, _ in questions() if title.rstrip(".?") not in text] == []


# Texts and drawings


def test_the_advice_is_that_of_the_documentation() -> None:
    assert ADVICE.keys() == CLASSES.keys()
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", section(DOCUMENT, "## The findings"))
    for name, advice in ADVICE.items():
        assert re.search(
            rf"^\| `{name}` \| \w+ \| {re.escape(advice.what)} \| {re.escape(advice.do)} \|$",
            text,
            re.M,
        ), name
    assert CLASSES.keys() >= NAME_PATHS


def test_the_scale_of_severities_is_that_of_the_documentation() -> None:
    text = section(DOCUMENT, "## The findings")
    assert list(SEVERITIES) == [each.value for each in Severity]
    for name, meaning in SEVERITIES.items():
        assert f"| {name} | {meaning} |" in text


@pytest.mark.parametrize("largest", [0, 1, 4, 5, 9, 10, 11, 99, 1234, 10**9])
def test_a_chart_has_room_for_its_largest_value(largest: int) -> None:
    labels = [f"{hour:02}:00" for hour in range(24)]
    chart = bar_chart("title", "says", [largest] * 24, labels)
    assert all(0 < bar.y <= chart.bottom and bar.height >= 0 for bar in chart.bars)
    drawn = line_chart("title", "says", [None] * 3 + [largest] * 21, labels).line.split()
    assert len(drawn) == 21
    assert all(0 < float(point.split(",")[1]) <= chart.bottom for point in drawn)


def test_a_page_that_is_made_lets_others_have_their_turn_soon() -> None:
    """The interpreter's own 5 ms are added to every read meanwhile."""
    usual_s = sys.getswitchinterval()
    assert _gently(sys.getswitchinterval) == pytest.approx(TURN_S)
    with pytest.raises(ZeroDivisionError):
        _gently(lambda: 1 / 0)
    assert sys.getswitchinterval() == usual_s
