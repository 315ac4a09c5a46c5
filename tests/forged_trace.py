"""Forged recordings in QEMU's words, and a machine to hand over on: i386, with tables of 4 MiB pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from rig.disassembly import width
from rig.model import PAGE_SIZE, Checkpoint, CpuState, Segment, Symbol
from tests.forge import PGD, Machine, cpu

OLD, NEW = 0x5000, 0x6000  # physical: the tables before and after the switch
ENTRY = 0x900000
KERNEL = 0xC0010000  # virtual; physical 0x10000
CONTROL = 0x800000  # physical, in the crash region
CONTROL_VIRTUAL = 0xC0800000
IF = 1 << 9
CODE_32 = Segment(0x60, 0, 0xFFFFFFFF, 0xCF9A00)
DATA = Segment(0x68, 0, 0xFFFFFFFF, 0xCF9300)

LIDT, CLI, TO_CR3, JUMP, TO_CR0, RET = map(bytes.fromhex, ("0f015dda", "fa", "0f22d8", "ffe0", "0f22c0", "c3"))


def table(entries: dict[int, int]) -> bytes:
    words = np.zeros(1024, dtype="<u4")
    for index, value in entries.items():
        words[index] = value
    return words.tobytes()


# 4 MiB pages: low memory, the control page's own place, and both in the kernel's half
MAPPED = {0: 0x83, 2: 0x800083, 768: 0x83, 770: 0x800083}


@dataclass(frozen=True)
class Did:
    """An instruction executed: the state before it, its bytes."""

    state: CpuState
    code: bytes


def at(pc: int, *, cr3: int = OLD, paging: bool = True, flags: int = 0x46, idt: int = 0, cr4: int = 0x10) -> CpuState:
    """The crashing CPU's state."""
    state = cpu(0, rip=pc, paging_on=paging)
    segments = {**state.segments, "cs": CODE_32, **dict.fromkeys(("ds", "es", "ss"), DATA)}
    general = {**state.general, "rflags": flags}
    return replace(state, cr3=cr3, cr4=cr4, idt_limit=idt, general=general, segments=segments)


def way() -> list[Did]:
    """A whole hand-over as it should be: kernel, control page, switch, identity mapping, paging off."""
    return [
        Did(at(KERNEL, flags=0x46 | IF, idt=0x7FF), CLI),
        Did(at(KERNEL + 1, idt=0x7FF), LIDT),
        Did(at(CONTROL_VIRTUAL + 0x10), TO_CR3),
        Did(at(CONTROL_VIRTUAL + 0x13, cr3=NEW), JUMP),
        Did(at(CONTROL + 0x20, cr3=NEW), TO_CR0),
        Did(at(CONTROL + 0x23, cr3=NEW, paging=False), RET),
    ]


END = at(ENTRY, cr3=0, paging=False, cr4=0)


def machine(did: Iterable[Did], events: dict[int, str] | None = None) -> Machine:
    """events: text to go into the recording after the step of that number."""
    forged = Machine()
    forged.base |= {
        OLD // PAGE_SIZE: table(MAPPED),
        NEW // PAGE_SIZE: table(MAPPED),
        CONTROL // PAGE_SIZE: bytes(PAGE_SIZE),
    }
    forged.dumped_pgd = table(MAPPED)
    forged.trace = "".join(block(one) + (events or {}).get(n, "") for n, one in enumerate(did))
    forged.cpus = {**forged.cpus, Checkpoint.HANDOVER: (END,)}
    forged.symbols = (Symbol("machine_kexec", KERNEL, KERNEL + 0x100),)
    return forged


# ---------------------------------------------------------------- in QEMU's words


