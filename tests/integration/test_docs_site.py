"""The documentation in headless Chromium, as wide as on a laptop and on a phone.

The environment variable CHROMIUM names the browser's program. If it is not set, a browser is searched for, and without
one, or without the packages of the extra `docs`, these tests are skipped. If it is set, they are never skipped.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import TIMEOUT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: The addresses of all pages, below that of the site.
PAGES = sorted(
    path.relative_to(DOCS).with_suffix("").as_posix().removesuffix("index").rstrip("/") for path in DOCS.rglob("*.md")
)
FORMULAS = ("method", "scale")

LAPTOP, PHONE = 1280, 390

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: The browser is root's in CI, and no page may need another server.
FLAGS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")

#: What is wrong with the layout of a page, a line each.
WRONG = """() => {
    const wrong = [], root = document.documentElement;
    if (root.scrollWidth > root.clientWidth)
        wrong.push(`the page is ${root.scrollWidth} pixels wide`);
    const scrolls = element => element && (
        ["auto", "scroll"].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
    for (const element of document.querySelectorAll(".md-content article *"))
        if (element.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(element))
            wrong.push(`outside the window: ${element.outerHTML.slice(0, 100)}`);
    for (const code of document.querySelectorAll(":not(pre) > code"))
        if (code.getClientRects().length > 1)
            wrong.push(`broken into pieces: ${code.textContent}`);
    for (const table of document.querySelectorAll(".md-typeset__scrollwrap:not(:has(td[style]))"))
        if (table.scrollWidth > table.clientWidth)
            wrong.push(`a table of words scrolls: ${table.textContent.trim().slice(0, 100)}`);
    return wrong;
}"""

#: The blocks that are wider than their box.
CUT = """() => Array.from(document.querySelectorAll("pre > code"))
    .filter(code => code.scrollWidth > code.clientWidth).map(code => code.textContent)"""


def _package(name: str) -> Any:
    return importlib.import_module(name) if "CHROMIUM" in os.environ else pytest.importorskip(name)


def _program() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip("there is no Chromium: install it, or name its program in CHROMIUM")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the built site."""
    _package("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    config = DOCS / "mkdocs" / "mkdocs.yml"
    command = ["build", "--strict", "--quiet", "--config-file", str(config), "--site-dir", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "mkdocs", *command], check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of the browser."""
    playwright = _package("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_program(), args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT * 1000)
        yield page
        browser.close()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path or "index")
def test_a_page_fits_on_a_laptop_and_on_a_phone(path: str, page: Any, site: str, tmp_path: Path) -> None:
    page.goto(f"{site}/{path}")
    for width in (LAPTOP, PHONE):
        page.set_viewport_size({"width": width, "height": 900})
        wrong = page.evaluate(WRONG)
        if path in FORMULAS:
            wrong += [f"a formula is cut: {text}" for text in page.evaluate(CUT)]
        if wrong:
            picture = tmp_path / f"{width}.png"
            page.screenshot(path=picture, full_page=True)
            pytest.fail("\n".join([f"{width} pixels, see {picture}:", *wrong]))


def test_search_finds_a_page(page: Any, site: str) -> None:
    page.set_viewport_size({"width": LAPTOP, "height": 900})
    page.goto(site)
    # Typed, not filled in: the page listens for keys.
    page.locator("[data-md-component=search-query]").press_sequentially("relation heads")
    page.wait_for_selector(".md-search-result__link")
    found = page.eval_on_selector_all(".md-search-result__link", "links => links.map(link => link.href)")
    assert any(address.startswith(f"{site}/method/") for address in found), found


def test_the_header_links_to_the_repository(page: Any, site: str) -> None:
    page.set_viewport_size({"width": LAPTOP, "height": 900})
    page.goto(site)
    link = page.locator(".md-header__source a")
    assert link.is_visible()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert link.get_attribute("href") == project["urls"]["Repository"]
