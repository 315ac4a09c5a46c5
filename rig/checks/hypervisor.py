"""vmcore-registers of a machine that a Xen hypervisor ran: what the dump says of the hypervisor, and of dom0 on it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rig import xen
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Hypervisor
from rig.memory.vmcore import Note, Prstatus
from rig.model import Checkpoint, CheckResult, CpuState, Verdict

# Notes of the name "Xen" (xen/include/public/elfnote.h), and what is in them (xen/include/xen/elfcore.h).
CRASH_INFO, CRASH_REGS = 0x1000001, 0x1000002
# crash_xen_info_t: xen_major_version, xen_minor_version, five addresses, tainted, xen_phys_start,
# dom0_pfn_to_mfn_frame_list_list
_INFO = struct.Struct("<10Q")
_REGS = struct.Struct("<4Q")  # crash_xen_core_t
_REGISTERS = ("cr0", "cr2", "cr3", "cr4")
CPU_SETS = "cr2"  # at page faults, which may still come between
VMCOREINFO_XEN = "VMCOREINFO_XEN"
ROOT = "SYMBOL(pgd_l4)"  # the name that idle_pg_table has there (xen/arch/x86/machine_kexec.c)
# How far below the stack pointer at the first instruction of kexec_crash the registers may have been saved: by
# kexec_crash_save_cpu(), which it calls, in its own frame.
FRAME = 1024


def hypervisor_registers(evidence: Evidence) -> CheckResult:
    """By the hypervisor's notes: one NT_PRSTATUS and one of control registers for each CPU. The crashing CPU's must
    place it in the function that saves the registers, on the same stack, in the same segments, with the control
    registers that it had at `panic`, CR3 among them.

    And the dump must show both. The hypervisor: its notes name the root of its page tables and the place of its image
    as they really are, and the root's page is in the dump. dom0: at the machine address that dom0 gave for it there is
    its vmcoreinfo, of the kernel that ran, and the list that leads to dom0's memory is in the dump. dom0's own
    VMCOREINFO note is not asked for: kexec-tools 2.0.25 has the hypervisor's in its place; whether it is there is told.
    """
    facts = evidence.facts
    if facts.hypervisor is None or facts.pgd_owner is None:
        raise EvidenceError("whose page tables CR3 pointed to was never found")
    seen = evidence.crashing_cpu(Checkpoint.PANIC)
    machine_cpus = len(evidence.cpus(Checkpoint.PANIC))
    notes = evidence.vmcore.prstatus
    controls = [_registers(note) for note in _xen_notes(evidence, CRASH_REGS)]
    fitting = _fitting(evidence, facts.hypervisor, seen)
    figures: dict[str, Any] = {
        "cpus": len(notes),
        "machine_cpus": machine_cpus,
        "crashing_cpu": seen.cpu,
        "control_registers": controls,
        "notes": sorted({note.name for note in evidence.vmcore.notes}),
        "idle_pgd": facts.pgd_owner.idle,
        "dom0_vmcoreinfo": facts.hypervisor.vmcoreinfo,
        "dom0_note": bool(evidence.vmcore.vmcoreinfo),
    }
    problems = [
        *(
            f"{len(found)} {kind} notes for {machine_cpus} CPUs"
            for found, kind in ((notes, "NT_PRSTATUS"), (controls, "control register"))
            if len(found) != machine_cpus
        ),
        *_wrong_registers(seen, fitting, notes, controls),
        *_wrong_vmcoreinfo(evidence, facts.hypervisor),
        *_wrong_info(evidence, facts.pgd_owner.idle),
        *_wrong_dom0(evidence, facts.hypervisor),
    ]
    if problems:
        return CheckResult("vmcore-registers", Verdict.FAIL, "; ".join(problems), figures)
    (note,) = fitting
    figures |= {
        "rip_offset": note.general["rip"] - facts.hypervisor.symbols[xen.SAVE_CPU],
        "rsp_offset": seen.general["rsp"] - note.general["rsp"],
        "registers": {name: [seen.general[name], value] for name, value in sorted(note.general.items())},
    }
    summary = (
        f"{len(notes)} notes for {machine_cpus} CPUs; CPU {seen.cpu} is at {xen.SAVE_CPU}+{figures['rip_offset']:#x}, "
        f"{figures['rsp_offset']} bytes below the stack pointer seen at panic, with its CR0, CR3 and CR4; "
        f"the dump shows the hypervisor and dom0 ({facts.kernel.release})"
    )
    return CheckResult("vmcore-registers", Verdict.PASS, summary, figures)


def _fitting(evidence: Evidence, hypervisor: Hypervisor, seen: CpuState) -> list[Prstatus]:
    """The notes that place a CPU in the function that saves registers, on the crashing CPU's stack."""
    start = hypervisor.symbols[xen.SAVE_CPU]
    end = next((symbol.end for symbol in evidence.symbols if symbol.start == start), None)
    if end is None:
        raise EvidenceError(f"where {xen.SAVE_CPU} ends is not known: it was not seen to be executed")
    there = (note for note in evidence.vmcore.prstatus if start <= note.general["rip"] < end)
    return [note for note in there if 0 <= seen.general["rsp"] - note.general["rsp"] < FRAME]


