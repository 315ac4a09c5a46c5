"""Which memory an instruction reads and writes, from its bytes and the registers before it. Pure.

Told are its operands in memory, what stack instructions push and pop, and string instructions over all their
iterations. Left out is what no operand says: the frame of an interrupt, an exception or IRET, what XSAVE and XRSTOR
move, descriptors that segment loads fetch, and accessed, dirty and busy bits (Intel SDM vol. 2).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rig.disassembly import decoder, width
from rig.errors import EvidenceError
from rig.model import CpuState
from rig.trace import Step

_BASED_IN_64_BIT = ("fs", "gs")  # the other segments' bases count as 0 there (SDM vol. 1, 3.3.4)
_DIRECTION = 1 << 10  # RFLAGS.DF
_REP = (0xF2, 0xF3)
# Operands in brackets that are no access to memory.
_NO_ACCESS = frozenset({"lea", "nop", "invlpg", "clflush"})
# Opcodes of one byte (SDM vol. 2, A.3): MOVS, STOS, LODS; and all string instructions, with CMPS, SCAS, INS, OUTS.
_MOVES = frozenset({0xA4, 0xA5, *range(0xAA, 0xAE)})
_STRINGS = _MOVES | {0xA6, 0xA7, 0xAE, 0xAF, *range(0x6C, 0x70)}
# Memory operands that are written and that capstone 5 takes for read ones.
_FPU = {"fnstcw", "fnstsw", "fst", "fstp", "fist", "fistp", "fisttp", "stmxcsr"}
_WRITTEN_ALL_THE_SAME = frozenset({"cmpxchg", "cmpxchg8b", "cmpxchg16b", "movnti", "insb", "insw", "insd", *_FPU})
_BIT_OFFSET = frozenset(
    {"bt", "bts", "btr", "btc"}
)  # with a register: a bit string, of which another word may be meant
_SIZES = dict.fromkeys(("fxsave", "fxsave64", "fxrstor", "fxrstor64"), 512)  # bytes
# Words that are pushed and popped.
_PUSHED = {"push": 1, "pushf": 1, "pushfd": 1, "pushfq": 1, "call": 1, "lcall": 2, "enter": 1, "pushal": 8, "pushaw": 8}
_POPPED = {"pop": 1, "popf": 1, "popfd": 1, "popfq": 1, "ret": 1, "retf": 2, "leave": 1, "popal": 8, "popaw": 8}
# Where control does not go on behind an instruction.
_ENDS = frozenset({"jmp", "ret", "hlt", "int3", "ud2"})


@dataclass(frozen=True)
class Access:
    """`size` bytes at a linear address (paging off: physical). stack: through the stack pointer. read and write:
    a write."""

    virtual: int
    size: int
    write: bool
    stack: bool


@dataclass(frozen=True)
class _Operand:
    """A place in memory, still in terms of registers.

    size, address_size: bytes. bits: the register that selects a bit of it. string: moves on with each repeat. push: the
    address is that of the stack's top before; the bytes lie below.
    """

    segment: str
    base: str
    index: str
    scale: int
    displacement: int
    size: int
    address_size: int
    write: bool
    bits: str = ""
    string: bool = False
    repeated: bool = False
    stack: bool = False
    push: bool = False


@dataclass(frozen=True)
class Instruction:
    """What holds of an instruction wherever it stands and whatever the registers are.

    size: bytes. branch: bytes from its start to where a direct branch leads, None for all others. ends: control does
    not go on behind it. moves_string: MOVS, STOS or LODS.
    """

    size: int
    operands: tuple[_Operand, ...]
    branch: int | None
    ends: bool
    moves_string: bool


def decode(code: bytes, address: int, bits: int) -> Instruction:
    """The first instruction in `code`, of 64-, 32- or 16-bit code.

    :raise EvidenceError: these bytes are none
    """
    found = _decode(code, bits)
    if found is None:
        raise EvidenceError(f"capstone can't decode the instruction at {address:#x}: {code.hex(' ')}")
    return found


def moves_string(step: Step) -> bool:
    """Whether it is MOVS, STOS or LODS: what the kernel copies pages with."""
    return decode(step.code, step.pc, width(step.state)).moves_string


def accesses(step: Step) -> tuple[Access, ...]:
    """What one step accesses, through all its repeats.

    :raise EvidenceError: bytes that are no instruction
    """
    instruction = decode(step.code, step.pc, width(step.state))
    return tuple(a for a in (_access(step, operand) for operand in instruction.operands) if a.size)


def _access(step: Step, operand: _Operand) -> Access:
    general = step.state.general
    mask = (1 << 8 * operand.address_size) - 1

    def register(name: str) -> int:
        if name.endswith("ip"):
            return step.pc + len(step.code)
        return general[name] & mask if name else 0

    offset = register(operand.base) + register(operand.index) * operand.scale + operand.displacement
    size = operand.size
    if operand.push:
        offset -= size
    if operand.bits:
        offset += _signed(general[operand.bits], size) // (8 * size) * size
    if operand.string:
        count = min(step.repeats, register("rcx")) if operand.repeated else 1
        if general["rflags"] & _DIRECTION:
            offset -= max(count - 1, 0) * size
        size *= count
    linear = (offset & mask) + _base(step.state, operand.segment)
    wide = width(step.state) == 64
    return Access(linear & ((1 << (64 if wide else 32)) - 1), size, operand.write, operand.stack)


def _base(state: CpuState, segment: str) -> int:
    if width(state) == 64 and segment not in _BASED_IN_64_BIT:
        return 0
    return state.segments[segment].base


def _signed(value: int, size: int) -> int:
    """The low `size` bytes as a signed number."""
    value &= (1 << 8 * size) - 1
    return value - (1 << 8 * size) if value >> 8 * size - 1 else value


# ---------------------------------------------------------------- out of capstone's hands


@functools.lru_cache(maxsize=1 << 14)
def _decode(code: bytes, bits: int) -> Instruction | None:
    import capstone  # takes a while

    found = next(decoder(bits, detail=True).disasm(code, 0, 1), None)
    if found is None:
        return None
    mnemonic = found.mnemonic.split()[-1]
    relative = found.group(capstone.CS_GRP_BRANCH_RELATIVE)
    return Instruction(
        size=found.size,
        operands=(*_explicit(found, mnemonic), *_stack(found, mnemonic, bits)),
        branch=_signed(found.operands[0].imm, bits // 8) if relative else None,
        ends=mnemonic in _ENDS,
        moves_string=found.opcode[0] in _MOVES,
    )


def _explicit(found: Any, mnemonic: str) -> Iterator[_Operand]:
    """The operands that are written out."""
    import capstone

    if mnemonic in _NO_ACCESS:
        return
    bits = ""
    if mnemonic in _BIT_OFFSET and found.operands[-1].type == capstone.x86.X86_OP_REG:
        bits = _long(found.reg_name(found.operands[-1].reg))
    for operand in found.operands:
        if operand.type != capstone.x86.X86_OP_MEM:
            continue
        base, index, segment = (
            found.reg_name(r) or "" for r in (operand.mem.base, operand.mem.index, operand.mem.segment)
        )
        string = found.opcode[0] in _STRINGS
        stack = _long(base) == "rsp"
        on_stack_segment = "ss" if stack or _long(base) == "rbp" else "ds"
        yield _Operand(
            "es" if string and _long(base) == "rdi" else segment or on_stack_segment,
            _long(base),
            _long(index),
            operand.mem.scale,
            operand.mem.disp,
            _SIZES.get(mnemonic, operand.size),
            found.addr_size,
            write=bool(operand.access & capstone.CS_AC_WRITE) or mnemonic in _WRITTEN_ALL_THE_SAME,
            bits=bits,
            string=string,
            repeated=found.prefix[0] in _REP,
            stack=stack,
        )


def _stack(found: Any, mnemonic: str, bits: int) -> Iterator[_Operand]:
    """What is pushed or popped."""
    word = 2 if found.prefix[2] == 0x66 or bits == 16 else bits // 8
    if mnemonic in _PUSHED:
        yield _Operand("ss", "rsp", "", 1, 0, _PUSHED[mnemonic] * word, bits // 8, write=True, stack=True, push=True)
    elif mnemonic in _POPPED:
        top = "rbp" if mnemonic == "leave" else "rsp"
        yield _Operand("ss", top, "", 1, 0, _POPPED[mnemonic] * word, bits // 8, write=False, stack=True)


def _long(name: str) -> str:
    """The 64-bit register that `name` is a part of: eax, ax -> rax, r8d -> r8. Empty for none (EIZ, RIZ)."""
    if name in ("", "eiz", "riz"):
        return ""
    if name[0] == "r":
        return name.rstrip("dw")
    return f"r{name[1:]}" if name[0] == "e" else f"r{name}"
