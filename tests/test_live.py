"""What a phase makes of an error."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from rig import conductor
from rig.catalog import load
from rig.errors import CouldNotJudge, EvidenceError, GuestDied, GuestHung, MachineError, ProtocolError
from rig.evidence import TRACEBACK
from rig.evidence.writer import EvidenceWriter
from rig.live import Run
from rig.model import Options
from rig.plan import plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    [one] = plan(load(), ["panic"], ["i386"], None, None, None)
    return Run(one, Options(results=tmp_path), EvidenceWriter(tmp_path, "run"), lambda _: None, threading.Event())


@pytest.mark.parametrize("problem", [GuestDied("QEMU ended"), GuestHung("in vain"), CouldNotJudge("something else")])
def test_every_error_of_a_phase_names_it_and_says_what_to_do(run: Run, problem: CouldNotJudge) -> None:
    with pytest.raises(type(problem)), run.in_phase("panic", "the panic"):
        raise problem
    assert problem.phase == "panic"
    assert problem.hint


def test_words_of_the_guests_that_nobody_foresaw_are_no_bug_of_the_rigs(run: Run) -> None:
    """Seen with a guest that answered what it was not asked."""
    told: dict[str, str] = {}
    with pytest.raises(ProtocolError, match="KeyError: 'missing'") as caught, run.in_phase("arm", "the new image"):
        told["missing"].split()
    assert caught.value.phase == "arm"
    assert "test_live.py" in (run.writer.path / TRACEBACK).read_text()


@pytest.mark.parametrize(
    ("trouble", "says", "hint"),
    [
        (OSError(errno.ENOSPC, "No space"), "can't be kept: .*: No space", "make room"),
        (OSError(errno.EMFILE, "Too many"), "can't be kept: .*: Too many", "ulimit -n"),
        (OSError(errno.EFBIG, "Too large"), "can't be kept: .*: Too large", "ulimit -f"),
        (EvidenceError("run.json is missing"), "can't be kept: run.json is missing", "did somebody remove"),
        (MemoryError(), "memory .* does not suffice", "ulimit -v"),
    ],
    ids=["disk", "descriptors", "size", "removed", "memory"],
)
def test_evidence_that_can_not_be_kept(
    trouble: Exception, says: str, hint: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint is against what is short, and nothing is left of the run."""

    def perform(_run: object) -> None:
        raise trouble

    monkeypatch.setattr(conductor._Run, "perform", perform)
    results = tmp_path / "results"
    with pytest.raises(MachineError, match=says) as caught:
        conductor.run(run.plan, Options(results=results), lambda _: None, threading.Event())
    assert hint in caught.value.hint
    assert list(results.iterdir()) == []
