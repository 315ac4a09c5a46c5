"""The checks: pure functions Evidence -> CheckResult. No VM, no clock, no network.

To add one: write a decorated function in the file of its family (or a new file, named in _FAMILIES), and name it in a
scenario. Raise EvidenceError (or let the evidence raise it) for what can't be judged: that becomes `error`, never
`pass` and never `fail`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rig.errors import EvidenceError
from rig.evidence import Evidence
from rig.model import CheckResult, Dump, LoadKind, Verdict

_FAMILIES = ("pgd", "space", "ledger", "crash", "vmcore", "handover", "entry", "placement", "identity", "image", "jump")

KERNELS = (LoadKind.CRASH, LoadKind.PLAIN)  # kinds of what judges the kernel that was started
IMAGES = (*KERNELS, LoadKind.JUMP)  # kinds of what judges the way to any new image


@dataclass(frozen=True)
class Check:
    name: str
    description: str  # what a pass says, one line
    judge: Callable[[Evidence], CheckResult]
    dumps: tuple[Dump, ...]  # the kinds of dump with which it can be judged
    kinds: tuple[LoadKind, ...]  # and the kinds of image
    own_task: bool  # only where the task that holds the pattern is the one that dies
    by_handover: bool  # all that it looks at is there when the new image is entered


_found: dict[str, Check] = {}


def check(
    name: str,
    description: str,
    dumps: tuple[Dump, ...] = tuple(Dump),
    kinds: tuple[LoadKind, ...] = (LoadKind.CRASH,),
    own_task: bool = False,
    by_handover: bool = True,
) -> Callable[[Callable[[Evidence], CheckResult]], Callable[..., CheckResult]]:
    """Enter a function into the registry under its contract name. Scenarios that name none get it if they can."""

    def enter(judge: Callable[[Evidence], CheckResult]) -> Callable[..., CheckResult]:
        _found[name] = Check(name, description, judge, dumps, kinds, own_task, by_handover)
        return judge

    return enter


def run_check(name: str, evidence: Evidence) -> CheckResult:
    """One check's result; `error` with the reason when the evidence does not allow a verdict."""
    try:
        return REGISTRY[name].judge(evidence)
    except EvidenceError as problem:
        return CheckResult(name, Verdict.ERROR, f"could not judge: {problem.message}")


for _family in _FAMILIES:
    importlib.import_module(f"rig.checks.{_family}")

REGISTRY: Mapping[str, Check] = dict(_found)
