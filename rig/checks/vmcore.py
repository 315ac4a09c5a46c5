"""What /proc/vmcore says about the CPUs."""

from __future__ import annotations

from typing import Any

from rig.checks import check
from rig.errors import EvidenceError
from rig.evidence import Evidence
from rig.model import Checkpoint, CheckResult, Verdict

# How far below the stack pointer at the first instruction of __crash_kexec its own frame may reach. The registers are
# saved by inline assembly in that very function (arch/x86/include/asm/kexec.h, crash_setup_regs), which keeps a
# struct pt_regs on its stack.
FRAME = 1024
# How far behind the function's first instruction the saved RIP may lie.
FUNCTION = 4096


@check(
    "vmcore-registers",
    "the dump's NT_PRSTATUS of the crashing CPU agrees with what was seen at panic; one note per CPU",
)
def vmcore_registers(evidence: Evidence) -> CheckResult:
    """The crashing CPU's note must place it inside the function that `panic` was taken in, on the same stack, in the
    same segments. With 32-bit guests the selectors are compared by their low 16 bits.
    """
    facts = evidence.facts
    if facts.dump is None:
        raise EvidenceError("no headers of /proc/vmcore were fetched")
    notes = evidence.vmcore.prstatus
    cpus = evidence.cpus(Checkpoint.PANIC)
    seen = evidence.crashing_cpu(Checkpoint.PANIC)
    figures: dict[str, Any] = {"cpus": len(notes), "machine_cpus": len(cpus), "crashing_cpu": seen.cpu}
    problems: list[str] = []
    if len(notes) != len(cpus):
        problems.append(f"{len(notes)} notes for {len(cpus)} CPUs")
    rip, rsp = seen.general["rip"], seen.general["rsp"]
    fitting = [n for n in notes if 0 <= n.general["rip"] - rip < FUNCTION and 0 <= rsp - n.general["rsp"] < FRAME]
    if len(fitting) != 1:
        told = ", ".join(f"rip {n.general['rip']:#x} rsp {n.general['rsp']:#x}" for n in notes)
        problems.append(
            f"{len(fitting)} notes place a CPU in {facts.panic_symbol} (from {rip:#x}), stack at {rsp:#x}: {told}"
        )
    for note in fitting:
        figures |= {
            "rip_offset": note.general["rip"] - rip,
            "rsp_offset": rsp - note.general["rsp"],
            "registers": {name: [seen.general[name], value] for name, value in sorted(note.general.items())},
        }
        for name in ("cs", "ss"):
            selector = note.selectors[name] & 0xFFFF
            if selector != seen.segments[name].selector:
                problems.append(f"{name} is {selector:#x} in the note, was {seen.segments[name].selector:#x}")
    if problems:
        return CheckResult("vmcore-registers", Verdict.FAIL, "; ".join(problems), figures)
    summary = (
        f"{len(notes)} notes for {len(cpus)} CPUs; CPU {seen.cpu} is at {facts.panic_symbol}"
        f"+{figures['rip_offset']:#x}, {figures['rsp_offset']} bytes below the stack pointer seen at panic"
    )
    return CheckResult("vmcore-registers", Verdict.PASS, summary, figures)
