"""The matrix page and the history page: what is on them, and that 2,000 runs fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig.history import Record
from rig.model import Verdict
from rig.report.html.history import FIGURES, RUNS_SHOWN, render_history, series
from rig.report.html.matrix import OTHERS, build_matrix, percent, render_matrix
from tests.report import forge
from tests.report.nights import record
from tests.report.test_html import outline

P, F, E, S = Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.SKIP
HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;{{ 7*7 }}"


def link(run: Record) -> str:
    return f"{run.directory}/report.html"


def test_the_worst_is_on_top_and_says_why() -> None:
    runs = [record("a@g/k", "01"), record("b@g/k", "01", S), record("c@g/k", "01", F), record("d@g/k", "01", E)]
    page = build_matrix(runs, link)
    assert [(row.scenario, row.outcome.word) for row in page.rows] == [
        ("c", "FAIL"),
        ("d", "ERROR"),
        ("a", "PASS"),
        ("b", "SKIP"),
    ]
    assert [row.why for row in page.rows] == [
        "pgd-survives: said on 01",
        "pgd-survives: said on 01",
        "",
        "Skipped: said on 01.",
    ]
    assert page.headline == "Of 4 cells 1 is not as the scenario expects and 1 could not be judged."
    assert [(count.outcome.word, count.count) for count in page.counts] == [
        ("FAIL", 1),
        ("ERROR", 1),
        ("PASS", 1),
        ("SKIP", 1),
    ]


def test_only_the_latest_run_of_a_cell_is_in_the_matrix() -> None:
    page = build_matrix([record("a@g/k", "01", F), record("a@g/k", "02")], link)
    assert [(row.outcome.word, row.href) for row in page.rows] == [("PASS", "a_g_k.02/report.html")]
    assert page.headline == "1 cell judged, all as their scenarios expect."


def test_nothing_new_says_of_how_many_cells() -> None:
    once, again = record("a@g/k", "01"), [record("b@g/k", "01"), record("b@g/k", "02")]
    said = "of the 2 cells 1 had run before, and came to the same again"
    assert said in outline(render_matrix([once, *again], link)).text
    assert "No cell has run before" in outline(render_matrix([once], link)).text


def test_skipped_cells_alone_are_no_success() -> None:
    assert build_matrix([record("a@g/k", "01", S)], link).headline == "1 cell, none judged."
    assert build_matrix([], link).headline == "0 cells, none judged."


def test_figures_are_of_the_runs_that_are_to_pass() -> None:
    sabotage = replace(record("bad@g/k", "01", F), expect=F, figures={"pgd-survives.bytes_changed": 2048})
    dump = replace(record("dump@g/k", "01"), figures={"vmcore-faithful.fidelity": 0.99999829})
    facts = {fact.name: fact.value for fact in build_matrix([record("a@g/k", "01"), sabotage, dump], link).facts}
    assert facts["Page directory"] == "unchanged in 1 of 1 run"
    assert facts["Dumps"] == "fidelity 99.99982 %, of 1 dump read whole"
    assert "Changed memory" not in facts


@pytest.mark.parametrize(("value", "text"), [(1.0, "100 %"), (0.999999999, "99.99999 %"), (0.5, "50.00000 %")])
def test_fidelity_is_never_rounded_up(value: float, text: str) -> None:
    assert percent(value) == text


def test_guests_of_few_scenarios_share_a_column() -> None:
    runs = [record(f"s{at:02}@{guest}/k", "01") for at in range(11) for guest in ("pae", "x86_64")]
    page = build_matrix([*runs, record("s00@xen/k", "01"), record("s00@q35/k", "01")], link)
    assert page.columns == ["pae", "x86_64", OTHERS]
    assert [[chip.label for chip in cell] for cell in page.grid[0].cells] == [["k"], ["k"], ["q35 k", "xen k"]]
    assert sum(len(cell) for line in page.grid for cell in line.cells) == len(page.rows) == 24


def test_hostile_names_are_text_on_both_pages() -> None:
    runs = [
        replace(
            record(f"{HOSTILE}@{HOSTILE}/{HOSTILE}", date, F, error=forge.HUNG),
            release=HOSTILE,
            started=f"{HOSTILE}{date}",
        )
        for date in ("01", "02", "03")
    ]
    runs.append(record(f"{HOSTILE}@once/{HOSTILE}", "01"))
    for html in (render_matrix(runs, lambda _: "", [HOSTILE]), render_history(runs, lambda _: "")):
        page = outline(html)
        assert page.torn == page.open == []
        assert "img" not in page.tags
        assert not set("\x1b\u202e") & set(html)
        assert r"</script><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;{{ 7*7 }}" in page.text


def test_two_thousand_runs_stay_small() -> None:
    guests = [f"x86_64-{name}" for name in ("plain", "smp", "pti", "la57", "uefi")]
    why = "memory-accounted: 1853 of 2409 changed bytes have no owner: at 0x2aa000+14, 0x2aa00f+1, 0x2aa012+7"
    runs = [
        replace(record(f"option-crashkernel-{n}@{guests[n % 5]}/debian-6.12.43-rt", "01", (P, P, P, F)[n % 4]), why=why)
        for n in range(2000)
    ]
    html = render_matrix(runs, lambda run: f"runs/{run.directory}/report.html")
    assert html.count("<tbody data-verdict=") == 2000
    assert len(html.encode()) < 5_000_000


def test_a_cell_that_has_run_once_is_a_line_and_no_drawing() -> None:
    html = render_history([record("a@g/k", "01")], link)
    assert "<svg" not in html
    assert "a@g/k" in html
    assert "No run has ended yet." in render_history([], link)


def test_a_cell_has_its_verdicts_and_drawings_with_their_values_in_words() -> None:
    runs = [replace(record("a@g/k", f"{at:02}"), seconds=float(at)) for at in range(1, RUNS_SHOWN + 1)]
    runs.append(record("a@g/k", "31", F))
    html = render_history(runs, link)
    assert html.count("<li>") - html.count("<li><a href=") == RUNS_SHOWN
    assert f"31 runs, the last {RUNS_SHOWN} of them" in outline(html).text
    assert 'aria-label="Seconds, oldest first: 2.0, 3.0,' in html
    assert 'aria-label="pgd bytes changed, oldest first: 0, 0,' in html
    assert html.count("<svg") == 2


def test_a_drawing_starts_at_zero_and_leaves_out_what_was_not_measured() -> None:
    seconds, _, fidelity, pgd, _ = FIGURES
    runs = [replace(record("a@g/k", "01"), seconds=value) for value in (10.0, 0.0, 5.0)]
    drawn = series(seconds, runs)
    assert drawn is not None
    assert (drawn.path, drawn.span, drawn.latest) == ("M4 4L236 20", "5.0 to 10.0", "5.0")
    assert series(fidelity, runs) is None
    assert series(pgd, runs) is None  # always 0: nothing to look at