def dump(state: CpuState) -> str:
    """As x86_cpu_dump_state() prints it: RAX, R8 and 16 digits while 64-bit code runs, else EAX and 8 digits."""
    wide = width(state) == 64
    digits = 16 if wide else 8

    def short(name: str) -> str:
        return f"{name.upper():3}" if wide else f"E{name[1:].upper()}"

    general = "".join(f"{short(n)}={v:0{digits}x} " for n, v in state.general.items() if n not in ("rip", "rflags"))
    segments = "".join(
        f"{name.upper():3}={s.selector:04x} {s.base:0{digits}x} {s.limit:08x} {s.flags:08x}\n"
        for name, s in ((name, state.segments[name]) for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"))
    )
    return (
        f"{general}\n{short('rip')}={state.general['rip']:0{digits}x} {'RFL' if wide else 'EFL'}="
        f"{state.general['rflags']:08x} [-------] CPL=0 II=0 A20=1\n"
        f"{segments}GDT=     {state.gdt_base:0{digits}x} {state.gdt_limit:08x}\n"
        f"IDT=     {state.idt_base:0{digits}x} {state.idt_limit:08x}\n"
        f"CR0={state.cr0:08x} CR2={state.cr2:0{digits}x} CR3={state.cr3:0{digits}x} CR4={state.cr4:08x}\n"
        f"EFER={state.efer:016x}\n"
    )


def block(did: Did, number: int = 0) -> str:
    """An instruction as QEMU logs it when it is translated, and executed by CPU `number`."""
    pc = did.state.general["rip"]
    shown = f"0x{pc:08x}:  {did.code.hex(' ')}  mnemonic\n"
    return f"----------------\nIN: \n{shown}\n{trace_line(pc, number)}{dump(did.state)}"


def trace_line(pc: int, number: int = 0) -> str:
    return f"Trace {number}: 0x7f8944000200 [00000000/{pc:08x}/0040c2b0/ff000201] \n"


def event(vector: int, state: CpuState, error: int = 0, software: int = 0) -> str:
    """An interrupt or exception as QEMU logs it, with the state before its delivery."""
    pc = state.general["rip"]
    what = f"v={vector:02x} e={error:04x} i={software} cpl=0"
    return f"     0: {what} IP=0060:{pc:08x} pc={pc:08x} SP=0068:00000000 CR2={state.cr2:08x}\n{dump(state)}"


# ---------------------------------------------------------------- a recording from instructions alone

PAGING_64 = {"cr0": 0x80050033, "cr4": 0x6F0, "efer": 0xD01}
PAGING_32 = {"cr0": 0x80050033, "cr4": 0x690, "efer": 0}
REP = (0xF2, 0xF3)
CODE_64 = replace(CODE_32, flags=0xAF9A00)

# (address, the instruction's bytes in hex, registers before it: those that the previous step didn't have so)
Instruction = tuple[int, str, Mapping[str, int]]


def trace_text(instructions: Iterable[Instruction], start: Mapping[str, int], number: int = 0) -> str:
    """The log of CPU `number`.

    Registers stay as they are until an instruction sets them; `start` gives them before the first.
    With a REP prefix an instruction is executed RCX times, and found RCX to be 0 once more.
    """
    registers, text = {**start, "rflags": 0x46}, ""
    for pc, digits, news in instructions:
        registers |= news
        did = Did(_state(pc, registers), bytes.fromhex(digits))
        text += block(did, number)
        if did.code[0] in REP:
            text += trace_line(pc, number) * registers.get("rcx", 0)
    return text


def _state(pc: int, registers: Mapping[str, int]) -> CpuState:
    """Flat segments, 64-bit code in long mode."""
    state = cpu(0)
    control = {name: registers[name] for name in ("cr0", "cr3", "cr4", "efer") if name in registers}
    wide = bool(registers["efer"] >> 10 & 1)
    names = (*state.general, *(f"r{n}" for n in range(8, 16))) if wide else state.general
    general = {name: registers.get(name, 0) for name in names} | {"rip": pc}
    segments = dict.fromkeys(state.segments, DATA) | {"cs": CODE_64 if wide else CODE_32}
    return replace(state, general=general, segments=segments, **control)


def record(machine: Machine, instructions: Iterable[Instruction]) -> None:
    """What is executed with paging on, through the forged machine's tables."""
    machine.trace = trace_text(instructions, PAGING_32 | {"cr3": PGD})
