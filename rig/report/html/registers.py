"""Registers for the HTML report: one table per checkpoint, a row per register, a column per CPU (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rig.model import CpuState

GENERAL = (
    *("rip", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{n}" for n in range(8, 16)),
)
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


@dataclass(frozen=True)
class Row:
    """One register: its value on each CPU, as text."""

    name: str
    values: list[str]


@dataclass(frozen=True)
class RegisterTable:
    checkpoint: str
    cpus: list[int]
    paging: list[str]  # per CPU, in words
    rows: list[Row]


def register_table(checkpoint: str, cpus: Sequence[CpuState]) -> RegisterTable:
    """All registers that the evidence has; those that no CPU has (r8-r15 in 32-bit evidence) are left out."""
    rows = [
        Row(name, [_hex(cpu.general.get(name)) for cpu in cpus])
        for name in GENERAL
        if any(name in cpu.general for cpu in cpus)
    ]
    rows += [Row(name, [_hex(getattr(cpu, name)) for cpu in cpus]) for name in ("cr0", "cr2", "cr3", "cr4", "efer")]
    rows += [
        Row("gdt", [f"{cpu.gdt_base:#x}+{cpu.gdt_limit:#x}" for cpu in cpus]),
        Row("idt", [f"{cpu.idt_base:#x}+{cpu.idt_limit:#x}" for cpu in cpus]),
    ]
    rows += [
        Row(name, [_segment(cpu, name) for cpu in cpus])
        for name in SEGMENTS
        if any(name in cpu.segments for cpu in cpus)
    ]
    paging = [f"{cpu.paging} paging" if cpu.paging else "paging off" for cpu in cpus]
    return RegisterTable(checkpoint, [cpu.cpu for cpu in cpus], paging, rows)


def _hex(value: int | None) -> str:
    return "" if value is None else f"{value:#x}"


def _segment(cpu: CpuState, name: str) -> str:
    segment = cpu.segments.get(name)
    if segment is None:
        return ""
    return f"{segment.selector:#06x} base {segment.base:#x} limit {segment.limit:#x} flags {segment.flags:#x}"
