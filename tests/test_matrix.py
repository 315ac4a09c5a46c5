from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig import matrix
from rig.model import CheckResult, Phase, RunPlan, Verdict
from rig.plan import plan
from tests.report import forge
from tests.test_plan import CATALOGUE

PAE, BIG = plan(CATALOGUE, ["panic"])
OTHER = plan(CATALOGUE, ["kdump"])[0]


def skipped(cell: RunPlan) -> RunPlan:
    return replace(cell, skip="there is none")


def test_what_never_ran_takes_as_long_as_its_guests_other_cells() -> None:
    known = {PAE.slug: 10.0, BIG.slug: 30.0}
    assert matrix.estimates([PAE, BIG, OTHER, skipped(OTHER)], known) == [10.0, 30.0, 10.0, 0.0]
    assert matrix.estimates([PAE, BIG], {BIG.slug: 30.0}) == [30.0, 30.0]
    assert matrix.estimates([PAE, skipped(BIG)], {}) == [None, 0.0]


def test_wall_time_of_cells_side_by_side() -> None:
    assert matrix.wall([10, 20, 5], 1) == 35
    assert matrix.wall([10, 20, 5], 2) == 20  # 10 + 5 beside 20
    assert matrix.wall([], 2) == 0


@pytest.mark.parametrize(("seconds", "words"), [(44.6, "45 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_durations(seconds: float, words: str) -> None:
    assert matrix.duration(seconds) == words


def test_timings_are_kept_and_the_last_one_counts(tmp_path: Path) -> None:
    timings = matrix.Timings(tmp_path / "timings")
    assert timings.read() == {}
    for slug, seconds in (("a", 3.25), ("a", 4.0), ("b", 1.0)):
        timings.keep(slug, replace(forge.PASSED, phases=(Phase("boot", seconds),)))
    timings.keep("skipped", replace(forge.PASSED, phases=()))
    (tmp_path / "timings" / "c").write_text("no number")
    assert timings.read() == {"a": 4.0, "b": 1.0}


def test_a_plan_says_how_many_how_long_and_why_not() -> None:
    text = "\n".join(matrix.plan_lines([PAE, BIG, skipped(OTHER)], {PAE.slug: 10.0}, 2))
    assert "panic@x86_64/stock  ~10 s" in text
    assert "skip: there is none" in text
    assert "3 cells, 1 of them skipped" in text
    assert "about 10 s, 2 at a time" in text
    assert "~ 1 never ran here" in text
    assert "is not known" in "\n".join(matrix.plan_lines([PAE], {}, 2))


def test_what_came_of_it_says_why_for_each_that_is_no_plain_pass() -> None:
    reason = "CONFIG_KEXEC_FILE: there is none on i386"
    skip = forge.result(Verdict.SKIP, [CheckResult("pgd-survives", Verdict.SKIP, reason)])
    lines = matrix.lines([forge.PASSED, forge.FAILED, forge.BROKEN_OFF, forge.SABOTAGED, skip])
    text = " ".join(" ".join(lines).split())
    assert lines[0].startswith("✓ PASS")
    assert lines[1].startswith("✗ FAIL")  # nothing stands between: a pass needs no words
    assert "pgd-survives: " + forge.OVERWRITTEN.summary in text
    assert forge.HUNG.message in text
    assert reason in text
    assert lines[-1] == "5 cells: 1 pass, 1 ok, 1 fail, 1 error, 1 skip"
    assert max(map(len, lines)) <= 80
