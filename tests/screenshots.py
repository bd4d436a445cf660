"""The pictures of docs/pages.md, of a demo fleet: `make screenshots`. Needs Chromium."""

from __future__ import annotations

import shutil
from typing import Literal, NamedTuple

from playwright.sync_api import sync_playwright

from tests.support import ROOT
from tests.test_demo import end, start

FOLDER = ROOT / "docs" / "images"
SIZE_MAX_BYTES = 200 << 10
SETTLES_S = 12
"""After so long a lease has lapsed and a worker has restarted."""


class Picture(NamedTuple):
    """What is shown, how."""

    name: str
    link: str
    """Where to go from the overview, as the text of links, one after the other."""
    width: int = 1100
    height: int = 1000
    colours: Literal["light", "dark"] = "light"


PICTURES = (
    Picture("overview", "", height=950),
    Picture("owner", "Owners > first", height=900),
    Picture("audit", "Audit", height=800, colours="dark"),
    Picture("phone", "Models", 400, 900),
)


def main() -> None:
    """Take all of them."""
    FOLDER.mkdir(exist_ok=True)
    process, url = start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(url)
            page.wait_for_timeout(SETTLES_S * 1000)
            for picture in PICTURES:
                page.set_viewport_size({"width": picture.width, "height": picture.height})
                page.emulate_media(color_scheme=picture.colours)
                page.goto(url)
                for step in filter(None, picture.link.split(" > ")):
                    links = page.locator("main tbody th a" if step == "first" else "nav a")
                    (links if step == "first" else links.filter(has_text=step)).first.click()
                path = FOLDER / f"{picture.name}.png"
                page.screenshot(path=path)
                size = path.stat().st_size
                assert size <= SIZE_MAX_BYTES, f"{path} has {size} bytes"
                print(f"wrote {path}")
            browser.close()
    finally:
        end(process)


if __name__ == "__main__":
    main()
