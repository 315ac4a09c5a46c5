"""Reports of runs in which every string is hostile, in a real browser: all of it is shown, none of it does anything.

And the second line: what would get past the escaping nevertheless is stopped by the content security policy.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rig.errors import EvidenceError
from rig.evidence.reader import from_json
from rig.evidence.writer import to_json
from rig.judge import judge
from rig.model import Checkpoint, RunResult
from rig.report import site
from rig.report.html import render_run
from rig.report.html.compare import render_comparisons
from rig.rules.numbers import complaints
from tests.forge import PGD, Machine
from tests.report import forge
from tests.report.nights import night
from tests.report.test_compare import pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

api = pytest.importorskip("playwright.sync_api")
chromium = shutil.which("chromium")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(chromium is None, reason="no chromium on this machine")]

ELSEWHERE = "http://elsewhere/"  # stands for where the test listens
RUN = "window.hacked=1"
MARKUP = (
    f'<a href="javascript:{RUN}" id=hlink>x</a><form action={ELSEWHERE}h id=hform></form>'
    f"<input autofocus onfocus={RUN}><script>{RUN}</script><script src={ELSEWHERE}a.js></script>"
    f"<img src={ELSEWHERE}b.png onerror={RUN}><link rel=stylesheet href={ELSEWHERE}f>"
    f"<object data={ELSEWHERE}g></object><iframe src={ELSEWHERE}c></iframe>"
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>"
    f"<style>@import url({ELSEWHERE}d.css);body{{background:url({ELSEWHERE}e.png)}}</style>"
    f"<base href={ELSEWHERE}><video src={ELSEWHERE}i></video>"
    f"<details open ontoggle={RUN}>x</details><svg onload={RUN}></svg>"
)
BREAKOUTS = (
    f"""</title></style></pre></script></textarea>--><!--]]>"><' onmouseover={RUN} x='" autofocus onfocus="{RUN}"""
)
SIGNS = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\u2066\u200b\ufeff{{ 7*7 }}{% raw %}${7*7}&lt;\x00"
HOSTILE = BREAKOUTS + MARKUP + SIGNS


def everywhere(value: RunResult, hostile: str) -> RunResult:
    """The same with `hostile` behind every string that can be any string: those that are an enum's, or a name, stay."""
    tree = json.loads(to_json(value))
    changed = 0

    def visit(holder: Any, key: Any) -> None:
        nonlocal changed
        if isinstance(holder[key], dict | list):
            for inner in range(len(holder[key])) if isinstance(holder[key], list) else list(holder[key]):
                visit(holder[key], inner)
        elif isinstance(holder[key], str):
            before, holder[key] = holder[key], holder[key] + hostile
            try:
                refused = any(complaints(from_json(json.dumps(tree).encode(), RunResult, Path("forged"))))
            except EvidenceError:
                refused = True
            if refused:
                holder[key] = before
            changed += not refused

    visit({"root": tree}, "root")
    assert changed > 20
    return from_json(json.dumps(tree).encode(), RunResult, Path("forged"))


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Nothing may connect to it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def aimed(text: str, listener: socket.socket) -> str:
    return text.replace(ELSEWHERE, f"http://127.0.0.1:{listener.getsockname()[1]}/")


