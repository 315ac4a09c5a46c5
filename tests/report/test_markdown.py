"""The step summary, rendered by another's Markdown."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from rig.report.markdown import code, markdown
from tests.report import forge, kinds

RENDER = MarkdownIt("gfm-like", {"linkify": False}).render  # HTML let through, as GitHub does with what it knows


def cells(text: str) -> list[str]:
    """The cells of the only row of a table."""
    page = RENDER(f"| a | b |\n|---|---|\n| {code(text, cell=True)} | last |\n")
    return re.findall(r"<td>(.*?)</td>", page, re.DOTALL)


@pytest.mark.parametrize(
    "text", [r"a|b", r"a\|b", r"a\\|b", "``", "`", "a``b`c", "ends\\", "<b>x</b>", "@all #1 | *x*"]
)
def test_nothing_ends_a_cell_or_is_markup(text: str) -> None:
    first, last = cells(text)
    assert last == "last"
    inside = re.fullmatch(r"<code>(.*)</code>", first, re.DOTALL)
    assert inside
    assert html.unescape(inside[1]).replace(" ", "").replace("\\|", "|") == text.replace(" ", "").replace("\\|", "|")


def test_hostile_words_stay_words() -> None:
    page = RENDER(markdown(kinds.ALL))
    bare = re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)
    assert set(re.findall(r"</?([a-z0-9]+)", bare)) <= {
        *("h2", "h3", "p", "ul", "li", "strong", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"),
    }
    assert not re.search(r"@|alert|script|everyone", bare)
    assert "&lt;script&gt;" in page


def test_trouble_comes_first_with_the_why_and_all_is_folded_below() -> None:
    text = markdown([forge.PASSED, forge.BROKEN_OFF, kinds.SKIPPED, forge.SABOTAGED, forge.FAILED])
    assert text.startswith(
        "## rig: 5 runs\n\n✅ 2 as expected, ❌ 1 not as expected, ⚠️ 1 could not judge, ➖ 1 skipped\n"
    )
    trouble, table = text.split("<details>")
    assert trouble.index(forge.FAILED.surprise) < trouble.index(forge.HUNG.message)
    assert f"` pgd-survives `: ` {forge.OVERWRITTEN.summary} `" in trouble
    assert forge.HUNG.hint in trouble
    assert kinds.NO_FLAVOUR not in trouble
    assert kinds.NO_FLAVOUR in table
    assert table.count("\n| ") == 5 + 1  # and the heading
    assert "| ✅ | ` overwritten-pgd@x86_64/debian-6.1 ` | OK: failed as expected |" in table


def test_when_all_is_well_there_is_no_trouble() -> None:
    assert "Not as expected" not in markdown([forge.PASSED, forge.SABOTAGED, kinds.SKIPPED])
