"""The main job on three real guests, judged by what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rig.catalog import load
from rig.evidence.reader import Evidence
from rig.evidence.writer import to_json
from rig.judge import judge_dir
from rig.memory import levels
from rig.model import Checkpoint
from tests.report.published import VALIDATOR
from tests.runs.conftest import GUESTS, Done, checks, figures, rig
from tests.test_warmup import imported_afterwards

pytestmark = pytest.mark.vm

OTHERS = (Checkpoint.SECOND_KERNEL, Checkpoint.RETURNED)  # checkpoints that a kdump has not
MODES = {"i386": "2-level", "pae": "pae", "x86_64": "4-level"}


def test_all_guests_pass(panic_runs: Done) -> None:
    names = load(()).scenarios["panic"].checks
    assert {guest: (r["verdict"], checks(r)) for guest, r in panic_runs.results.items()} == {
        guest: ("pass", dict.fromkeys(names, "pass")) for guest in GUESTS
    }, panic_runs.err
    assert panic_runs.status == 0


@pytest.mark.parametrize("guest", GUESTS)
def test_result_json_is_as_published(panic_runs: Done, guest: str) -> None:
    written = json.loads((panic_runs.directories[guest] / "result.json").read_text())
    VALIDATOR.validate(written)
    assert written == panic_runs.results[guest]


@pytest.mark.parametrize("guest", GUESTS)
def test_the_pgd_was_looked_at_everywhere(panic_runs: Done, guest: str) -> None:
    pgd = figures(panic_runs.results[guest], "pgd-survives")
    assert pgd["mode"] == MODES[guest]
    assert [c["checkpoint"] for c in pgd["compared"]] == ["machine-kexec", "handover", "crash-kernel", "vmcore"]
    assert pgd["vmcore"]["via"] == "ssh"
    evidence = Evidence(panic_runs.directories[guest])
    facts = evidence.facts
    assert facts.mode is not None
    assert facts.cr3 is not None
    root = evidence.memory(Checkpoint.PANIC).read(levels.root(facts.mode, facts.cr3), levels.root_size(facts.mode))
    assert any(root), "an empty page directory was compared with an empty page directory"


@pytest.mark.parametrize("guest", GUESTS)
def test_the_task_that_panicked_held_the_pattern(panic_runs: Done, guest: str) -> None:
    evidence = Evidence(panic_runs.directories[guest])
    pattern = evidence.facts.pattern
    assert pattern is not None
    assert pattern.bytes >= 2 * len(pattern.token)
    assert evidence.memory(Checkpoint.PANIC).read(pattern.physical, len(pattern.token)).decode() == pattern.token


@pytest.mark.parametrize("guest", GUESTS)
def test_registers_are_there_for_every_cpu_and_checkpoint(panic_runs: Done, guest: str) -> None:
    evidence = Evidence(panic_runs.directories[guest])
    assert {name: len(cpus) for name, cpus in evidence.registers().items()} == {
        str(c): 1 for c in Checkpoint if c not in OTHERS
    }
    handover, image = evidence.crashing_cpu(Checkpoint.HANDOVER), evidence.facts.kimage
    assert image is not None
    assert handover.general["rip"] == image.start


@pytest.mark.parametrize("guest", GUESTS)
def test_evidence_is_small_and_judged_again_bit_for_bit(panic_runs: Done, guest: str, tmp_path: Path) -> None:
    directory = panic_runs.directories[guest]
    sizes = {p: p.stat().st_size for p in directory.rglob("*") if p.is_file() and not p.name.endswith(".ram.zst")}
    assert sum(sizes.values()) < 10 << 20
    assert to_json(judge_dir(directory)) == (directory / "result.json").read_bytes()


@pytest.mark.parametrize("guest", GUESTS)
def test_what_it_is_judged_with_was_imported_while_the_guest_was_busy(panic_runs: Done, guest: str) -> None:
    assert imported_afterwards(Evidence(panic_runs.directories[guest])) == []


def test_check_prints_what_run_printed(panic_runs: Done) -> None:
    done = rig("check", "--json", *panic_runs.directories.values())
    assert done.status == 0
    assert done.document["runs"] == panic_runs.document["runs"]


def test_a_report_stands_beside_each_result(panic_runs: Done) -> None:
    for guest, directory in panic_runs.directories.items():
        page = (directory / "report.html").read_text()
        assert f"panic@{guest}/" in page
        assert "Kernel panic - not syncing" in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_second_cpu_is_stopped_and_noted(tmp_path: Path) -> None:
    """memory-accounted is not asserted: the other CPU may change anything until it is stopped."""
    done = rig("run", "panic", "--guest", "x86_64-smp", "--json", "--results", tmp_path)
    result = done.results["x86_64-smp"]
    verdicts = checks(result)
    assert {name: verdicts[name] for name in ("pgd-survives", "crash-kernel-boots", "vmcore-registers")} == {
        "pgd-survives": "pass",
        "crash-kernel-boots": "pass",
        "vmcore-registers": "pass",
    }, done.err
    assert figures(result, "vmcore-registers")["cpus"] == 2
    evidence = Evidence(done.directories["x86_64-smp"])
    assert [len(evidence.cpus(c)) for c in Checkpoint if c not in OTHERS] == [2, 2, 2, 2, 2]
    assert len(evidence.facts.crash_notes) == 2
