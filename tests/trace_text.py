"""A hand-over trace as QEMU would log it, from a few instructions written down by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PAGING_64 = {"cr0": 0x80050033, "cr4": 0x6F0, "efer": 0xD01}
PAGING_32 = {"cr0": 0x80050033, "cr4": 0x690, "efer": 0}
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
_EXTENDED = tuple(f"r{number}" for number in range(8, 16))

# (address, the instruction's bytes in hex, registers before it: those that the previous step didn't have so)
Instruction = tuple[int, str, Mapping[str, int]]


def trace_text(instructions: Iterable[Instruction], start: Mapping[str, int] = PAGING_64, cpu: int = 0) -> str:
    """The log. Registers stay as they are until an instruction sets them; `start` gives them before the first."""
    registers: dict[str, int] = dict(start)
    return "".join(_block(pc, code, registers | {"rip": pc}, cpu) for pc, code, news in _kept(instructions, registers))


def _kept(instructions: Iterable[Instruction], registers: dict[str, int]) -> Iterable[Instruction]:
    for instruction in instructions:
        registers.update(instruction[2])
        yield instruction


def _block(pc: int, code: str, registers: Mapping[str, int], cpu: int) -> str:
    wide = registers["efer"] >> 10 & 1
    digits = 16 if wide else 8
    names = (*_GENERAL, *_EXTENDED) if wide else _GENERAL

    def value(name: str) -> str:
        return f"{registers.get(name, 0):0{digits}x}"

    general = " ".join(f"{_name(name, wide)}={value(name)}" for name in (*names, "rip"))
    flat = f"0000 {0:0{digits}x} ffffffff 00cf9300 DPL=0 DS   [-WA]"
    segments = "".join(f"{name:3}={flat}\n" for name in ("SS", "DS", "FS", "GS", "LDT", "TR"))
    return (
        f"----------------\nIN: \n0x{pc:0{digits}x}:  {bytes.fromhex(code).hex(' ')}  forged\n\n"
        f"Trace {cpu}: 0x7f0000000000 [0000000000000000/{pc:016x}/00000000/00000000] \n"
        f"{general} {'RFL' if wide else 'EFL'}={registers.get('rflags', 0x46):08x}\n"
        f"ES ={flat}\n"
        f"CS =0010 {0:0{digits}x} ffffffff {'00af9a00' if wide else '00cf9a00'} DPL=0\n{segments}"
        f"GDT=     {0:0{digits}x} 00000000\nIDT=     {0:0{digits}x} 00000000\n"
        f"CR0={registers['cr0']:08x} CR2={value('cr2')} CR3={value('cr3')} CR4={registers['cr4']:08x}\n"
        f"EFER={registers['efer']:016x}\n"
    )


def _name(name: str, wide: int) -> str:
    """As x86_cpu_dump_state() prints it: RAX, "R8 ", R10; EAX while no 64-bit code runs."""
    return f"{name.upper():3}" if wide else f"E{name[1:].upper()}"
