"""report.html: complete, self-contained, and nothing that a guest printed is taken for markup."""

from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from rig.model import CheckResult, RunResult, Verdict
from rig.report.html import render_run
from rig.report.html.commands import command_line
from rig.report.html.console import CONSOLE_LINES
from rig.report.html.page import size_text
from rig.report.html.view import build_page
from rig.report.listing import ChangeRow, Listing
from tests.report import forge

ALL = [forge.PASSED, forge.FAILED, forge.SABOTAGED, forge.UNNOTICED, forge.BROKEN_OFF]
EMPTY = forge.ForgedEvidence(text="", cpus_at={}, listing=())
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects tags, ids, links and text; notes tags that aren't closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.torn: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        if name := values.get("id"):
            self.ids.append(name)
        self.links += [value for key in ("href", "src") if (value := values.get(key))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.torn.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    return parser


@pytest.mark.parametrize("evidence", [forge.ForgedEvidence(), EMPTY], ids=["full", "empty"])
@pytest.mark.parametrize("run", ALL, ids=lambda run: f"{run.scenario}-{run.verdict}")
def test_well_formed_and_self_contained(run: RunResult, evidence: forge.ForgedEvidence) -> None:
    html = render_run(run, evidence)
    page = outline(html)
    assert page.torn == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1  # the page's own, which the policy names by its hash
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert {"main", "header", "nav", "h1", "h2"} <= set(page.tags)
    assert [link for link in page.links if link.startswith("#") and link[1:] not in page.ids] == []
    assert [
        link for link in page.links if not link.startswith("#") and unquote(link) not in dict(evidence.files())
    ] == []
    assert not any("//" in link or ":" in link for link in page.links)
    assert "@import" not in html
    assert "url(" not in html


def test_a_long_hand_over_shows_its_end_and_stays_small() -> None:
    lines = tuple(f"line {n} <b>{'x' * 120}" for n in range(5000))
    rows = tuple(ChangeRow(str(n), "machine_kexec+0x1", "movl %eax, %cr3", "CR3 <u>") for n in range(5000))
    listing = Listing(lines, rows, "entered <i>", 5000)
    html = render_run(forge.PASSED, EMPTY, listing)
    page = outline(html)
    assert page.torn == page.open == []
    assert not {"b", "u", "i"} & set(page.tags)
    assert "line 4999 " in page.text
    assert "The first 4000 lines are left out here" in page.text
    assert "line 3999 " not in page.text
    assert len(html) - len(render_run(forge.PASSED, EMPTY)) < 200 * 1024


def test_hostile_bytes_are_text() -> None:
    html = render_run(forge.BROKEN_OFF, forge.ForgedEvidence())
    assert html.count("<script") == 1
    assert not set("\x00\x07\x1b\u202e") & set(html)
    assert r"<script>alert(1)</script> \x1b[2J\x1b]0;title\x07 [bold red]markup[/] \u202egnp.exe {{ 7*7 }} \x00" in (
        outline(html).text
    )


def test_hostile_names_and_summaries_are_text() -> None:
    check = CheckResult(
        "memory-accounted",
        Verdict.FAIL,
        "<b>summary</b>",
        {"owners": [{"owner": "<i>x</i>", "addresses": ["<u>"]}], "<s>": "<s>"},
    )
    html = render_run(
        forge.result(
            Verdict.FAIL, [check], id='"><svg>', surprise="<em>", environment={"qemu": "<q>", "argv": ["<a>"]}
        ),
        forge.ForgedEvidence(),
    )
    assert not {"b", "i", "u", "s", "svg", "em", "q"} & set(outline(html).tags)


def test_links_to_evidence_are_relative_and_quoted() -> None:
    links = outline(render_run(forge.PASSED, forge.ForgedEvidence())).links
    assert "memory/pages.zst" in links
    assert "odd%20%22name%22%20%3Cb%3E%231" in links
    assert "javascript%3Aalert%281%29" in links


def test_the_verdict_comes_first() -> None:
    text = outline(render_run(forge.SABOTAGED, EMPTY)).text
    assert text.index("failed as expected") < text.index("The page directory did not survive") < text.index("The run")


def test_every_entry_is_in_the_page() -> None:
    text = outline(render_run(forge.FAILED, EMPTY)).text
    assert [index for index in range(256) if f"[{index}]" not in text] == []
    assert f"{0x8000_0000_1279_2067 + (255 << 12):#x}" in text
    assert "0x7f8000000000–0x7fffffffffff" in text
    assert "The other 240 entries" in text


def test_ledger_registers_and_phases_are_in_the_page() -> None:
    text = outline(render_run(forge.PASSED, forge.ForgedEvidence())).text
    for part in (
        "crash notes",
        "0x111f000",
        "CPU 1",
        "0xffffffff845740a0",
        "6.51 s",
        "3.2 MiB",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", ["pgd-survives", "memory-accounted", "vmcore-registers", "no-such-check"])
@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"entries_changed": [{}], "compared": [{}], "vmcore": {}, "owners": [{}], "intervals": [{}]},
        {"entries_changed": 7, "compared": "x", "vmcore": [], "owners": None, "mode": "6-level", "cr3": "?"},
        {"entries_changed": [None], "owners": [3], "intervals": [[]], "unaccounted": [1, 2]},
    ],
)
def test_missing_or_odd_figures_leave_out_rows_not_the_page(name: str, figures: dict[str, object]) -> None:
    check = CheckResult(name, Verdict.PASS, "summary of it", figures)
    assert "summary of it" in render_run(forge.result(Verdict.PASS, [check]), EMPTY)


