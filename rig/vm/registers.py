"""`info registers -a` of QEMU's monitor, parsed. Pure.

The print format is that of x86_cpu_dump_state() in QEMU's target/i386/cpu-dump.c, which prints 16-digit
registers while a CPU runs 64-bit code and 8-digit ones (EAX...) while it does not. Both are read here, and
come out under the same 64-bit names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rig.errors import ProtocolError
from rig.model import CpuState, Segment

# Assignments "RAX=0123", "R8 =0123", "RFL=00000046"; not "ST0=" and the like, which nobody asks for.
_REGISTER = re.compile(r"\b(R[A-Z0-9]{1,2}|E[A-Z]{2}|CR[0234]|EFER)\s*=([0-9a-f]{8,16})\b")
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR)\s*=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})", re.M
)
_TABLE = re.compile(r"^([GI]DT)=\s+([0-9a-f]{8,16}) ([0-9a-f]{8})", re.M)

_LEGACY = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_GENERAL_32 = (*(f"r{name}" for name in _LEGACY), "rip", "rflags")
_GENERAL_64 = (*_GENERAL_32, *(f"r{number}" for number in range(8, 16)))
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


def parse(text: str) -> tuple[CpuState, ...]:
    """The state of every CPU in the output of `info registers -a`, in CPU order.

    Raises ProtocolError when a CPU's section lacks a register, or when there is no CPU at all.
    """
    sections = re.split(r"^CPU#([0-9]{1,9})\s*$", text, flags=re.M)[1:]
    if not sections:
        raise ProtocolError("no CPU in QEMU's register dump", received=text)
    return tuple(parse_one(int(number), body) for number, body in zip(sections[::2], sections[1::2], strict=True))


def parse_one(cpu: int, text: str) -> CpuState:
    """The state of one CPU from its section of the output. Raises ProtocolError when it lacks a register."""
    general, found, rest = text.partition("\nES =")
    system = _system(found + rest)
    values = {_long_name(name): int(value, 16) for name, value in _REGISTER.findall(general)}
    names = _GENERAL_64 if "RIP=" in general else _GENERAL_32
    behind = {*_CONTROL, *_SEGMENTS, "GDT", "IDT"}
    missing = sorted((set(names) - values.keys()) | (behind - system.found))
    if missing:
        raise ProtocolError(f"QEMU's dump of CPU {cpu} lacks {', '.join(missing)}", received=text)
    return CpuState(
        cpu=cpu,
        general={name: values[name] for name in names},
        cr0=system.control["cr0"],
        cr2=system.control["cr2"],
        cr3=system.control["cr3"],
        cr4=system.control["cr4"],
        efer=system.control["efer"],
        gdt_base=system.tables["GDT"][0],
        gdt_limit=system.tables["GDT"][1],
        idt_base=system.tables["IDT"][0],
        idt_limit=system.tables["IDT"][1],
        segments=system.segments,
    )


@dataclass(frozen=True)
class _System:
    """All that is printed behind the general registers. found: the names of what is there."""

    control: Mapping[str, int]
    tables: Mapping[str, tuple[int, int]]
    segments: Mapping[str, Segment]
    found: frozenset[str]


@functools.lru_cache(maxsize=64)
def _system(text: str) -> _System:
    """Cached: from one instruction of a recording to the next it is hardly ever another text."""
    control = {name.lower(): int(value, 16) for name, value in _REGISTER.findall(text)}
    tables = {name: (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(text)}
    segments = {
        name.lower(): Segment(int(selector, 16), int(base, 16), int(limit, 16), int(flags, 16))
        for name, selector, base, limit, flags in _SEGMENT.findall(text)
    }
    return _System(control, tables, segments, frozenset({*control, *tables, *segments}))


@functools.cache
def _long_name(name: str) -> str:
    """EAX -> rax, RFL and EFL -> rflags, R8 -> r8; CR3 and EFER only in lower case."""
    if name in ("RFL", "EFL"):
        return "rflags"
    if name.startswith("E") and name != "EFER":
        return "r" + name[1:].lower()
    return name.lower()
