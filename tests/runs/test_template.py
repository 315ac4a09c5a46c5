"""The same scenario with and without templates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from rig.evidence.reader import Evidence
from rig.memory.physical import VGA_TEXT
from rig.model import PAGE_SIZE, Checkpoint
from tests.runs.conftest import GUESTS, Done, checks, rig


@pytest.fixture(scope="module")
def template_runs(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Of guests that were booted by the runs before, if not earlier. The crash kernel runs."""
    results = tmp_path_factory.mktemp("template")
    assert rig("run", "panic", "--until", "handover", "--results", results).status == 0
    return rig("run", "panic", "--json", "--keep-memory", "--results", results)


@pytest.mark.vm
@pytest.mark.parametrize("guest", GUESTS)
def test_the_verdicts_are_the_same(panic_runs: Done, template_runs: Done, guest: str) -> None:
    booted, restored = panic_runs.results[guest], template_runs.results[guest]
    assert (booted["environment"]["template"]["used"], restored["environment"]["template"]["used"]) == (False, True)
    assert booted["environment"]["template"]["why"] == "--no-template"
    assert checks(restored) == checks(booted)
    assert {*checks(booted).values()} == {"pass"}
    phases = [[phase["name"] for phase in result["phases"]] for result in (booted, restored)]
    assert [phases[0][:3], phases[1][:3]] == [["prepare", "boot", "arm"], ["prepare", "restore", "arm"]]
    # what the template's own boot said is in this run's log, before what the crash kernel says
    log = (template_runs.directories[guest] / "console.log").read_bytes()
    assert log.count(b"Linux version ") == 2


@pytest.mark.vm
@pytest.mark.parametrize("guest", GUESTS)
def test_no_change_is_missed_where_only_what_was_written_to_is_read(template_runs: Done, guest: str) -> None:
    evidence = Evidence(template_runs.directories[guest])
    panic = ram(evidence, Checkpoint.PANIC)
    for checkpoint in (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER):
        differs = np.flatnonzero((ram(evidence, checkpoint) != panic).any(axis=1)).tolist()
        window = range(VGA_TEXT[0] // PAGE_SIZE, VGA_TEXT[1] // PAGE_SIZE)  # is no RAM
        assert [pfn for pfn in sorted(evidence.pages(checkpoint)) if pfn not in window] == differs
        assert differs


def ram(evidence: Evidence, checkpoint: Checkpoint) -> NDArray[np.uint64]:
    """All of it, a row for each page. The guests have too little of it for a part to be moved behind a PCI hole."""
    with (evidence.path / "memory" / f"{checkpoint}.ram.zst").open("rb") as packed:
        blob = zstandard.ZstdDecompressor().stream_reader(packed).read()
    return np.frombuffer(blob, np.uint64).reshape(-1, PAGE_SIZE // 8)


@pytest.mark.vm
def test_a_run_until_the_handover(template_runs: Done, tmp_path: Path) -> None:
    assert template_runs.status == 0
    done = rig("run", "panic", "--guest", "pae", "--until", "handover", "--json", "--results", tmp_path)
    assert done.status == 0
    result = done.results["pae"]
    full = checks(template_runs.results["pae"])
    later = {"crash-kernel-boots", "user-space-survives", "vmcore-registers"}
    assert checks(result) == {name: verdict for name, verdict in full.items() if name not in later}
    pgd = next(check for check in result["checks"] if check["name"] == "pgd-survives")
    assert [row["checkpoint"] for row in pgd["figures"]["compared"]] == [Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER]
    assert result["environment"]["until"] == "handover"
    judged = rig("check", done.directories["pae"], "--json").results["pae"]
    assert checks(judged) == checks(result)


@pytest.mark.vm
def test_damage_is_seen_by_the_handover(tmp_path: Path) -> None:
    words = ("flipped-bit", "--guest", "i386", "--seed", "1", "--until", "handover")
    done = rig("run", *words, "--json", "--results", tmp_path)
    assert done.status == 0  # fails, as the scenario expects
    assert checks(done.results["i386"])["pgd-survives"] == "fail"
