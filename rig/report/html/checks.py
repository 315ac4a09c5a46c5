"""The checks of a run with their figures, each linked to the evidence that it judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rig.model import CheckResult, RunResult
from rig.report.html.page import Fact, Link, Sources, shown
from rig.report.wording import PGD_CHECK, Outcome, check_outcome, printable

LEDGER_CHECK = "memory-accounted"
SHOWN_BELOW = {  # figures by check that have a section of their own
    PGD_CHECK: {"entries_changed", "compared", "vmcore"},
    LEDGER_CHECK: {"intervals", "owners"},
}
MEMORY, REGISTERS, TRACE = "memory/", "registers/", ("trace.log.zst", "before.log.zst", "handover.txt")
FACTS = "run.json"
# What the checks read, by their names; of others only the result is linked to.
READS: Mapping[str, Sequence[str]] = {
    "pgd-survives": (MEMORY, "vmcore/pgd.bin", *TRACE),
    "address-space-survives": (MEMORY,),
    "user-space-survives": (MEMORY, FACTS),
    "switch-is-safe": (*TRACE, MEMORY),
    "interrupts-off": TRACE,
    "executes-nx-safe": (*TRACE, MEMORY),
    "control-code-fits": (*TRACE, MEMORY),
    "control-pages-placed": (FACTS, *TRACE, MEMORY),
    "identity-map-complete": (*TRACE, MEMORY, FACTS),
    "handover-state": ("registers/handover.json",),
    "memory-accounted": (MEMORY, FACTS),
    "image-copied": ("memory/image.words.zst", MEMORY),
    "crash-kernel-boots": (FACTS, "console.log", "control.log"),
    "second-kernel-boots": (FACTS, "console.log", "control.log"),
    "plain-panic": ("console.log", FACTS),
    "vmcore-faithful": ("vmcore/dump.hashes.zst", "vmcore/dump.pages.zst", "memory/panic.hashes.zst"),
    "vmcore-registers": ("vmcore/headers.bin", "registers/panic.json"),
}


@dataclass(frozen=True)
class CheckRow:
    name: str
    outcome: Outcome
    summary: str
    figures: list[Fact]
    evidence: list[Link]


def check_row(check: CheckResult, result: RunResult, sources: Sources) -> CheckRow:
    told = sources.href("result.json")
    figures = [
        Fact(printable(str(key)), printable(_figure(key, value)), code=True, href=told)
        for key, value in check.figures.items()
        if key not in SHOWN_BELOW.get(check.name, ())
    ]
    evidence = sources.links(["result.json", *READS.get(check.name, ())])
    return CheckRow(printable(check.name), check_outcome(check, result), printable(check.summary), figures, evidence)


def _figure(key: str, value: object) -> str:
    """As the check gave it; what is an address in hex, and of a long list only its length."""
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{len(value)} of them"
    if key in ("cr0", "cr3", "cr4", "efer", "root", "page", "physical", "virtual") and isinstance(value, int):
        return f"{value:#x}"
    return shown(value)