def test_empty_evidence_says_so() -> None:
    text = outline(render_run(forge.BROKEN_OFF, EMPTY)).text
    assert "The guest printed nothing." in text
    assert "Nothing was recorded." in text
    assert "No files." in text


def test_a_long_console_is_cut_at_its_start_and_says_so() -> None:
    log = "".join(f"line {n}\n" for n in range(CONSOLE_LINES + 3))
    page = build_page(forge.PASSED, replace(EMPTY, text=log))
    assert page.console.cut == 3
    assert page.console.parts[0].text.startswith("line 3\n")
    assert page.console.parts[0].text.endswith(f"line {CONSOLE_LINES + 2}")


def test_phase_bars_follow_each_other() -> None:
    bars = build_page(forge.PASSED, EMPTY).phases
    assert bars[0].offset == 0
    assert bars[1].offset == pytest.approx(bars[0].width, abs=0.02)
    assert bars[-1].offset + bars[-1].width == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["qemu", "-m", "512", "-nodefaults", "-S"], ["qemu", "-m 512", "-nodefaults", "-S"]),
        (["qemu", "-append", "a b='c'"], ["qemu", "-append 'a b='\"'\"'c'\"'\"''"]),
        (["qemu", "disk", "-m", "1", "stray"], ["qemu", "disk", "-m 1", "stray"]),
        (["qemu", "-append", ""], ["qemu", "-append ''"]),
    ],
)
def test_command_line_has_an_option_a_line(argv: list[str], lines: list[str]) -> None:
    assert command_line(argv).split(" \\\n  ") == lines


def test_command_line_without_argv() -> None:
    assert command_line(None) == ""
    assert command_line([]) == ""


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 10239, 10240, 3_400_000)] == ["0 B", "10239 B", "10.0 KiB", "3.2 MiB"]


def test_a_figure_is_left_out_of_a_check_only_where_it_has_its_own_section() -> None:
    figures = {"owners": [1, 2], "bytes_changed": 3}
    checks = [CheckResult(name, Verdict.PASS, "", figures) for name in ("memory-accounted", "another")]
    rows = build_page(forge.result(Verdict.PASS, checks), EMPTY).checks
    assert [[fact.name for fact in row.figures] for row in rows] == [
        ["bytes_changed"],
        ["owners", "bytes_changed"],
    ]
