"""The checks: pure functions Evidence -> CheckResult. No VM, no clock, no network.

To add one: write a function in the file of its family, named as the check with underscores, and enter the check in
_CHECKS. Raise EvidenceError (or let the evidence raise it) for what can't be judged: that becomes `error`, never
`pass` and never `fail`.

What there is to know of a check before it judges stands in the table, so that a catalogue can be read, and a guest
booted, without the numeric libraries that judging takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.errors import EvidenceError
from rig.model import CheckResult, Dump, LoadKind, Verdict

if TYPE_CHECKING:
    from rig.evidence.reader import Evidence

_CRASH = (LoadKind.CRASH,)
_KERNELS = (LoadKind.CRASH, LoadKind.PLAIN)  # kinds of what judges the kernel that was started
_IMAGES = (*_KERNELS, LoadKind.JUMP)  # kinds of what judges the way to any new image
_OUT_AND_BACK = (LoadKind.JUMP,)


@dataclass(frozen=True)
class Check:
    """One check, under its contract name. Scenarios that name none get it if they can."""

    name: str
    family: str  # the module of this package that it is in
    description: str  # what a pass says, one line
    kinds: tuple[LoadKind, ...] = _CRASH  # the kinds of image with which it can be judged
    dumps: tuple[Dump, ...] = tuple(Dump)  # and the kinds of dump
    own_task: bool = False  # only where the task that holds the pattern is the one that dies
    by_handover: bool = True  # all that it looks at is there when the new image is entered

    def judge(self, evidence: Evidence) -> CheckResult:
        """:raise EvidenceError: it can't be judged"""
        family = importlib.import_module(f"{__name__}.{self.family}")
        result: CheckResult = getattr(family, self.name.replace("-", "_"))(evidence)
        return result


_CHECKS = (
    Check(
        "pgd-survives",
        "pgd",
        "the page that CR3 points to is byte-identical from the panic to the crash kernel, and in its dump",
        kinds=(LoadKind.CRASH, LoadKind.JUMP),
    ),
    Check(
        "address-space-survives",
        "space",
        "every page-table page reachable from the pgd, and every translation, is the same from the panic to the end",
        kinds=(LoadKind.CRASH, LoadKind.JUMP),
    ),
    Check(
        "user-space-survives",
        "space",
        "a known pattern in the crashing task's user memory is found through the old tables in the crash kernel's time",
        own_task=True,
        by_handover=False,
    ),
    Check("memory-accounted", "ledger", "every byte that changed outside the crash region has an owner"),
    Check(
        "crash-kernel-boots",
        "crash",
        "the new kernel reached user space; a crash kernel has /proc/vmcore there",
        kinds=_KERNELS,
        by_handover=False,
    ),
    Check(
        "plain-panic",
        "crash",
        "without a crash kernel the panic ends in a reset, and nothing is started",
        kinds=(LoadKind.NONE,),
    ),
    Check(
        "vmcore-registers",
        "vmcore",
        "the dump's NT_PRSTATUS of the crashing CPU agrees with what was seen at panic; one note per CPU",
        by_handover=False,
    ),
    Check(
        "vmcore-faithful",
        "vmcore",
        "the dump that a user gets equals memory at panic, but for bytes that have an owner",
        dumps=(Dump.RAW, Dump.MAKEDUMPFILE),
        by_handover=False,
    ),
    Check(
        "switch-is-safe",
        "handover",
        "at every change of page tables, and of paging itself, the next instruction is the same in the old and the new",
        kinds=_IMAGES,
    ),
    Check(
        "interrupts-off",
        "handover",
        "IF=0 from before the first change of tables or segments to the new image",
        kinds=_IMAGES,
    ),
    Check(
        "executes-nx-safe",
        "handover",
        "every instruction was executable in the page tables that were live when it was executed",
        kinds=_IMAGES,
    ),
    Check(
        "handover-state",
        "entry",
        "the new image is entered with the registers that the boot protocol asks for",
        kinds=_KERNELS,
    ),
    Check(
        "control-code-fits",
        "placement",
        "the control code is within its page budget, and its stack stayed clear of it",
        kinds=_IMAGES,
    ),
    Check(
        "control-pages-placed",
        "placement",
        "every page used on the way lies where no device writes, within the limit",
        kinds=_IMAGES,
    ),
    Check(
        "identity-map-complete",
        "identity",
        "the map used for copying covers all RAM and every destination, at the addresses that they have",
        kinds=_IMAGES,
    ),
    Check(
        "image-copied",
        "image",
        "every page of the image arrived at its place as it was when it was loaded",
        kinds=(LoadKind.PLAIN, LoadKind.JUMP),
    ),
    Check(
        "jump-returns",
        "jump",
        "the image returned, user space goes on, and the image can be entered again where it asked to be",
        kinds=_OUT_AND_BACK,
    ),
    Check(
        "way-back-is-safe",
        "jump",
        "back from the image, as on the way out: switches of tables, interrupts, and what is executed are safe",
        kinds=_OUT_AND_BACK,
    ),
    Check(
        "context-preserved",
        "jump",
        "out and back, memory is as it was but for what the kernel itself wrote, and so are the registers",
        kinds=_OUT_AND_BACK,
    ),
)

REGISTRY: Mapping[str, Check] = {check.name: check for check in _CHECKS}


def run_check(name: str, evidence: Evidence) -> CheckResult:
    """One check's result; `error` with the reason when the evidence does not allow a verdict."""
    if name not in REGISTRY:
        return CheckResult(
            name, Verdict.ERROR, "could not judge: this rig has no such check, another rig wrote the evidence"
        )
    try:
        return REGISTRY[name].judge(evidence)
    except EvidenceError as problem:
        return CheckResult(name, Verdict.ERROR, f"could not judge: {problem.message}")
