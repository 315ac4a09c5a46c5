"""Two runs side by side: what got worse, what the exit code says, what is shown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rig.model import CheckResult, KernelIdentity, Phase, RunResult, Verdict
from rig.report.compare import Comparison, Course, compare, exit_code, in_order, overall
from rig.report.compare_text import many_text, one_text
from rig.report.text import WIDTH
from rig.report.tracediff import ControlPair, Instruction, Line, WayDifference
from tests.report import forge, kinds

NO_WAY = "after: trace.log.zst is missing"
HUNK = (
    Line(" ", Instruction(0, "f+0x0", "nop", "", "f: nop")),
    Line("-", Instruction(1, "f+0x1", "cli", "IF 1 -> 0", "f: cli")),
)
CONTROLS = (ControlPair("f+0x1: IF 1 -> 0", ""), ControlPair("g+0x0: CR3 0x1 -> 0x2", "g+0x0: CR3 0x3 -> 0x4"))
WAY = WayDifference((2, 1), (HUNK,), CONTROLS)


def pair(before: RunResult, after: RunResult, way: WayDifference | None = WAY) -> Comparison:
    return compare(before, after, way, "" if way else NO_WAY)


def text_of(comparison: Comparison) -> str:
    return one_text(comparison).plain


UNJUDGED = forge.result(
    Verdict.SKIP, [forge.SURVIVED, CheckResult("crash-kernel-boots", Verdict.SKIP, "no")], surprise="not judged"
)


@pytest.mark.parametrize(
    ("before", "after", "course", "code"),
    [
        (forge.PASSED, forge.PASSED, Course.SAME, 0),
        (forge.PASSED, forge.FAILED, Course.WORSE, 1),
        (forge.FAILED, forge.PASSED, Course.BETTER, 0),
        (forge.FAILED, forge.FAILED, Course.SAME, 0),
        (forge.SABOTAGED, forge.UNNOTICED, Course.WORSE, 1),  # it passes, where it had to fail
        (forge.UNNOTICED, forge.SABOTAGED, Course.BETTER, 0),
        (forge.PASSED, UNJUDGED, Course.WORSE, 1),
        (forge.PASSED, forge.BROKEN_OFF, Course.WORSE, 3),
        (forge.BROKEN_OFF, forge.PASSED, Course.BETTER, 3),
        (forge.BROKEN_OFF, forge.FAILED, Course.WORSE, 3),  # against what?
        (forge.PASSED, kinds.HALF_JUDGED, Course.WORSE, 3),
        (kinds.SKIPPED, kinds.SKIPPED, Course.SAME, 0),
    ],
)
def test_course_and_exit_code(before: RunResult, after: RunResult, course: Course, code: int) -> None:
    found = pair(before, after)
    assert overall(found) is course
    assert exit_code([found]) == code
    assert exit_code([found, pair(forge.PASSED, forge.PASSED)]) == code


def test_a_failure_outweighs_what_could_not_be_judged() -> None:
    assert exit_code([pair(forge.PASSED, forge.BROKEN_OFF), pair(forge.PASSED, forge.FAILED)]) == 1


def test_a_check_that_got_worse_in_a_run_that_failed_before() -> None:
    dead = replace(forge.BOOTS, verdict=Verdict.FAIL)
    after = forge.result(Verdict.FAIL, [forge.OVERWRITTEN, dead, forge.LEDGER, forge.REGISTERS], surprise="two failed")
    found = pair(forge.FAILED, after)
    assert (found.course, overall(found), exit_code([found])) == (Course.SAME, Course.WORSE, 1)


def test_a_kernel_built_to_misbehave_is_worse_than_the_one_it_was_made_of() -> None:
    """It fails as its own scenario expects; which is what the other one did not."""
    found = pair(forge.PASSED, forge.SABOTAGED)
    assert (found.course, exit_code([found])) == (Course.WORSE, 1)
    assert [one.name for one in found.checks if one.course is Course.WORSE] == ["pgd-survives"]
    assert pair(forge.SABOTAGED, forge.PASSED).course is Course.BETTER


def test_checks_that_one_side_lacks_are_told_and_are_not_worse() -> None:
    found = pair(forge.PASSED, forge.result(Verdict.PASS, [forge.BOOTS, forge.SURVIVED]))
    assert {one.name: one.course for one in found.checks} == {
        "crash-kernel-boots": Course.SAME,
        "pgd-survives": Course.SAME,
        "memory-accounted": Course.GONE,
        "vmcore-registers": Course.GONE,
    }
    assert exit_code([found]) == 0
    assert "gone   memory-accounted: ✓ pass -> none" in text_of(found)


def test_kernels_phases_and_figures() -> None:
    kernel = KernelIdentity("debian-6.12", "6.12.1-amd64", "cd" * 32)
    figures = {**forge.BOOTS.figures, "seconds": 9.45}
    after = replace(
        forge.PASSED,
        kernel=kernel,
        checks=(replace(forge.BOOTS, figures=figures), forge.SURVIVED),
        phases=(Phase("boot", 7.161), Phase("new", 1.0)),
    )
    text = text_of(pair(forge.PASSED, after))
    assert "  kernel.release: 6.1.0-56-amd64 -> 6.12.1-amd64\n" in text
    assert re.search(r"^    seconds +6\.3 -> 9\.45 +\+50\.0 %$", text, re.MULTILINE)
    assert re.search(r"^    boot +6\.510 -> 7\.161 +\+10\.0 %$", text, re.MULTILINE)
    assert re.search(r"^    new +none -> 1\.000$", text, re.MULTILINE)
    assert "argv" not in text


def test_the_hand_over() -> None:
    text = text_of(pair(forge.PASSED, forge.PASSED))
    assert "hand-over: 2 -> 1 instructions; 1 only before, 0 only after\n  - f+0x1: IF 1 -> 0\n" in text
    assert re.search(r"^  - +1 f\+0x1 +cli  ; IF 1 -> 0$", text, re.MULTILINE)
    assert "CR3 0x1" not in text  # the same on both sides, but for the values
    assert f"hand-over: not compared: {NO_WAY}" in text_of(pair(forge.PASSED, forge.PASSED, None))


@pytest.mark.parametrize("before", kinds.ALL)
@pytest.mark.parametrize("after", [forge.PASSED, kinds.NASTY])
def test_every_kind_in_80_columns_without_control_characters(before: RunResult, after: RunResult) -> None:
    lines = text_of(pair(before, after)).splitlines()
    assert all(line.isprintable() for line in lines)
    assert all(len(line) <= WIDTH or " " not in line.strip() for line in lines)


def test_many() -> None:
    def named(result: RunResult, name: str) -> RunResult:
        return replace(result, id=f"{name}@i386/k")

    results = {
        "same": (forge.PASSED, forge.PASSED),
        "fixed": (forge.FAILED, forge.PASSED),
        "broken": (forge.PASSED, forge.FAILED),
    }
    pairs = [pair(named(old, name), named(new, name)) for name, (old, new) in results.items()]
    assert [one.name.partition("@")[0] for one in in_order(pairs)] == ["broken", "fixed", "same"]
    lines = many_text(pairs, ([], [f"gone-{n}" for n in range(9)])).plain.splitlines()
    assert lines[0] == "3 runs on both sides: 1 worse, 1 better, 1 same"
    assert lines[1].startswith("  9 only after: gone-0, ")
    assert "and 3 more" in " ".join(lines[1:4])
    assert re.fullmatch(r"  worse  PASS -> FAIL +1 +\d+ +-1/\+0  broken@i386/k", lines[-3])
    assert all(len(line) <= WIDTH for line in lines)
