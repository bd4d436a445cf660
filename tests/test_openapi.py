"""The service does what its OpenAPI document says: no 500, no answer that is not described there.

Schemathesis makes up requests, as every role. It makes up few in a usual run; `make fuzz` many.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from registry.config import Settings
from registry.core.events import EventKind
from registry.core.records import ArtifactKey, Owner
from registry.errors import Invalid, error_classes
from registry.server.app import create_app
from registry.server.http import PAGE_MAX, STATUS
from registry.server.openapi.document import Security, document
from registry.server.openapi.spec import RequestSpec
from registry.server.routes.table import CALLS
from registry.server.tokens import Role, create
from registry.store.tables import events
from registry.wire import types
from tests.support import ROOT, Server, assert_sound, wait_for

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Requests made up for each call; 0: few."""

KEY = ArtifactKey("tiny", "_base", "config.json")
HOLDER = Owner("ns", "backend", "generate", 1)

# The document


def operations(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The document of a service that asks for tokens."""
    return document(CALLS, Security(tokens=True, reads_too=True))


def test_every_route_of_the_application_is_described(described: dict[str, Any]) -> None:
    app: Any = create_app(Settings())
    while not hasattr(app, "routes"):
        app = getattr(app, "app", None) or app._app
    routes = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"} or {"HEAD"}
    }
    assert len(routes) == len(app.routes)
    in_front = {(call.method, call.path) for call in CALLS if call.handler is None}
    assert {path.split("/")[2] for _, path in in_front} == {"metadata"}
    found = {(method, path) for method, path, _ in operations(described)}
    assert found == routes | in_front


def test_every_description_says_something(described: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(ids)) == len(ids)
    for method, path, operation in operations(described):
        assert operation["summary"], path
        assert operation["responses"], path
        in_path = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        for each in operation["parameters"]:
            assert each["schema"], (path, each["name"])
        for status, answer in operation["responses"].items():
            assert answer["description"], (path, status)
            assert (method == "HEAD") <= ("content" not in answer), (path, status)


def test_a_route_with_a_parameter_that_is_described_nowhere_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="number"):
        RequestSpec("GET", "/v1/things/{number}", None, "A thing", "Looking", {})


def test_every_error_that_the_service_may_answer_is_described(described: dict[str, Any]) -> None:
    codes = {
        code
        for _, _, operation in operations(described)
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
        for code in content.get("schema", {}).get("properties", {}).get("code", {}).get("enum", ())
    }
    # A method that a path does not have is no call of it, nor is the URL of somebody else.
    others = {"method_not_allowed", "proxy_unauthenticated", "origin_unavailable"}
    assert {error.code for error in STATUS} - codes == others
    assert codes <= error_classes().keys()


def test_every_reference_of_the_document_leads_to_a_schema(described: dict[str, Any]) -> None:
    text = json.dumps(described)
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))
    assert references
    assert references <= described["components"]["schemas"].keys()
    assert '"$ref"' not in re.sub(r'"\$ref": "#/components/schemas/\w+"', "", text)


def test_the_limits_in_the_document_are_those_of_the_service(described: dict[str, Any]) -> None:
    limits = {
        each["schema"]["maximum"]
        for _, _, operation in operations(described)
        for each in operation["parameters"]
        if each["name"] == "limit"
    }
    assert limits == {PAGE_MAX}


def test_the_kinds_of_events_are_those_that_the_schema_knows() -> None:
    (check,) = (str(c.sqltext) for c in events.constraints if c.name == "ck_events_kind")  # type: ignore[attr-defined]
    assert set(re.findall(r"'(\w+)'", check)) == set(EventKind)


def test_tokens_are_asked_for_in_the_document_where_the_service_asks_for_them() -> None:
    def asked(security: Security) -> set[str]:
        found = document(CALLS, security)
        return {
            f"{method} {path}"
            for method, path, operation in operations(found)
            if "security" in operation
        }

    assert asked(Security()) == set()
    writes = asked(Security(tokens=True))
    assert "POST /v1/registrations" in writes
    assert [call for call in writes if call.startswith(("GET", "HEAD"))] == ["GET /ui/sql"]
    everything = {f"{call.method} {call.path}" for call in CALLS}
    reads_too = asked(Security(tokens=True, reads_too=True))
    assert everything - reads_too == {"GET /live", "GET /health"}


# The pages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("open") / "registry.db"
    with Server(path, artifact_root=str(path.parent)) as server:
        yield server
    assert_sound(path)


def test_the_document_is_served_as_it_is_built(server: Server) -> None:
    answer = server.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json() == document(CALLS, Security())


class Page(HTMLParser):
    """What is in an HTML page: its elements, its text and the names in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_documentation_page_needs_nothing_from_elsewhere_and_no_script(server: Server) -> None:
    answer = server.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Page(answer.text)
    assert page.open == []
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "form"}
    )
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}
        link = attributes.get("href") or "#"
        assert link.startswith("#") or link == "openapi.json"


def test_the_documentation_page_shows_every_call_and_every_link_leads_somewhere(
    server: Server,
) -> None:
    page = Page(server.client.get("/docs").text)
    for call in CALLS:
        assert f"{call.method}{call.path}" in page.text, call.path
        assert call.title.replace("`", "") in page.text
    names = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {str(a["href"]) for tag, a in page.elements if tag == "a"} - {"openapi.json"}
    assert len(links) > len(CALLS)
    assert links <= {f"#{name}" for name in names}


# Schemathesis


