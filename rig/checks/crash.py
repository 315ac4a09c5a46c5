"""The crash kernel itself."""

from __future__ import annotations

from typing import Any

from rig.checks import check
from rig.errors import EvidenceError
from rig.evidence import Evidence
from rig.model import CheckResult, Verdict


@check("crash-kernel-boots", "the crash kernel reached user space, and /proc/vmcore is there")
def crash_kernel_boots(evidence: Evidence) -> CheckResult:
    """By the crash kernel's own word from its user space: its release, and whether /proc/vmcore exists.

    A guest that resets or triple-faults on the way has failed. One that hangs can't be judged: too slow and stuck look
    the same.
    """
    facts = evidence.facts
    figures: dict[str, Any] = {"release": facts.crash_release, "seconds": facts.crash_seconds}
    name = "crash-kernel-boots"
    if facts.vmcore_present is None:
        if facts.died and facts.broke_off is not None:
            summary = f"the guest died in phase {facts.broke_off.phase}: {facts.broke_off.message}"
            return CheckResult(name, Verdict.FAIL, summary, figures)
        raise EvidenceError("the crash kernel's user space was never heard of")
    if facts.crash_release != facts.crash_kernel.release:
        summary = f"{facts.crash_release} came up, but {facts.crash_kernel.release} was loaded"
        return CheckResult(name, Verdict.FAIL, summary, figures)
    if not facts.vmcore_present:
        summary = f"{facts.crash_release} reached user space, but there is no /proc/vmcore (CONFIG_PROC_VMCORE?)"
        return CheckResult(name, Verdict.FAIL, summary, figures)
    summary = f"{facts.crash_release} reached user space with /proc/vmcore {facts.crash_seconds:.1f} s after hand-over"
    return CheckResult(name, Verdict.PASS, summary, figures)
