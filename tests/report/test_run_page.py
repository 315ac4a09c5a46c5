"""The page of a run in a real browser: no complaint, hover, keys, zoom, accessibility, narrow and dark, no script."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from rig.judge import judge
from rig.model import Checkpoint, Phase
from rig.report.html import render_run
from tests.forge import PGD, Machine
from tests.report.forge import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
chromium = shutil.which("chromium")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(chromium is None, reason="no chromium on this machine")]

DATA = 0x100100  # physical, in the kernel's data
INJECTED = "<img src=x onerror=window.hacked=1></script></pre><script>window.hacked=1</script>"
CONSOLE = f"Linux version 6.1\n{HOSTILE}\n{INJECTED}\nKernel panic - not syncing\n".encode()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a machine that lost an entry of its pgd and printed markup."""
    machine = Machine()
    machine.change(Checkpoint.HANDOVER, PGD + 5 * 4, (0x00AB_C067).to_bytes(4, "little"))
    machine.change(Checkpoint.MACHINE_KEXEC, DATA, b"\xde\xad\xbe\xef")
    machine.learn(phases=(Phase("boot", 1.5, 0), Phase("panic", 0.5, 18)))
    evidence = machine.write(tmp_path_factory.mktemp("results"))
    (evidence.path / "console.log").write_bytes(CONSOLE)
    (evidence.path / '"><img src=x onerror=window.hacked=1>').write_bytes(b"x")
    result = replace(judge(evidence), surprise=INJECTED)
    page = evidence.path / "report.html"
    page.write_text(render_run(result, evidence), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """At 1280 pixels. At its end nothing may have been complained about."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    complaints = listen(opened)
    opened.goto(address)
    yield opened
    assert complaints == []
    context.close()


def listen(page: Page) -> list[str]:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints = listen(page)
    page.goto(address)
    page.click("button[data-key=n]")  # a page's bytes are shown as well
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["target"]) for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    context.close()


def test_hover_and_keys_show_an_entry(page: Page) -> None:
    panel = page.locator(".pgd .entry")
    # what changed is shown first
    assert panel.locator("h3").inner_text() == "PDE [5]"
    assert "at handover: 0x00abc067 P RW US A D" in panel.inner_text()
    page.hover(".grid i[data-i='768']")
    assert panel.locator("h3").inner_text() == "PDE [768]"
    assert "4 MiB page at 0x0" in panel.inner_text()
    page.focus(".grid i[tabindex='0']")
    page.keyboard.press("ArrowDown")
    assert panel.locator("h3").inner_text() == "PDE [37]"
    assert "not present" in panel.inner_text()
    assert "0x9400000–0x97fffff" in panel.inner_text()
    page.keyboard.press("p")
    focused = page.locator(".grid i:focus")
    assert focused.get_attribute("aria-label", timeout=1000) is not None
    assert "PDE 5, changed" in str(focused.get_attribute("aria-label"))


def test_zooming_down_to_the_bytes_of_a_page(page: Page) -> None:
    viewer, span = page.locator(".viewer"), page.locator(".tools output")
    assert span.inner_text() == "0x0–0xffffff, 16 MiB"
    assert viewer.is_hidden()
    page.focus(".lanes")
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert span.inner_text() == "0x100000–0x100fff, 4 KiB"
    assert viewer.locator("ins").all_inner_texts() == ["+de+ad+be+ef"]
    assert viewer.locator("del").all_inner_texts() == ["−00−00−00−00"]
    assert viewer.locator(".hex > div").count() == 256
    page.keyboard.press("-")
    assert viewer.is_hidden()
    assert span.inner_text().endswith(", 16 KiB")
    page.keyboard.press("0")
    page.hover(".lanes .axis .strip", position={"x": 0, "y": 5})
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('.tools output').textContent === '0x0–0x7fffff, 8 MiB'")
    page.click(".strip a[data-a='20480']")  # the pgd's page
    assert "+67" in viewer.inner_text()


def test_nothing_that_the_guest_left_became_markup(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, body script ~ *").count() == 0
    assert "<img src=x onerror=window.hacked=1></script>" in page.locator(".part pre").last.inner_text()
    assert page.locator("#files ~ table a", has_text="<img").count() == 1


def test_without_script_the_essentials_are_there(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator(".grid i").count() == 1024
    assert page.locator(".grid i.changed").inner_text() == "≠"
    assert "0x00abc067" in page.locator("#pgd ~ .scroll").first.inner_text()
    page.click(".changed .strip a[data-a='1048576']")
    assert "+de+ad+be+ef" in page.locator("#page-100000-0").inner_text()  # its details were opened by the link
    assert page.locator(".tools").is_hidden()
    context.close()