@dataclass(frozen=True)
class Visitor:
    """Somebody who calls a service, and how thoroughly that is tried."""

    role: Role | None
    asks_for_tokens: bool
    phases: str
    examples: int
    keeps_to: str = ""
    """Fixed parameters, as TOML, so that calls meet what is there."""


EVERYTHING = "examples,coverage,fuzzing,stateful"
THERE = f"""
[[operations]]
include-path-regex = "^/v1/(metadata|artifacts/.slug./.suffix./)"
parameters = {{ "path.slug" = "{KEY.slug}", "path.suffix" = "{KEY.suffix}", \
"path.filename" = "{KEY.filename}", "path.namespace" = "{HOLDER.namespace}", \
"path.component" = "{HOLDER.component}", "path.endpoint" = "{HOLDER.endpoint}" }}

[[operations]]
include-path-regex = "^/v1/owners/"
parameters = {{ "path.namespace" = "{HOLDER.namespace}" }}
"""

VISITORS = {
    "where no tokens are asked for": Visitor(None, False, EVERYTHING, 3),
    "nobody": Visitor(None, True, "fuzzing", 1),
    "a reader": Visitor(Role.READ, True, "fuzzing", 3, THERE),
    "a writer": Visitor(Role.WRITE, True, "fuzzing", 3, THERE),
    "an administrator": Visitor(Role.ADMIN, True, "fuzzing", 3),
}


@pytest.mark.timeout(120 if not EXAMPLES else 3600)
@pytest.mark.parametrize("name", VISITORS)
def test_no_made_up_request_gets_an_answer_that_is_not_described(name: str, tmp_path: Path) -> None:
    visitor = VISITORS[name]
    token: str | None = None
    admin: str | None = None
    flags: dict[str, Any] = {}
    if visitor.asks_for_tokens:
        file = tmp_path / "tokens.toml"
        _, admin = create(file, Role.ADMIN)
        namespaces = [HOLDER.namespace] if visitor.role is Role.WRITE else []
        if visitor.role is not None:
            _, token = create(file, visitor.role, namespaces=namespaces)
        flags = {"token_file": str(file), "require_read_token": True}
    path, root = tmp_path / "registry.db", tmp_path / "models"
    root.mkdir()
    flags |= {"artifact_root": str(root), "discovery": f"file:{tmp_path / 'kv'}"}
    with Server(path, token=admin, **flags) as server:
        wait_for(lambda: server.client.get("/v1/audit?discovery").status_code == 200)
        server.register_copies(HOLDER, {KEY: b'{"model_type": "tiny"}'})
        done = schemathesis(server, visitor, token, tmp_path)
        assert done.returncode == 0, done.stdout
        assert_served_on(server)
    assert_sound(path)
    assert "Traceback" not in server.log


def schemathesis(
    server: Server, visitor: Visitor, token: str | None, folder: Path
) -> subprocess.CompletedProcess[str]:
    config = folder / "schemathesis.toml"
    config.write_text((ROOT / "tests/schemathesis.toml").read_text() + visitor.keeps_to)
    # The document itself is behind a token where reads need one.
    document = folder / "openapi.json"
    document.write_text(server.client.get("/openapi.json").text)
    arguments = ["--checks", "all", "--phases", EVERYTHING if EXAMPLES else visitor.phases]
    arguments += ["--max-examples", str(EXAMPLES or visitor.examples), "--warnings", "off"]
    arguments += ["--url", server.url, "--continue-on-failure"]
    if not EXAMPLES:
        arguments += ["--seed", "1", "--generation-database", "none"]
    if token is not None:
        arguments += ["--header", f"Authorization: Bearer {token}"]
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)]
    return subprocess.run(
        [*command, "--no-color", "run", str(document), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def assert_served_on(server: Server) -> None:
    assert server.client.get("/health").status_code == 200


# What the document allows


def accepted(kind: Any, text: str) -> bool:
    """Whether the schema of a type takes a text."""
    ((schema,), _) = msgspec.json.schema_components([kind])
    # In JavaScript's expressions `$` is the end, and not the line before it.
    pattern = re.sub(r"\$$", r"\\Z", schema["pattern"])
    excluded = schema.get("not", {"enum": []})["enum"]
    fits = len(text) <= schema.get("maxLength", len(text))
    return re.search(pattern, text) is not None and text not in excluded and fits


NAMES = [
    *("a", ".a", "..a", "...", "a.", "a..", "-", "_", "Z9", "a" * 255, "." + "a" * 254),
    *("..." + "a" * 252, ".", "..", "", "a" * 256, "." + "a" * 255, ".." + "a" * 254, "a b", "a/b"),
    *("\u00e9", "a\n"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{ascii(name)[:20]} {len(name)}")
def test_the_document_allows_the_names_that_the_service_takes_and_no_others(name: str) -> None:
    def takes(make: Callable[[], object]) -> bool:
        try:
            make()
        except Invalid:
            return False
        return True

    owner = takes(lambda: Owner(name, "c", "e", 1))
    assert accepted(types.Name, name) == owner == (name in NAMES[:12])
    for text in (f"{name}/c/e/1/_base", f"n/{name}/e/1/_base", f"n/c/{name}/1/_base"):
        assert accepted(types.OwnerText, text) == takes(partial(Owner.parse, text))
    assert accepted(types.Filename, name) == takes(lambda: ArtifactKey("s", "_base", name))
    assert accepted(types.Slug, name) == takes(lambda: ArtifactKey(name, "_base", "f"))
    assert accepted(types.Suffix, name) == takes(lambda: ArtifactKey("s", name, "f"))
