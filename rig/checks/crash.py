"""The kernel that kexec started."""

from __future__ import annotations

from typing import Any

from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.model import CheckResult, Verdict


def crash_kernel_boots(evidence: Evidence) -> CheckResult:
    """By the new kernel's own word from its user space: its release, its command line, whether /proc/vmcore exists.
    What would be a failure it has said twice: Run.meet().

    The command line must have in it what the image that was loaded last was given: else another image ran. A plain
    kexec is not asked for /proc/vmcore. Where a hypervisor was loaded, the kernel must be its dom0, and only there.

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
        raise EvidenceError("the new kernel's user space was never heard of")
    if facts.crash_proc_cmdline is None:
        raise EvidenceError("the crash kernel's command line was not asked for: which image ran is not known")
    if facts.unlike_loaded:
        return CheckResult(name, Verdict.FAIL, facts.unlike_loaded, figures)
    as_dom0 = facts.second_is_dom0
    there = " as dom0 of a new hypervisor" if as_dom0 else "" if facts.plain else " with /proc/vmcore"
    summary = f"{facts.crash_release} reached user space{there} {facts.crash_seconds:.1f} s after hand-over"
    return CheckResult(name, Verdict.PASS, summary, figures)


def plain_panic(evidence: Evidence) -> CheckResult:
    """By the console and QEMU: the kernel said that it panics, reset the machine itself, and no other one came up."""
    facts, name = evidence.facts, "plain-panic"
    seen = facts.plain_panic
    if seen is None:
        if facts.died and facts.broke_off is not None:
            return CheckResult(name, Verdict.FAIL, f"the kernel never said that it panics: {facts.broke_off.message}")
        raise EvidenceError("the kernel was never heard to panic")
    figures = {"panic": seen.said, "ending": seen.ending, "started": seen.started}
    if seen.started:
        return CheckResult(name, Verdict.FAIL, f"a kernel that nobody loaded came up: {seen.started}", figures)
    if seen.ending != "guest-reset":
        summary = f"after {seen.said!r} the machine did not reset as it should, but: {seen.ending}"
        return CheckResult(name, Verdict.FAIL, summary, figures)
    return CheckResult(name, Verdict.PASS, f"{seen.said}; then the machine reset", figures)