def _wrong_registers(
    seen: CpuState, fitting: Sequence[Prstatus], notes: Sequence[Prstatus], controls: Sequence[Mapping[str, int]]
) -> Iterator[str]:
    if len(fitting) != 1:
        told = ", ".join(f"rip {n.general['rip']:#x} rsp {n.general['rsp']:#x}" for n in notes)
        yield f"{len(fitting)} notes place a CPU in {xen.SAVE_CPU}, stack below {seen.general['rsp']:#x}: {told}"
    for note in fitting:
        for name in ("cs", "ss"):
            selector = note.selectors[name] & 0xFFFF
            if selector != seen.segments[name].selector:
                yield f"{name} is {selector:#x} in the note, was {seen.segments[name].selector:#x}"
    if not any(all(seen.register(n) == c[n] for n in _REGISTERS if n != CPU_SETS) for c in controls):
        told = "; ".join(", ".join(f"{name} {value:#x}" for name, value in c.items()) for c in controls)
        yield f"no note has the control registers of panic, CR3 {seen.cr3:#x} among them: {told}"


def _xen_notes(evidence: Evidence, kind: int) -> list[Note]:
    return [note for note in evidence.vmcore.notes if note.name == "Xen" and note.type == kind]


def _registers(note: Note) -> dict[str, int]:
    if len(note.data) != _REGS.size:
        raise EvidenceError(f"the hypervisor's note of control registers has {len(note.data)} bytes, not {_REGS.size}")
    return dict(zip(_REGISTERS, _REGS.unpack(note.data), strict=True))


def _wrong_vmcoreinfo(evidence: Evidence, hypervisor: Hypervisor) -> Iterator[str]:
    told = _vmcoreinfo(next((n.data for n in evidence.vmcore.notes if n.name == VMCOREINFO_XEN), b""))
    root = hypervisor.symbols[xen.IDLE_PGD]
    if told.get(ROOT) != f"{root:x}":
        yield f"{VMCOREINFO_XEN} says {ROOT}={told.get(ROOT, '(nothing)')}, it is at {root:x}"


def _wrong_info(evidence: Evidence, idle: int) -> Iterator[str]:
    """idle: machine address of idle_pg_table."""
    notes = _xen_notes(evidence, CRASH_INFO)
    if len(notes) != 1 or len(notes[0].data) != _INFO.size:
        yield f"{len(notes)} notes of the hypervisor's version and place, of {[len(n.data) for n in notes]} bytes"
        return
    *_, start, frames = _INFO.unpack(notes[0].data)
    code = next((r for r in evidence.facts.iomem if r.name == "Kernel code"), None)
    if code is None:
        raise EvidenceError("where the hypervisor's image was is not known")
    # 2 MiB below: where the image is linked to, counted from its base (xen/arch/x86/boot/x86_64.S, XEN_IMG_OFFSET)
    if code.start - start != 0x200000:
        yield f"the hypervisor's image is at {code.start:#x}, its note says {start:#x}"
    for what, address in (("the root of the hypervisor's tables", idle), ("dom0's list of frames", frames << 12)):
        try:
            evidence.vmcore.offset_of(address)
        except LookupError:
            yield f"{what}, at {address:#x}, is not in the dump"


def _wrong_dom0(evidence: Evidence, hypervisor: Hypervisor) -> Iterator[str]:
    if hypervisor.vmcoreinfo is None:
        raise EvidenceError("dom0 has no /sys/kernel/vmcoreinfo: where to look for it in the dump is not known")
    try:
        evidence.vmcore.offset_of(hypervisor.vmcoreinfo[0])
    except LookupError:
        yield f"dom0's vmcoreinfo, at {hypervisor.vmcoreinfo[0]:#x}, is not in the dump"
        return
    release = f"OSRELEASE={evidence.facts.kernel.release}\n".encode()
    if release not in evidence.dumped_dom0:
        yield f"at {hypervisor.vmcoreinfo[0]:#x} in the dump there is no vmcoreinfo of {evidence.facts.kernel.release}"


def _vmcoreinfo(data: bytes) -> dict[str, str]:
    """KEY=VALUE lines, filled up with zeroes."""
    lines = data.rstrip(b"\0").decode("ascii", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
