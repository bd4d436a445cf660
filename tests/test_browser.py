"""The pages in a real browser: every page, narrow and wide, light and dark, usable by everybody.

Chromium is Debian's, axe-core (which looks for what keeps people out) comes from npm: `.ci/run`
gets both where it can. Without them these tests are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from registry.core.records import ArtifactKey, Owner
from registry.server import tokens
from registry.server.tokens import Role
from tests.exchanges import running
from tests.support import ROOT, Server, in_place, wait_for

AXE = ROOT / "build" / "axe" / "package" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not AXE.exists(),
    reason="no chromium, or no build/axe: see .ci/run for how to get them",
)

NAMESPACE = "prod"
HOSTILE = (
    "<script>document.title='owned'</script>".replace("/", "-"),
    '"><img src=x onerror=alert(1)>.json',
    "safe\u202egpj.json",
    "x" * 250 + ".json",
    "no spaces to break at ".replace(" ", "_") * 11 + ".json",
)
LONG = "a" * 255
"""Of every name that may be so long."""

WIDTHS = (1600, 400)
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with something of everything: hostile and long names, and findings."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "models").mkdir()
    with running(folder, artifact_root=str(folder / "models")) as started:
        fill(started, folder / "models")
        yield started


def fill(server: Server, root: Path) -> None:
    owner = Owner(NAMESPACE, "backend", "generate", 2**64 - 1)
    files = {ArtifactKey("hostile", "_base", name): b"1" for name in HOSTILE}
    assert server.register_copies(owner, files, worker_name="gpu-1").status_code == 200
    longest = Owner(LONG, LONG, LONG, 2**64 - 1, LONG)
    key = ArtifactKey(LONG, LONG, LONG)
    assert server.register_copies(longest, {key: b"1"}, worker_name=LONG).status_code == 200
    for number in range(60):
        key = ArtifactKey(f"model-{number:02}", "_base", "config.json")
        server.register_copies(Owner(NAMESPACE, "backend", "generate", number), {key: b"2"})
    placed = ArtifactKey("placed", "_base", "config.json")
    (root / "config.json").write_text("{}")
    other = Owner(NAMESPACE, "backend", "generate", 1000)
    server.register(other, [in_place(placed, root / "config.json")])
    (root / "config.json").write_text("[]")
    assert server.fetch(placed).status_code == 503
    refused = server.register_copies(other, {ArtifactKey("model-01", "_base", "config.json"): b"3"})
    assert refused.status_code == 409
    server.unregister(Owner(NAMESPACE, "backend", "generate", 7))
    html = {"accept": "text/html"}
    wait_for(lambda: "drifted_ref" in server.client.get("/ui/audit", headers=html).text)


PAGES = (
    "/",
    "/ui/models",
    "/ui/models?q=none",
    "/ui/models/hostile/_base",
    f"/ui/models/{LONG}/{LONG}",
    *(f"/ui/artifacts/hostile/_base/{quote(name, safe='')}" for name in HOSTILE[1:4]),
    "/ui/artifacts/placed/_base/config.json",
    f"/ui/artifacts/{LONG}/{LONG}/{LONG}",
    "/ui/owners",
    f"/ui/owners/{NAMESPACE}/backend/generate/{2**64 - 1}/_base",
    f"/ui/owners/{LONG}/{LONG}/{LONG}/{2**64 - 1}/{LONG}",
    "/ui/events",
    "/ui/events?slug=hostile&kind=registered&owner=&until=2999-01-01T00%3A00",
    "/ui/audit",
    "/ui/words",
    "/ui/owners?state=all",
    "/ui/sql",
    f"/ui/sql?{urlencode({'q': 'SELECT * FROM holders LIMIT 9'})}",
)
REFUSED = (
    "/ui/artifacts/model-07/_base/config.json",
    f"/ui/owners/{NAMESPACE}/backend/generate/4711/_base",
    "/ui/sql?q=nonsense",
    "/ui/owners?q=a/b/c/x/y",
)
"""What is answered with a page and a status that the browser notes as an error."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox of its own: it shows nothing but our pages, and root has none.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of a browser, with all that went wrong in it."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page, self.trouble = page, list[str]()
        self._origin = origin
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.trouble.append(f"script: {error}"))
        page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        page.on("request", self._check_request)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.trouble.append(f"console: {message.text}")

    def _check_request(self, request: Any) -> None:
        if not request.url.startswith((self._origin, "data:")):
            self.trouble.append(f"asked elsewhere: {request.url}")

    def findings(self) -> list[str]:
        """What keeps people out of the page that is open, by axe-core."""
        # In the page's world, but not by its policy, which allows no script.
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}"
            for each in found["violations"]
            if each["impact"] in SERIOUS
        ]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_page_can_be_read_and_used(
    server: Server, browser: Browser, colours: Literal["light", "dark"]
) -> None:
    context = browser.new_context(color_scheme=colours)
    watched = Watched(context.new_page(), server.url)
    page, wrong = watched.page, dict[str, list[str]]()
    for url in (*PAGES, *REFUSED):
        watched.trouble.clear()
        answer = page.goto(server.url + url)
        assert answer is not None
        if url in REFUSED:
            assert answer.status in (404, 422), url
            watched.trouble.clear()
        else:
            assert answer.status == 200, url
        found = list[str]()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            found += [f"{width}: {too_wide} px too wide"] if too_wide > 0 else []
            found += [f"{width}: {each}" for each in watched.findings()]
        if found or watched.trouble:
            wrong[url] = [*found, *watched.trouble]
        assert page.title() != "owned"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if colours == "light" else "rgb(20, 23, 28)")
    context.close()
    assert wrong == {}


def test_a_hostile_name_is_text_in_the_browser_as_well(server: Server, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/ui/models/hostile/_base")
    shown = page.locator("tbody th a").all_inner_texts()
    for name in HOSTILE:
        assert name.replace("\u202e", "\\u202e") in shown
    assert page.locator("img, script").count() == 0
    context.close()


def test_the_pages_are_used_by_keyboard_alone(server: Server, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.url}/ui/models")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert urlsplit(page.url).fragment == "main"
    page.goto(f"{server.url}/")
    page.locator("#find-model").focus()
    page.keyboard.type("hostile/_base")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/models/hostile/_base")
    page.goto(f"{server.url}/ui/events")
    page.locator("#kind").focus()
    page.keyboard.type("removed")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.locator("button").press("Enter")
    page.wait_for_url("**kind=removed**")
    assert "its last holder detached" in page.inner_text("main")
    page.goto(f"{server.url}/ui/sql")
    page.locator("#query").fill("SELECT 6 * 7 AS answer")
    page.locator("button").first.press("Enter")
    page.wait_for_selector("#answer")
    assert page.locator(".plain td").all_inner_texts() == ["42"]
    context.close()


def test_a_browser_signs_in_with_the_token_as_password(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("signing-in")
    _, token = tokens.create(folder / "tokens.toml", Role.ADMIN, name="alice")
    flags: dict[str, Any] = {"token_file": folder / "tokens.toml", "require_read_token": True}
    with running(folder, **flags) as server:
        context = browser.new_context(http_credentials={"username": "any", "password": token})
        page = context.new_page()
        for url in ("/", "/ui/sql?q=SELECT+1"):
            answer = page.goto(server.url + url)
            assert answer is not None
            assert answer.status == 200
            assert "signed in as alice" in page.inner_text("footer")
        context.close()
        other = browser.new_context(http_credentials={"username": "any", "password": "wrong"})
        page = other.new_page()
        answer = page.goto(server.url)
        assert answer is not None
        assert answer.status == 401
        other.close()
