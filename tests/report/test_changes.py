"""What has changed since the last run of a cell, and what is flaky."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rig.history import Record
from rig.model import Verdict
from rig.report.changes import FLAKY_RUNS, Kind, by_id, changes
from tests.report.nights import record

P, F, E, S = Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.SKIP
CELL = "panic@pae/debian-6.1"


def nights(verdicts: Sequence[Verdict], kernels: str = "") -> list[Record]:
    """A run a night; kernels: a letter for each kernel image, one for all unless given."""
    images = kernels or "a" * len(verdicts)
    return [
        record(CELL, f"{at:02}", verdict, sha256=image * 64)
        for at, (verdict, image) in enumerate(zip(verdicts, images, strict=True), 1)
    ]


def kinds(runs: list[Record]) -> list[Kind]:
    return [change.kind for change in changes({CELL: runs})]


@pytest.mark.parametrize(
    ("verdicts", "kind"),
    [
        ([F], [Kind.FAILURE]),
        ([P], []),
        ([E], [Kind.UNJUDGED]),
        ([S], []),
        ([P, F], [Kind.FAILURE]),
        ([S, F], [Kind.FAILURE]),
        ([F, F], []),
        ([P, E], [Kind.UNJUDGED]),
        ([F, P], [Kind.FIXED]),
        ([E, P], [Kind.FIXED]),
        ([S, P], []),
        ([P, S], [Kind.SKIPPED]),
        ([F, P, P], []),
    ],
)
def test_since_the_last_run(verdicts: list[Verdict], kind: list[Kind]) -> None:
    every_night_another_kernel = "abcdef"[: len(verdicts)]
    assert kinds(nights(verdicts, every_night_another_kernel)) == kind


@pytest.mark.parametrize(
    ("verdicts", "kernels", "flaky"),
    [
        ([P, F, P], "aaa", True),
        ([P, E, P], "aaa", True),
        ([P, F, P, P], "abaa", False),  # the failure was another kernel's
        ([P, P, P], "aaa", False),
        ([F, *[P] * (FLAKY_RUNS - 1)], "", True),
        ([F, *[P] * FLAKY_RUNS], "", False),  # too long ago
    ],
)
def test_flaky_is_the_same_kernel_with_another_verdict_of_late(
    verdicts: list[Verdict], kernels: str, flaky: bool
) -> None:
    assert (Kind.FLAKY in kinds(nights(verdicts, kernels))) is flaky


@pytest.mark.parametrize(
    ("verdicts", "kernels", "kind"),
    [
        ([E, P], "aa", [Kind.FLAKY]),  # a cell of a matrix, and its second attempt
        ([P, F, P], "aaa", [Kind.FLAKY]),
        ([P, F], "aa", [Kind.FAILURE, Kind.FLAKY]),
        ([F, P], "ab", [Kind.FIXED]),
    ],
)
def test_what_is_flaky_is_not_fixed(verdicts: list[Verdict], kernels: str, kind: list[Kind]) -> None:
    assert kinds(nights(verdicts, kernels)) == kind


def test_runs_that_never_had_a_kernel_are_not_flaky() -> None:
    runs = [record(CELL, "01", E, sha256=""), record(CELL, "02", S, sha256="")]
    assert Kind.FLAKY not in [change.kind for change in changes({CELL: runs})]


def test_failures_come_first_and_of_them_the_latest() -> None:
    cells = by_id(
        [
            record("z@g/k", "01", F),
            record("a@g/k", "01", F, sha256="a" * 64),
            record("a@g/k", "04", P, sha256="b" * 64),
            record("m@g/k", "03", F),
        ]
    )
    assert list(cells) == ["a@g/k", "m@g/k", "z@g/k"]
    assert [(change.kind, change.record.id[0]) for change in changes(cells)] == [
        (Kind.FAILURE, "m"),
        (Kind.FAILURE, "z"),
        (Kind.FIXED, "a"),
    ]


def test_the_note_says_what_it_was() -> None:
    new, flaky = changes({CELL: nights([P, P, F])})
    assert new.note == "before: PASS, 2026-11-02 01:02"
    assert flaky.note == "3 runs of the same kernel: 2 PASS, 1 FAIL"
