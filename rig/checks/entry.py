"""The registers with which the new image is entered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rig import bits
from rig.disassembly import width
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import HandOver, Live
from rig.memory.paging import NotMapped
from rig.model import Arch, CheckResult, CpuState, Segment, Verdict

IF, DF = 1 << 9, 1 << 10
WP, AM, TS, EM = 1 << 16, 1 << 18, 1 << 3, 1 << 2
PGE = 1 << 7
FLAT = 0xFFFFFFFF  # limit of a 4 GiB segment, bytes
ZERO_32 = ("rbx", "rbp", "rdi")


def handover_state(evidence: Evidence) -> CheckResult:
    """What Documentation/arch/x86/boot.rst and relocate_kernel_{32,64}.S ask for fails it; all else is recorded.

    "32-bit boot protocol": 32-bit protected mode, paging off, interrupts off, CS, DS, ES and SS flat 4 GiB segments,
    EBX, EBP and EDI zero. "64-bit boot protocol": 64-bit mode with paging, the kernel identity-mapped, interrupts off.
    Which segments, what is in ESI, and the GDT are the business of purgatory, which kexec-tools puts before the kernel.
    relocate_kernel: CR0 without WP, AM, TS and EM, CR4 without PGE. The direction flag: clear, as all C code expects.
    """
    if evidence.hand_over_end not in evidence.facts.captured:
        raise EvidenceError("the new image was never entered")
    cpu = evidence.crashing_cpu(evidence.hand_over_end)
    wide = evidence.facts.plan.guest.arch is Arch.AMD64
    wrong = [*_wrong_everywhere(cpu), *(_wrong_64(cpu, HandOver(evidence)) if wide else _wrong_32(cpu))]
    protocol = f"the {64 if wide else 32}-bit boot protocol"
    figures = {"protocol": protocol, "wrong": wrong, **_registers(cpu)}
    if wrong:
        return CheckResult("handover-state", Verdict.FAIL, f"against {protocol}: {'; '.join(wrong)}", figures)
    tables = ", ".join(f"{name} {'loaded' if figures[name]['loaded'] else 'invalid'}" for name in ("gdt", "idt"))
    return CheckResult("handover-state", Verdict.PASS, f"as {protocol} asks for; {tables}", figures)


def _wrong_everywhere(cpu: CpuState) -> Iterator[str]:
    for name, bit in (("IF", IF), ("DF", DF)):
        if cpu.general["rflags"] & bit:
            yield f"EFLAGS.{name} is set"
    if excess := bits.names("cr0", cpu.cr0 & (WP | AM | TS | EM)):
        yield f"CR0 has {', '.join(excess)} set"
    if not cpu.cr0 & 1:
        yield "CR0.PE is clear"
    if cpu.cr4 & PGE:
        yield "CR4.PGE is set"


def _wrong_64(cpu: CpuState, hand_over: HandOver) -> Iterator[str]:
    if width(cpu) != 64:
        yield f"the CPU runs {width(cpu)}-bit code"
    live, entry = Live.of(cpu), cpu.general["rip"]
    if live.mode is None:
        yield "paging is off"
        return
    try:
        physical = hand_over.tables.physical(live, entry)
    except NotMapped as problem:
        yield f"the entry is not mapped: {problem.reason}"
        return
    if physical != entry:
        yield f"the entry {entry:#x} is not identity-mapped but to {physical:#x}"


def _wrong_32(cpu: CpuState) -> Iterator[str]:
    if cpu.paging is not None:
        yield f"paging is on ({cpu.paging})"
    if width(cpu) != 32:
        yield f"the CPU runs {width(cpu)}-bit code"
    for name in ("cs", "ds", "es", "ss"):
        segment = cpu.segments[name]
        if (segment.base, segment.limit) != (0, FLAT):
            yield f"{name.upper()} is not flat: base {segment.base:#x}, limit {segment.limit:#x}"
    for name in ZERO_32:
        if cpu.general[name]:
            yield f"E{name[1:].upper()} is {cpu.general[name]:#x}, not 0"


def _registers(cpu: CpuState) -> dict[str, Any]:
    return {
        **{name: getattr(cpu, name) for name in ("cr0", "cr3", "cr4", "efer")},
        **{f"{name}_bits": bits.names(name, getattr(cpu, name)) for name in ("cr0", "cr4", "efer")},
        "rflags": cpu.general["rflags"],
        "gdt": {"base": cpu.gdt_base, "limit": cpu.gdt_limit, "loaded": cpu.gdt_limit > 0},
        "idt": {"base": cpu.idt_base, "limit": cpu.idt_limit, "loaded": cpu.idt_limit > 0},
        "segments": {name: _segment(segment) for name, segment in cpu.segments.items()},
        # but for the stack pointer, rip and the flags
        "not_zero": {n: v for n, v in cpu.general.items() if v and n not in ("rip", "rsp", "rflags")},
    }


def _segment(segment: Segment) -> dict[str, int]:
    return {"selector": segment.selector, "base": segment.base, "limit": segment.limit, "flags": segment.flags}
