"""The verdict in a terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rig.model import CheckResult, RunResult, Verdict
from rig.report.text import ENTRIES_SHOWN, verdict_lines, verdict_text
from tests.report import forge

WHERE = Path("results/panic_x86_64_debian-6.1")
ALL = [forge.PASSED, forge.FAILED, forge.SABOTAGED, forge.UNNOTICED, forge.BROKEN_OFF]


def test_a_pass_in_full() -> None:
    assert verdict_lines(forge.PASSED, WHERE) == [
        "✓ PASS  panic@x86_64/debian-6.1",
        "  The page directory survived: 0 of 4096 bytes at 0x1fef0000 changed from panic",
        "    to crash-kernel.",
        "    ✓ pgd-survives        pass",
        "    ✓ crash-kernel-boots  pass   6.1.0-56-amd64 reached user space 6.3 s after",
        "                                 the hand-over, /proc/vmcore is there",
        "    ✓ memory-accounted    pass   642 bytes changed in 13 pages outside the crash",
        "                                 region, every one has an owner",
        "    ✓ vmcore-registers    pass   NT_PRSTATUS of CPU 0 agrees with its state at",
        "                                 panic; 1 note for 1 CPU",
        "  evidence: results/panic_x86_64_debian-6.1",
    ]


def test_a_failure_names_the_entries_and_the_writer() -> None:
    lines = verdict_lines(forge.FAILED, WHERE)
    assert lines[0] == "✗ FAIL  panic@x86_64/debian-6.1"
    assert "    [0]     0x8000000012792067 -> 0x000000001fe93063  handover" in lines
    assert sum("->" in line for line in lines) == ENTRIES_SHOWN
    assert "    ... and 248 more entries" in lines
    assert "    written by overwrite+0x1c [overwrite_pgd], called from machine_kexec+0x7b" in lines


def test_two_level_entries_are_four_bytes_wide() -> None:
    figures = forge.pgd_figures(
        mode="2-level", bytes_changed=3, entries_changed=[{"index": 85, "before": 0, "after": 0x1F8F0063}]
    )
    run = forge.result(Verdict.FAIL, [CheckResult("pgd-survives", Verdict.FAIL, "", figures)], surprise="failed")
    assert "    [85]    0x00000000 -> 0x1f8f0063" in verdict_lines(run, WHERE)


def test_failed_as_expected_cannot_be_taken_for_failed() -> None:
    sabotaged, failed = verdict_lines(forge.SABOTAGED, WHERE), verdict_lines(forge.FAILED, WHERE)
    assert sabotaged[0] == "✓ OK    overwritten-pgd@x86_64/debian-6.1: failed as expected"
    assert "    ✓ pgd-survives        fail   (as expected)" in sabotaged
    assert "FAIL" not in "\n".join(sabotaged)
    assert "expected" not in "\n".join(failed)


def test_an_unnoticed_sabotage_is_a_failure() -> None:
    lines = verdict_lines(forge.UNNOTICED, WHERE)
    assert lines[0] == "✗ FAIL  overwritten-pgd@x86_64/debian-6.1: passed, but had to fail"
    assert "went\n    unnoticed" in "\n".join(lines)
    assert "    ✗ pgd-survives        pass   (should have failed)" in lines


def test_an_error_says_phase_message_hint_and_last_words() -> None:
    lines = verdict_lines(forge.BROKEN_OFF, WHERE)
    assert lines[0] == "! ERROR panic@x86_64/debian-6.1: could not judge"
    assert lines[1].startswith("  in phase boot: the guest printed nothing")
    assert any(line.startswith("  hint: raise --deadline") for line in lines)
    assert "  | VFS: Unable to mount root fs" in lines
    assert lines[-1] == f"  evidence: {WHERE}"


def test_only_the_last_console_lines() -> None:
    error = replace(forge.HUNG, console="".join(f"line {n}\n" for n in range(100)))
    lines = verdict_lines(replace(forge.BROKEN_OFF, error=error), WHERE)
    assert "  | line 99" in lines
    assert "  | line 88" in lines
    assert "  | line 87" not in lines


def test_summary_is_shown_where_the_figures_do_not_carry_the_headline() -> None:
    check = CheckResult("pgd-survives", Verdict.FAIL, "CR3 was 0 at panic", {})
    lines = verdict_lines(forge.result(Verdict.FAIL, [check], surprise="failed"), WHERE)
    assert "    ✗ pgd-survives  FAIL   CR3 was 0 at panic" in lines


@pytest.mark.parametrize("run", ALL, ids=lambda run: f"{run.scenario}-{run.verdict}")
@pytest.mark.parametrize("width", [80, 100])
def test_fits_the_width(run: RunResult, width: int) -> None:
    assert max(len(line) for line in verdict_lines(run, WHERE, width)) <= width


@pytest.mark.parametrize("run", ALL, ids=lambda run: f"{run.scenario}-{run.verdict}")
def test_styled_text_says_the_same(run: RunResult) -> None:
    assert verdict_text(run, WHERE).plain.split("\n") == verdict_lines(run, WHERE)


def test_hostile_console_text_reaches_a_terminal_as_text() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=200)
    console.print(verdict_text(forge.BROKEN_OFF, WHERE, 200), soft_wrap=True)
    printed = stream.getvalue()
    assert r"\x1b[2J\x1b]0;title\x07 [bold red]markup[/] \u202egnp.exe" in printed
    assert "\x1b[2J" not in printed
    assert "\x1b]0;" not in printed
    assert "\x1b[1;33m! ERROR" in printed  # our own style, on the other hand, is there


def test_figures_that_steer_a_terminal_are_shown() -> None:
    steers = "\x1b[2J\u202e"
    entry = {"index": steers, "before": 0, "after": 1, "checkpoint": steers}
    told = {"compared": [{"checkpoint": steers}], "owner": {"name": steers}}
    figures = forge.pgd_figures(bytes_changed=4, entries_changed=[entry], **told)
    check = CheckResult("pgd-survives", Verdict.FAIL, steers, figures)
    text = "".join(verdict_lines(forge.result(Verdict.FAIL, [check]), Path("x")))
    assert text.count(r"\x1b[2J\u202e") == 4
    assert not set("\x1b\u202e") & set(text)
