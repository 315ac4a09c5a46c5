"""The compare page: what is on it, and how it looks and behaves in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

from rig.report.html.compare import render_comparisons
from rig.report.tracediff import ControlPair, Instruction, Line, WayDifference
from tests.report import forge, kinds
from tests.report.test_compare import pair

NOBODY: tuple[list[str], list[str]] = ([], [])
HOSTILE_STEP = Instruction(7, forge.HOSTILE, "nop", forge.HOSTILE, "k")
HOSTILE_WAY = WayDifference((1, 0), ((Line("-", HOSTILE_STEP),),), (ControlPair(forge.HOSTILE, ""),))


# With two entries changed: axe takes minutes for a table of 256.
ENTRIES = forge.pgd_figures(bytes_changed=16, entries_changed=forge.LOW_HALF[:2])
FAILED = replace(forge.FAILED, checks=(replace(forge.OVERWRITTEN, figures=ENTRIES), *forge.FAILED.checks[1:]))
MANY = (forge.PASSED, FAILED, forge.BROKEN_OFF, kinds.SKIPPED)


def one_page() -> str:
    return render_comparisons([pair(forge.PASSED, FAILED)], NOBODY)


def many_page() -> str:
    pairs = [pair(replace(r, id=f"s{n}@g/k"), replace(forge.PASSED, id=f"s{n}@g/k")) for n, r in enumerate(MANY)]
    return render_comparisons(pairs, (["only-here@g/k"], []))


def test_one_pair() -> None:
    page = one_page()
    assert re.search(r"<h1>panic@x86_64/debian-6.1</h1>", page)
    assert "Worse. What differs: 1 of 4 checks" in page
    assert f"after: {forge.OVERWRITTEN.summary}" in page
    assert f"after: {forge.BOOTS.summary}" not in page  # which is as it was
    assert "entries_changed[1].after" in page
    assert "only before: </span>" in page
    assert '<tr class="gone"><td>f+0x1: IF 1 -&gt; 0</td><td>none</td></tr>' in page


def test_many_pairs_link_to_their_sections() -> None:
    page = many_page()
    links = re.findall(r'href="#(pair-\d+)"', page)
    assert len(links) == len(MANY)
    assert set(links) <= set(re.findall(r'id="(pair-\d+)"', page))
    assert "Only before: 1" in page
    assert "Only after" not in page


def test_the_same_on_both_sides_says_so() -> None:
    page = render_comparisons([pair(forge.PASSED, forge.PASSED, WayDifference((5, 5), (), ()))], NOBODY)
    assert "None differs, addresses aside." in page
    assert "the same, but for addresses." in page


def test_hostile_words_stay_words() -> None:
    page = render_comparisons([pair(kinds.NASTY, forge.PASSED, HOSTILE_WAY)], ([forge.HOSTILE], []))
    assert "<script>" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 4


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("make", [one_page, many_page])
def test_loads_clean_fits_and_is_accessible(browser: Browser, tmp_path: Path, make: object, width: int) -> None:
    assert callable(make)
    (tmp_path / "page.html").write_text(make())
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda problem: said.append(str(problem)))
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert said == []
    page.close()


@pytest.mark.browser
def test_a_link_of_the_summary_leads_to_its_pair(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(many_page())
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    link = page.get_by_role("link").last
    name = link.inner_text()
    link.click()
    target = page.locator(":target")
    assert target.inner_text() == name
    assert target.bounding_box() is not None
    page.get_by_text("What differs", exact=True).last.click()
    assert page.get_by_role("region", name=f"Checks of {name}").is_visible()
    page.close()
