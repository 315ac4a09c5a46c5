"""What once failed in a campaign, and what campaigns begin with: no target complains. And the runner can fail."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.campaign import Tally, Target, distinct, kept, main, targets, try_one

SECONDS = 2.0  # of CPU for one input, as in a campaign
TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_failed_fails_no_more(name: str) -> None:
    tally = Tally()
    for data in (b"", *TARGETS[name].seeds):
        try_one(TARGETS[name], data, SECONDS, tally)
    assert tally.failures == {}
    assert tally.inputs == 1 + len(TARGETS[name].seeds) > len(kept(name))


def test_a_failure_is_counted_once_with_its_smallest_input() -> None:
    def fussy(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError(data)

    tally = Tally()
    for data in (b"12\xff", b"\xff", b"fine", b"3456\xff"):
        try_one(Target("fussy", fussy, ()), data, SECONDS, tally)
    assert tally.inputs == 4
    ((what, (data, told)),) = tally.failures.items()
    assert what.startswith("KeyError at tests/fuzz/test_bytes_corpus.py:")
    assert data == b"\xff"
    assert "in fussy" in told


def test_an_input_that_takes_too_long_is_one() -> None:
    def slow(data: bytes) -> None:
        while data:
            pass

    tally = Tally()
    try_one(Target("slow", slow, ()), b"x", 0.05, tally)
    assert [what.partition(":")[0] for what in tally.failures] == ["TooLong at tests/fuzz/test_bytes_corpus.py"]


def test_what_comes_from_nowhere_in_the_project_has_a_name_too() -> None:
    assert distinct(MemoryError()) == "MemoryError at nowhere"


def test_without_atheris_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert main(["elf"]) == 2
    assert "pip install 'rig[fuzz]'" in capsys.readouterr().err