def requests(listener: socket.socket, seconds: float) -> list[bytes]:
    """What was asked for, waiting so long for the first connection. Chromium connects ahead to where markup points, and
    sends nothing, or not for seconds: that leaves no request."""
    found: list[bytes] = []
    while select.select([listener], [], [], 0 if found else seconds)[0]:
        visitor, _ = listener.accept()
        with visitor:
            visitor.settimeout(2)
            try:
                found.append(visitor.recv(1000))
            except TimeoutError:
                found.append(b"")
    return [request for request in found if request]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, listener: socket.socket) -> dict[str, Path]:
    """All kinds of pages, by name."""
    hostile = aimed(HOSTILE, listener)
    results = tmp_path_factory.mktemp("results")
    machine = Machine()
    machine.change(Checkpoint.HANDOVER, PGD + 5 * 4, (0x00AB_C067).to_bytes(4, "little"))
    evidence = machine.write(results)
    (evidence.path / "console.log").write_bytes(f"Linux\n{hostile}\nKernel panic\n".encode() + b"\xff\xfe\x80<b>")
    (evidence.path / "qemu.log").write_text(hostile)
    name = BREAKOUTS.replace("/", "")
    (evidence.path / name).write_text("x")
    broken = everywhere(replace(judge(evidence), error=forge.HUNG, surprise="s"), hostile)
    (evidence.path / "result.json").write_bytes(to_json(broken))
    page = evidence.path / "report.html"
    page.write_text(render_run(broken, evidence), encoding="utf-8")
    for number, verdict in enumerate("12", 10):
        directory = results / f"other.{verdict}"
        directory.mkdir()
        run = everywhere(replace(night("panic@pae/k", str(number)), error=forge.HUNG), hostile)
        (directory / "result.json").write_bytes(to_json(run))
    site.renew(results, print)
    compared = results / "compare.html"
    both = everywhere(forge.PASSED, hostile), everywhere(forge.FAILED, hostile)
    compared.write_text(render_comparisons([pair(*both)], ([hostile], [hostile])), encoding="utf-8")
    return {
        "run": page,
        "matrix": results / "index.html",
        "history": results / "history.html",
        "compare": compared,
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


def open_(browser: Browser, path: Path) -> tuple[Page, list[str]]:
    """The page, and what it says to the user in windows of its own."""
    page = browser.new_context().new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    return page, dialogs


@pytest.mark.parametrize("name", ["run", "matrix", "history", "compare"])
def test_what_a_run_says_is_text(browser: Browser, pages: dict[str, Path], listener: socket.socket, name: str) -> None:
    page, dialogs = open_(browser, pages[name])
    text = page.inner_text("body")
    assert RUN in text, "nothing hostile is on this page"
    assert not set(text) & set("\x1b\x07\x9b\x00\u202e\u2066\u200b\ufeff")
    foreign = "iframe, object, embed, base, link, video, img, input[autofocus], #hform, #hlink, body style"
    assert page.locator(foreign).count() == 0
    handlers = "[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames()).filter(n => /^on/.test(n))"
    assert page.evaluate(handlers) == []
    hrefs = page.eval_on_selector_all("[href], [src]", "all => all.map(one => one.href || one.src)")
    assert {str(href).partition(":")[0] for href in hrefs} <= {"file"}
    assert page.evaluate("window.hacked") is None
    page.context.close()
    assert dialogs == []
    assert requests(listener, 0) == []


@pytest.mark.parametrize("name", ["run", "matrix", "history", "compare"])
def test_the_policy_stops_what_would_get_past_the_escaping(
    browser: Browser, pages: dict[str, Path], listener: socket.socket, name: str
) -> None:
    """As it would be if a value had been put into the page as it is."""
    broken = pages[name].with_name(f"broken-{name}.html")
    text = pages[name].read_text(encoding="utf-8").replace("<body>", f"<body>{aimed(MARKUP, listener)}", 1)
    broken.write_text(text, encoding="utf-8")
    page, dialogs = open_(browser, broken)
    assert page.locator("#hlink, img, #hform").count() == 3, "the markup is there"
    page.eval_on_selector("#hlink", "link => link.click()")
    page.eval_on_selector("#hform", "form => form.submit()")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.baseURI") == broken.as_uri()
    page.context.close()
    assert dialogs == []
    assert requests(listener, 0.2) == []
    # without the policy all of that happens: so it is the policy's doing
    broken.write_text(text.replace("Content-Security-Policy", "x-none", 1), encoding="utf-8")
    page = browser.new_context().new_page()
    page.goto(broken.as_uri(), wait_until="commit")
    page.wait_for_function("window.hacked === 1")
    assert any(request.startswith(b"GET /") for request in requests(listener, 10))
    page.context.close()
    requests(listener, 0.2)
