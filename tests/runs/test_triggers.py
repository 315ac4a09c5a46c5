"""Triggers and ways of loading that need a guest to be believed; the others are in scenarios/, for the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.evidence.reader import Evidence
from tests.runs.conftest import checks, figures, rig

pytestmark = pytest.mark.vm


def test_an_nmi_from_outside_hits_the_process_that_waits(tmp_path: Path) -> None:
    done = rig("run", "panic-nmi", "--guest", "x86_64", "--json", "--results", tmp_path)
    result = done.results["x86_64"]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    assert checks(result)["user-space-survives"] == "pass"
    # What is printed in NMI context is never seen on the console; but nothing else made that process panic.
    assert '"inject-nmi"' in (done.directories["x86_64"] / "qmp.jsonl").read_text()
    assert "sysrq" not in (done.directories["x86_64"] / "console.log").read_text(errors="replace")


def test_after_an_exception_the_dump_has_its_registers(tmp_path: Path) -> None:
    done = rig("run", "panic-null-write", "--guest", "i386", "--json", "--results", tmp_path)
    result = done.results["i386"]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    registers = figures(result, "vmcore-registers")["exception"]
    evidence = Evidence(done.directories["i386"])
    assert evidence.vmcore.prstatus[0].general["rip"] == registers["rip"]
    assert registers["rip"] != evidence.facts.symbols["__crash_kexec"]


def test_without_a_crash_kernel_it_is_a_plain_panic(tmp_path: Path) -> None:
    done = rig("run", "load-none", "--guest", "i386", "--json", "--results", tmp_path)
    result = done.results["i386"]
    assert (done.status, checks(result)) == (0, {"plain-panic": "pass"}), done.err
    assert figures(result, "plain-panic")["ending"] == "guest-reset"


def test_what_the_cpu_does_not_offer_is_skipped(tmp_path: Path) -> None:
    """Under emulation there is no performance counter, so no NMI watchdog."""
    done = rig("run", "panic-deadlock", "--guest", "x86_64", "--json", "--results", tmp_path, "--accel", "tcg")
    result = done.results["x86_64"]
    assert result["verdict"] == "skip", done.err
    assert "performance counter of the CPU (PMU)" in result["surprise"]
