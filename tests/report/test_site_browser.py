"""The pages over many runs in a real browser: no complaint, filter, sorting, links, accessibility, narrow and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from rig.model import Verdict
from rig.report import site
from tests.report import forge
from tests.report.nights import leave, night

if TYPE_CHECKING:
    from playwright.sync_api import Browser

api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
chromium = shutil.which("chromium")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(chromium is None, reason="no chromium on this machine")]

P, F, E, S = Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.SKIP
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e{{ 7*7 }}"
CELLS = [
    ("panic@pae/debian-6.1", (P, P, F)),
    ("panic@i386/debian-6.1", (P, F, P)),
    ("panic@x86_64/debian-6.12", (P, P, P)),
    ("dump-raw@x86_64/debian-6.1", (P, E)),
    ("option-crashkernel-high-and-a-very-long-name@x86_64-with-a-long-name/built-6.1-control-page-outside", (F,)),
    ("panic@i386/debian-sid", (S,)),
    (f"{HOSTILE}@{HOSTILE}/k", (F, F)),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    for number, (id, verdicts) in enumerate(CELLS):
        for at, verdict in enumerate(verdicts, 1):
            why = forge.HUNG if verdict is E else None
            leave(results, f"run{number}.{at}", replace(night(id, f"{at:02}", verdict), error=why))
    site.renew(results, print)
    return results


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "history.html"])
def test_nothing_to_complain_about(
    browser: Browser, pages: Path, name: str, scheme: Literal["light", "dark"], width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((pages / name).as_uri())
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    hrefs = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    assert len(hrefs) > len(CELLS)
    for href in set(hrefs):
        path, _, anchor = href.removeprefix("file://").partition("#")
        assert Path(path).is_file(), href
        if anchor:
            page.goto(href)
            assert page.locator(f"#{anchor}").count() == 1, href
    page.close()


def test_filter_by_keyboard(browser: Browser, pages: Path) -> None:
    page = browser.new_page()
    page.goto((pages / "index.html").as_uri())
    bodies, chips = page.locator("#table tbody:visible"), page.locator(".chip:visible")
    assert bodies.count() == chips.count() == len(CELLS)
    page.get_by_label("Filter", exact=True).press_sequentially("PANIC debian-6.1")
    assert bodies.count() == chips.count() == 3  # debian-6.12 among them
    assert page.locator("#shown").inner_text() == f"3 of {len(CELLS)} shown"
    page.get_by_role("checkbox", name="PASS").press("Space")
    assert [text.split()[1] for text in bodies.all_inner_texts()] == ["FAIL"]
    assert page.locator(".grid tbody tr:visible").count() == 1
    page.close()


def test_sort_by_keyboard(browser: Browser, pages: Path) -> None:
    page = browser.new_page()
    page.goto((pages / "index.html").as_uri())
    head = page.get_by_role("columnheader", name="Kernel")
    for direction, first in (("ascending", "built-6.1-control-page-outside"), ("descending", "k")):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        assert page.locator("#table tbody tr:first-child td:nth-child(4)").first.inner_text().split()[0] == first
    page.get_by_role("columnheader", name="Verdict").get_by_role("button").press("Enter")
    assert page.locator("#table tbody").first.get_attribute("data-verdict") == "FAIL"
    assert page.locator("#table tbody").last.get_attribute("data-verdict") == "SKIP"
    page.close()


def test_without_script_everything_is_there(browser: Browser, pages: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((pages / "index.html").as_uri())
    assert page.locator("#table tbody:visible").count() == len(CELLS)
    assert not page.locator("#filter").is_visible()
    page.close()
