from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig import matrix
from rig.model import CheckResult, Phase, RunPlan, Verdict
from rig.plan import plan
from rig.pool import Capacity
from rig.progress import duration
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
    three = [PAE] * 3
    assert matrix.wall(three, [10, 20, 5], Capacity(1, 100_000)) == 35
    assert matrix.wall(three, [10, 20, 5], Capacity(4, 100_000)) == 20  # each has 2 CPUs: 10 + 5 beside 20
    wide = [PAE, replace(PAE, guest=replace(PAE.guest, cpus=4)), PAE]
    assert matrix.wall(wide, [10, 20, 5], Capacity(4, 100_000)) == 30  # 20 with all CPUs, then 10 beside 5
    assert matrix.wall([], [], Capacity(2, 100_000)) == 0


def test_a_forecast_takes_all_cells_to_be_known() -> None:
    assert matrix.forecast([PAE], {}, Capacity(2, 100_000)) is None
    known = {PAE.slug: 10.0, BIG.slug: 30.0}
    forecast = matrix.forecast([PAE, BIG], known, Capacity(1, 100_000))
    assert forecast is not None
    assert forecast.left({}, ()) == 40
    assert forecast.left({PAE.id: 4.0}, ()) == 36
    assert forecast.left({PAE.id: 14.0, BIG.id: 1.0}, {PAE.id}) == 29
    assert forecast.left({PAE.id: 14.0}, ()) == 30  # it took longer than expected: no less than nothing is left


@pytest.mark.parametrize(("seconds", "words"), [(44.6, "45 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_timings_are_kept_and_the_last_one_counts(tmp_path: Path) -> None:
    timings = matrix.Timings(tmp_path / "timings")
    assert timings.read() == {}
    for slug, seconds in (("a", 3.25), ("a", 4.0), ("b", 1.0)):
        timings.keep(slug, replace(forge.PASSED, phases=(Phase("prepare", 900.0), Phase("boot", seconds))))
    timings.keep("skipped", replace(forge.PASSED, phases=()))
    timings.keep("a", forge.BROKEN_OFF)
    (tmp_path / "timings" / "c").write_text("no number")
    assert timings.read() == {"a": 4.0, "b": 1.0}


def test_a_plan_says_how_many_how_long_and_why_not() -> None:
    text = "\n".join(matrix.plan_lines([PAE, BIG, skipped(OTHER)], {PAE.slug: 10.0}, Capacity(4, 100_000)))
    assert "panic@x86_64/stock  ~10 s" in text
    assert "skip: there is none" in text
    assert "3 cells, 1 of them skipped" in text
    assert "about 10 s, on 4 CPUs at a time" in text
    assert "~ 1 never ran here" in text
    assert "is not known" in "\n".join(matrix.plan_lines([PAE], {}, Capacity(2, 100_000)))


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


def test_a_second_attempt_is_never_silent() -> None:
    because = f"{forge.HUNG.message} | and a long word about what it was that it could not be judged for"
    retried = {matrix.RETRY_OF: "panic_pae_debian-6.1", matrix.RETRY_BECAUSE: because}
    again = replace(forge.PASSED, environment={**forge.PASSED.environment, **retried})
    lines = matrix.lines([forge.PASSED, again])
    assert "retried: the first attempt (panic_pae_debian-6.1) could not be judged: " in " ".join(
        " ".join(lines).split()
    )
    assert lines[-1] == "2 cells: 2 pass; 1 retried"
    assert max(map(len, lines)) <= 80
