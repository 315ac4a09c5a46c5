"""Registers as tables: one a CPU, a row a register, a column a checkpoint, and what changed from one to the next. Pure.

Names and order as in the SDM, vol. 1, 3.4 (general purpose), vol. 3, 2.4 (GDTR, IDTR) and 2.5 (control registers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rig import bits
from rig.model import CpuState
from rig.report.html.page import Link, Sources

GENERAL = (
    *("rip", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{n}" for n in range(8, 16)),
)
CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


@dataclass(frozen=True)
class Cell:
    """One register at one checkpoint.

    bits: the names of those that are set, or that flipped when it changed; of a segment, what else is loaded.
    """

    value: str
    changed: bool
    bits: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]


@dataclass(frozen=True)
class Column:
    """A checkpoint. paging: in words. source: the file with its registers; None when it isn't there."""

    checkpoint: str
    paging: str
    source: Link | None


@dataclass(frozen=True)
class RegisterTable:
    cpu: int
    crashing: bool
    columns: list[Column]
    rows: list[Row]


def register_tables(
    registers: Mapping[str, Sequence[CpuState]], crashing: int | None, sources: Sources
) -> list[RegisterTable]:
    """A table for each CPU, the crashing one's first. registers: by checkpoint, in the order of time."""
    numbers = sorted({cpu.cpu for cpus in registers.values() for cpu in cpus}, key=lambda n: (n != crashing, n))
    tables = []
    for number in numbers:
        states = {where: cpu for where, cpus in registers.items() for cpu in cpus if cpu.cpu == number}
        tables.append(_table(number, number == crashing, states, sources))
    return tables


def _table(number: int, crashing: bool, states: Mapping[str, CpuState], sources: Sources) -> RegisterTable:
    columns = [Column(where, _paging(cpu), _source(where, sources)) for where, cpu in states.items()]
    cpus = list(states.values())
    rows = [_row(name, [_hex(cpu.general.get(name)) for cpu in cpus]) for name in GENERAL]
    rows += [_control_row(name, cpus) for name in CONTROL]
    rows += [
        _row("gdt", [f"{cpu.gdt_base:#x}+{cpu.gdt_limit:#x}" for cpu in cpus]),
        _row("idt", [f"{cpu.idt_base:#x}+{cpu.idt_limit:#x}" for cpu in cpus]),
    ]
    rows += [_segment_row(name, cpus) for name in SEGMENTS]
    return RegisterTable(number, crashing, columns, [row for row in rows if any(cell.value for cell in row.cells)])


def _source(where: str, sources: Sources) -> Link | None:
    return next(iter(sources.links([f"registers/{where}.json"])), None)


def _paging(cpu: CpuState) -> str:
    return f"{cpu.paging} paging" if cpu.paging else "paging off"


def _row(name: str, values: Sequence[str]) -> Row:
    befores = [values[0], *values] if values else []
    return Row(name, [Cell(now, now != before) for now, before in zip(values, befores, strict=False)])


def _control_row(name: str, cpus: Sequence[CpuState]) -> Row:
    """Bits by name: all that are set where the row begins, what flipped where it goes on."""
    values: list[int] = [getattr(cpu, name) for cpu in cpus]
    cells = []
    for number, (now, before) in enumerate(zip(values, [values[0], *values] if values else [], strict=False)):
        words = ""
        if name in bits.REGISTERS:
            words = bits.flipped(name, before, now) if number else " ".join(bits.names(name, now))
        cells.append(Cell(f"{now:#x}", now != before, words))
    return Row(name, cells)


def _hex(value: int | None) -> str:
    return "" if value is None else f"{value:#x}"


def _segment_row(name: str, cpus: Sequence[CpuState]) -> Row:
    """The selector; what else is loaded with it where the row begins, and where it changes."""
    segments = [cpu.segments.get(name) for cpu in cpus]
    cells = []
    for number, (now, before) in enumerate(zip(segments, [segments[0], *segments] if segments else [], strict=False)):
        if now is None:
            cells.append(Cell("", before is not None))
            continue
        words = f"base {now.base:#x} limit {now.limit:#x} flags {now.flags:#x}"
        cells.append(Cell(f"{now.selector:#06x}", now != before, words if now != before or not number else ""))
    return Row(name, cells)
