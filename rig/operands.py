"""Which memory an instruction reads and writes, from its bytes and the registers before it. Pure.

Left out, since the hand-over does without: what interrupts, far calls, IRET, PUSHA, POPA, ENTER and XSAVE push, pop and
save, and descriptors that segment loads fetch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import capstone
from capstone import x86_const as x86

from rig.disassembly import width
from rig.errors import EvidenceError
from rig.model import CpuState
from rig.trace import Step

# Operands in brackets that are no access to memory.
_NO_ACCESS = frozenset({x86.X86_INS_LEA, x86.X86_INS_NOP, x86.X86_INS_INVLPG, x86.X86_INS_CLFLUSH})
_PUSHES = frozenset({x86.X86_INS_PUSH, x86.X86_INS_CALL, *(getattr(x86, f"X86_INS_PUSHF{s}") for s in ("", "D", "Q"))})
_POPS = frozenset(
    {x86.X86_INS_POP, x86.X86_INS_RET, x86.X86_INS_LEAVE, *(getattr(x86, f"X86_INS_POPF{s}") for s in ("", "D", "Q"))}
)
_MOVES = frozenset(getattr(x86, f"X86_INS_{name}{width}") for name in ("MOVS", "STOS", "LODS") for width in "BWDQ")
_OTHER_STRINGS = frozenset(getattr(x86, f"X86_INS_{name}{width}") for name in ("CMPS", "SCAS") for width in "BWDQ")
_REP = (0xF2, 0xF3)
_DIRECTION = 1 << 10  # EFLAGS.DF
_LEGACY = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
# Names of narrower registers, as addresses use them -> the 64-bit register they are part of.
_WIDE = {**{f"e{name}": f"r{name}" for name in _LEGACY}, **{f"r{n}d": f"r{n}" for n in range(8, 16)}}


@dataclass(frozen=True)
class Access:
    """`size` bytes at a virtual address (paging off: physical). stack: through the stack pointer. read and write:
    a write."""

    virtual: int
    size: int
    write: bool
    stack: bool


@functools.lru_cache(8192)
def decode(code: bytes, address: int, wide: bool) -> Any:
    """Capstone's instruction of these bytes. EvidenceError when they are none."""
    found = next(_decoder(wide).disasm(code, address, 1), None)
    if found is None:
        raise EvidenceError(f"capstone can't decode the instruction at {address:#x}: {code.hex(' ')}")
    return found


@functools.cache
def _decoder(wide: bool) -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if wide else capstone.CS_MODE_32)
    decoder.detail = True
    return decoder


def moves_string(step: Step) -> bool:
    """Whether it is MOVS, STOS or LODS: what the kernel copies pages with."""
    return decode(step.code, step.pc, width(step.state) == 64).id in _MOVES


def accesses(step: Step) -> tuple[Access, ...]:
    """What one instruction accesses. A string instruction with REP: all that it does until its count is 0.

    :raise EvidenceError: bytes that are no instruction
    """
    return tuple(_accesses(step.state, decode(step.code, step.pc, width(step.state) == 64)))


def _accesses(state: CpuState, instruction: Any) -> Iterator[Access]:
    wide = width(state) == 64
    if instruction.id not in _NO_ACCESS:
        for operand in instruction.operands:
            if operand.type == x86.X86_OP_MEM:
                yield _operand(state, instruction, operand, wide)
    word = 2 if 0x66 in instruction.prefix else 8 if wide else 4
    mask = (1 << 64) - 1 if wide else 0xFFFFFFFF
    top = state.general["rsp"]
    if instruction.id in _PUSHES:
        yield Access((top - word) & mask, word, True, True)
    elif instruction.id in _POPS:
        yield Access(state.general["rbp"] if instruction.id == x86.X86_INS_LEAVE else top, word, False, True)


def _operand(state: CpuState, instruction: Any, operand: Any, wide: bool) -> Access:
    memory = operand.mem
    base = instruction.reg_name(memory.base) or "" if memory.base else ""
    index = instruction.reg_name(memory.index) or "" if memory.index else ""
    address = memory.disp + _value(state, instruction, base) + _value(state, instruction, index) * memory.scale
    address &= (1 << 8 * instruction.addr_size) - 1
    segment = instruction.reg_name(memory.segment) if memory.segment else "ss" if base in ("esp", "ebp") else "ds"
    if not wide or segment in ("fs", "gs"):
        address += state.segments[segment].base
    size = operand.size
    if instruction.id in _MOVES | _OTHER_STRINGS and instruction.prefix[0] in _REP:
        count = state.general["rcx"] & ((1 << 8 * instruction.addr_size) - 1)
        if state.general["rflags"] & _DIRECTION and count:
            address -= (count - 1) * size
        size *= count
    mask = (1 << 64) - 1 if wide else 0xFFFFFFFF
    return Access(address & mask, size, bool(operand.access & capstone.CS_AC_WRITE), base in ("rsp", "esp"))


def _value(state: CpuState, instruction: Any, register: str) -> int:
    if not register or register in ("riz", "eiz"):
        return 0
    if register in ("rip", "eip"):
        return int(instruction.address + instruction.size)
    return state.general[_WIDE.get(register, register)]
