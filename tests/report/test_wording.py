"""Words for results: outcomes, sentences, and text that a guest can't use against the reader."""

from dataclasses import replace
from typing import Any

import pytest

from rig.model import CheckResult, PagingMode, RunResult, Verdict
from rig.report.wording import (
    Tone,
    check_outcome,
    checks_sentence,
    entry_value,
    headline,
    mapped_range,
    outcome,
    pgd_sentence,
    printable,
    printable_lines,
)
from tests.report import forge


@pytest.mark.parametrize(
    ("run", "word", "phrase", "tone"),
    [
        (forge.PASSED, "PASS", "", Tone.GOOD),
        (forge.FAILED, "FAIL", "", Tone.BAD),
        (forge.SABOTAGED, "OK", "failed as expected", Tone.GOOD),
        (forge.UNNOTICED, "FAIL", "passed, but had to fail", Tone.BAD),
        (replace(forge.SABOTAGED, surprise="others failed"), "FAIL", "failed, but not as expected", Tone.BAD),
        (replace(forge.PASSED, surprise="odd"), "FAIL", "passed, but not as expected", Tone.BAD),
        (forge.BROKEN_OFF, "ERROR", "could not judge", Tone.UNKNOWN),
        (replace(forge.PASSED, verdict=Verdict.SKIP), "SKIP", "skipped", Tone.NEUTRAL),
    ],
)
def test_outcome(run: RunResult, word: str, phrase: str, tone: Tone) -> None:
    became = outcome(run)
    assert (became.word, became.phrase, became.tone) == (word, phrase, tone)


def test_a_failure_is_good_only_where_failure_is_expected() -> None:
    """Even with no surprise noted, a failed run of a scenario that expects a pass is a failure."""
    assert outcome(replace(forge.FAILED, surprise="")).tone is Tone.BAD


@pytest.mark.parametrize(
    ("verdict", "run", "word", "phrase"),
    [
        (Verdict.PASS, forge.PASSED, "pass", ""),
        (Verdict.FAIL, forge.PASSED, "FAIL", ""),
        (Verdict.FAIL, forge.SABOTAGED, "fail", "as expected"),
        (Verdict.PASS, forge.SABOTAGED, "pass", "should have failed"),
        (Verdict.ERROR, forge.SABOTAGED, "error", ""),
        (Verdict.SKIP, forge.PASSED, "skip", ""),
    ],
)
def test_check_outcome(verdict: Verdict, run: RunResult, word: str, phrase: str) -> None:
    became = check_outcome(CheckResult("pgd-survives", verdict, ""), run)
    assert (became.word, became.phrase) == (word, phrase)


def test_headline_says_page_bytes_and_span() -> None:
    assert headline(forge.PASSED) == (
        "The page directory survived: 0 of 4096 bytes at 0x1fef0000 changed from panic to crash-kernel."
    )
    assert headline(forge.FAILED) == (
        "The page directory did not survive: 2048 of 4096 bytes at 0x1fef0000 changed"
        " from panic to crash-kernel, in 256 entries."
    )


def test_headline_names_what_failed_though_the_pgd_survived() -> None:
    [pgd, *others] = forge.PASSED.checks
    failed = replace(others[0], verdict=Verdict.FAIL)
    told = headline(replace(forge.PASSED, checks=(pgd, failed, *others[1:])))
    assert told == f"{failed.name} failed. {headline(forge.PASSED)}"


def test_headline_of_an_error_is_the_error() -> None:
    assert headline(forge.BROKEN_OFF).startswith("In phase boot: the guest printed nothing")


def test_headline_without_the_pgd_counts_checks() -> None:
    failed = replace(forge.BOOTS, verdict=Verdict.FAIL)
    assert headline(forge.result(Verdict.PASS, [forge.BOOTS])) == "1 check, all passed."
    assert checks_sentence(forge.result(Verdict.FAIL, [failed, forge.LEDGER])) == (
        "2 checks, 1 passed; not: crash-kernel-boots (fail)."
    )


def test_one_entry_is_singular_and_root_comes_before_cr3() -> None:
    figures = forge.pgd_figures(
        bytes_changed=2, cr3=0x1FEF0003, root=0x1FEF0000, compared=[], entries_changed=[{"index": 1}]
    )
    sentence = pgd_sentence(CheckResult("pgd-survives", Verdict.FAIL, "", figures))
    assert sentence == "The page directory did not survive: 2 of 4096 bytes at 0x1fef0000 changed, in 1 entry."


@pytest.mark.parametrize(
    ("verdict", "figures"),
    [
        (Verdict.PASS, {}),
        (Verdict.PASS, {"cr3": 0x1000, "bytes_compared": 4096}),
        (Verdict.PASS, {"cr3": "0x1000", "bytes_compared": 4096, "bytes_changed": 0}),
        (Verdict.PASS, {"cr3": 0x1000, "bytes_compared": 4096, "bytes_changed": False}),
        (Verdict.PASS, {"cr3": 0x1000, "bytes_compared": 4096, "bytes_changed": 4}),  # contradicts itself
        (
            Verdict.FAIL,
            {"cr3": 0x1000, "bytes_compared": 4096, "bytes_changed": 0},
        ),  # failed for another reason
        (Verdict.ERROR, {"cr3": 0x1000, "bytes_compared": 4096, "bytes_changed": 0}),
    ],
)
def test_no_sentence_where_the_figures_do_not_carry_it(verdict: Verdict, figures: dict[str, Any]) -> None:
    assert pgd_sentence(CheckResult("pgd-survives", verdict, "", figures)) == ""


@pytest.mark.parametrize(
    ("index", "mode", "expected"),
    [
        (85, PagingMode.TWO_LEVEL, (0x15400000, 0x157FFFFF)),
        (1023, PagingMode.TWO_LEVEL, (0xFFC00000, 0xFFFFFFFF)),
        (3, PagingMode.PAE, (0xC0000000, 0xFFFFFFFF)),
        (4, PagingMode.PAE, None),
        (255, PagingMode.FOUR_LEVEL, (0x7F80_0000_0000, 0x7FFF_FFFF_FFFF)),
        (256, PagingMode.FOUR_LEVEL, (0xFFFF_8000_0000_0000, 0xFFFF_807F_FFFF_FFFF)),
        (511, PagingMode.FOUR_LEVEL, (0xFFFF_FF80_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)),
        (256, PagingMode.FIVE_LEVEL, (0xFF00_0000_0000_0000, 0xFF00_FFFF_FFFF_FFFF)),
        (-1, PagingMode.FOUR_LEVEL, None),
        (0, None, None),
    ],
)
def test_mapped_range(index: int, mode: PagingMode | None, expected: tuple[int, int] | None) -> None:
    assert mapped_range(index, mode) == expected


def test_entry_value_has_the_width_of_the_mode() -> None:
    assert entry_value(0x39E067, PagingMode.TWO_LEVEL) == "0x0039e067"
    assert entry_value(0x236021, PagingMode.PAE) == "0x0000000000236021"
    assert entry_value(None, PagingMode.PAE) == ""


def test_printable_shows_what_would_steer_a_terminal() -> None:
    assert printable("plain [red]text[/]") == "plain [red]text[/]"
    assert printable("\x1b[2J\x00\x9b\u202e\U000e0001\n") == r"\x1b[2J\x00\x9b\u202e\U000e0001\x0a"


def test_printable_lines_keeps_line_ends_only() -> None:
    assert printable_lines("a\r\nb\tc\n\nover\rwritten\n") == ["a", "b       c", "", r"over\x0dwritten"]
    assert printable_lines("") == []
