"""Which memory an instruction of the recording wrote, and so who wrote a given byte. Pure.

From the registers before the instruction: its operands that capstone knows to be written, what the stack instructions
push, string instructions over all their iterations. Left out is what the CPU writes by itself, without an instruction
that says so: the frame of an interrupt or exception, accessed and dirty bits, busy bits of descriptors; and of the
state-saving instructions all but FXSAVE (Intel SDM vol. 2).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rig.disassembly import width
from rig.memory import paging
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, CpuState, PagingMode
from rig.trace import Step

_IN_64_BIT = ("fs", "gs")  # the other segments' bases count as 0 there (SDM vol. 1, 3.3.4)
_DIRECTION = 1 << 10  # RFLAGS.DF
_REP = (0xF2, 0xF3)
# Memory operands that capstone 5 takes for read ones.
_FPU = {"fnstcw", "fnstsw", "fst", "fstp", "fist", "fistp", "fisttp", "stmxcsr"}
_WRITTEN_ALL_THE_SAME = {"cmpxchg", "cmpxchg8b", "cmpxchg16b", "movnti", "insb", "insw", "insd", *_FPU}
_STRING = ("stos", "movs", "ins")
_BIT_OFFSET = ("bts", "btr", "btc")  # with a register: a bit string, of which another word may be meant
_SIZES = {"fxsave": 512, "fxsave64": 512}
# Words that are pushed.
_PUSHED = {"push": 1, "pushf": 1, "pushfd": 1, "pushfq": 1, "call": 1, "lcall": 2, "enter": 1, "pushal": 8, "pushaw": 8}


@dataclass(frozen=True)
class Write:
    """Physical bytes [start, end), in one page, that a step wrote."""

    step: Step
    start: int
    end: int


@dataclass(frozen=True)
class _Operand:
    """A memory operand that is written. bits: the register that selects a bit of it. string: moves with each repeat."""

    segment: str
    base: str
    index: str
    scale: int
    displacement: int
    size: int  # bytes
    address_size: int  # bytes
    bits: str = ""
    string: bool = False
    repeated: bool = False
    push: bool = False  # the address is that of the stack's top before; the bytes lie below


def virtual_writes(step: Step) -> Iterator[tuple[int, int]]:
    """(linear address, bytes) of each write of one step, through all its repeats."""
    general = step.state.general
    for operand in _operands(step.code, width(step.state)):
        mask = (1 << 8 * operand.address_size) - 1

        def register(name: str, mask: int = mask) -> int:
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
        if size:
            yield (offset & mask) + _base(step.state, operand.segment), size


def writes(steps: Iterable[Step], tables: Callable[[int], Memory]) -> Iterator[Write]:
    """Every write of these steps, in order, page by page.

    tables: CR3 -> memory that holds the tables it points to, as they were live. What they don't map is left out.
    """
    known: dict[tuple[PagingMode | None, int, int], int | None] = {}
    for step in steps:
        mode, cr3 = step.state.paging, step.state.cr3
        for virtual, size in virtual_writes(step):
            end = virtual + size
            while virtual < end:
                page, offset = virtual & ~(PAGE_SIZE - 1), virtual & (PAGE_SIZE - 1)
                count = min(end - virtual, PAGE_SIZE - offset)
                if (mode, cr3, page) not in known:
                    known[mode, cr3, page] = _physical(tables(cr3), mode, cr3, page)
                if (frame := known[mode, cr3, page]) is not None:
                    yield Write(step, frame + offset, frame + offset + count)
                virtual += count


class Writers:
    """Asks many times who wrote what."""

    def __init__(self, written: Iterable[Write]) -> None:
        self._by_page: Mapping[int, list[Write]] = defaultdict(list)
        for write in written:
            self._by_page[write.start // PAGE_SIZE].append(write)

    def last(self, start: int, end: int) -> Iterator[tuple[Step, int, int]]:
        """(step, start, end): who wrote the physical bytes [start, end) last. Bytes that nobody wrote are not told."""
        for page in range(start // PAGE_SIZE, (end - 1) // PAGE_SIZE + 1):
            todo = [(max(start, page * PAGE_SIZE), min(end, (page + 1) * PAGE_SIZE))]
            for write in reversed(self._by_page.get(page, ())):
                rest: list[tuple[int, int]] = []
                for low, high in todo:
                    first, behind = max(low, write.start), min(high, write.end)
                    if first >= behind:
                        rest.append((low, high))
                        continue
                    yield write.step, first, behind
                    rest += [(a, b) for a, b in ((low, first), (behind, high)) if a < b]
                if not (todo := rest):
                    break


# ---------------------------------------------------------------- one instruction


@functools.cache
def _decoder(bits: int) -> Any:
    import capstone  # takes a while

    modes = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
    decoder = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    decoder.detail = True
    return decoder


@functools.lru_cache(maxsize=1 << 14)
def _operands(code: bytes, bits: int) -> tuple[_Operand, ...]:
    """What an instruction writes to. Nothing when its bytes make no instruction."""
    import capstone

    found = next(iter(_decoder(bits).disasm(code, 0, 1)), None)
    if found is None:
        return ()
    mnemonic = found.mnemonic.split()[-1]
    operands = []
    for operand in found.operands:
        if operand.type != capstone.x86.X86_OP_MEM:
            continue
        if not (operand.access & capstone.CS_AC_WRITE or mnemonic in _WRITTEN_ALL_THE_SAME):
            continue
        base, index, segment = (
            found.reg_name(r) or "" for r in (operand.mem.base, operand.mem.index, operand.mem.segment)
        )
        string = mnemonic.startswith(_STRING) and operand.mem.base in _destinations()
        source = found.operands[-1]
        by_register = mnemonic in _BIT_OFFSET and source.type == capstone.x86.X86_OP_REG
        operands.append(
            _Operand(
                segment or ("es" if string else "ss" if base[1:] in ("sp", "bp") else "ds"),
                _long(base),
                _long(index),
                operand.mem.scale,
                operand.mem.disp,
                _SIZES.get(mnemonic, operand.size),
                found.addr_size,
                bits=_long(found.reg_name(source.reg)) if by_register else "",
                string=string,
                repeated=any(p in _REP for p in found.prefix),
            )
        )
    if mnemonic in _PUSHED:
        word = 2 if found.prefix[2] == 0x66 or bits == 16 else bits // 8
        size = _PUSHED[mnemonic] * word
        operands.append(_Operand("ss", "rsp", "", 1, 0, size, bits // 8, push=True))
    return tuple(operands)


@functools.cache
def _destinations() -> tuple[int, ...]:
    from capstone import x86

    return (x86.X86_REG_RDI, x86.X86_REG_EDI, x86.X86_REG_DI)


def _long(name: str) -> str:
    """The 64-bit register that `name` is a part of: eax, ax -> rax, r8d -> r8. Empty for none (EIZ, RIZ)."""
    if name in ("", "eiz", "riz"):
        return ""
    if name[0] == "r":
        return name.rstrip("dw")
    return f"r{name[1:]}" if name[0] == "e" else f"r{name}"


def _signed(value: int, size: int) -> int:
    """The low `size` bytes as a signed number."""
    value &= (1 << 8 * size) - 1
    return value - (1 << 8 * size) if value >> 8 * size - 1 else value


def _base(state: CpuState, segment: str) -> int:
    if width(state) == 64 and segment not in _IN_64_BIT:
        return 0
    return state.segments[segment].base


def _physical(memory: Memory, mode: PagingMode | None, cr3: int, virtual: int) -> int | None:
    if mode is None:
        return virtual
    try:
        return paging.translate(memory, mode, cr3, virtual).physical
    except (paging.NotMapped, OutsideMemory):
        return None
