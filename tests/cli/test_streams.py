"""stdout and stderr that take nothing: the exit status stays true, and what is kept is said to be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from rig.cli import main
from tests.cli.pretended import Conductor, pretend, words

FULL = "stdout: No space left on device: not all of the results could be shown; they are kept in"
RUNS = ("run panic --guest pae", "run panic --guest pae --json")


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file on a disk without room."""
    with open("/dev/full", "w") as stream:
        yield stream


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        yield stream


@pytest.mark.parametrize("words_", [*RUNS, "matrix panic@pae/debian-6.1"])
def test_a_result_that_can_not_be_shown_is_said_to_be_kept(
    words_: str,
    full: TextIO,
    conductor: Conductor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entered: list[Path] = []
    pretend(monkeypatch, "rig.report.site", update=lambda results, finished, tell: entered.append(results))
    monkeypatch.setattr(sys, "stdout", full)
    assert main([*words(words_), "--results", "kept"]) == 3
    said = capsys.readouterr().err
    assert f"rig: {FULL} kept/panic_pae_debian-6.1 (1 pass)\n  hint: " in said
    assert "`rig check kept/panic_pae_debian-6.1`" in said
    assert entered == [Path("kept")], "the history has it nevertheless"


def test_of_many_results_the_directory_is_named(
    full: TextIO, conductor: Conductor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert main(words("run panic")) == 3
    assert f"{FULL} results (3 pass)" in capsys.readouterr().err


@pytest.mark.parametrize("words_", RUNS)
def test_nobody_reads_it(words_: str, unread: TextIO, conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    """1, with which rich ends a process then, would say that a check failed."""
    monkeypatch.setattr(sys, "stdout", unread)
    assert main(words(words_)) == 141


def test_a_refusal_that_stdout_does_not_take(
    full: TextIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert main(words("run nosuch --json")) == 3
    said = capsys.readouterr().err
    assert "rig: unknown scenario 'nosuch'" in said
    assert "rig: No space left on device (the output?)" in said
    assert "a bug of the rig" not in said


@pytest.mark.parametrize("kind", ["full", "unread"])
def test_a_refusal_that_stderr_does_not_take(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", request.getfixturevalue(kind))
    assert main(words("run nosuch")) == 2


def test_started_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python has it after `<&- >&- 2>&-`."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["list"]) == 0
    assert (sys.stdin.read(), sys.stdout.name, sys.stderr.name) == ("", os.devnull, os.devnull)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
