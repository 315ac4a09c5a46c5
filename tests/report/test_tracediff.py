"""Two hand-overs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.handover import HandOver
from rig.report.tracediff import Instruction, Way, compare_ways, function, way, without_addresses
from tests import forged_trace
from tests.forged_trace import CLI, CONTROL_VIRTUAL, Did, at

KERNEL_64, KERNEL_32 = 0xFFFFFFFFAA000000, 0xC2000000
NOP = b"\x90"


@pytest.mark.parametrize(
    ("text", "kernel", "known"),
    [
        ("movl 0x1bc60d9(%rip), %r12d", KERNEL_64, "movl ?(%rip), %r12d"),
        ("movq $18446744072267202560, %rsi", KERNEL_64, "movq $?, %rsi"),
        ("movq $-0x55f89000, %rsi", KERNEL_64, "movq $?, %rsi"),
        ("movl 0xc3d89710, %eax", KERNEL_32, "movl ?, %eax"),
        ("movl $0, 0xc3d89710", KERNEL_32, "movl $0, ?"),
        ("ljmpl $0x60:$0xc205fd14", KERNEL_32, "ljmpl $0x60:$?"),
        # what is no address: a factor, a mask, PAGE_OFFSET, a place in a structure, a control register's new value
        ("imull $0xc2cccccd, %ebx, %ebx", KERNEL_32, None),
        ("andl $0xc2fffffc, %edi", KERNEL_32, None),
        ("leal -0x40000000(%ebx), %esi", KERNEL_32, None),
        ("testb $1, 0x13c(%ebx)", KERNEL_32, None),
        ("movl $0x80050033, %eax", KERNEL_32, None),
    ],
)
def test_addresses_of_the_kernel_are_taken_out(text: str, kernel: int, known: str | None) -> None:
    assert without_addresses(text, kernel) == (text if known is None else known)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("machine_kexec+0x16f", "machine_kexec"),
        ("control page+0x6b", "control page"),
        ("control page 0x14003000+0x73", "control page"),
        ("0xd003075", "?"),
    ],
)
def test_function(name: str, known: str) -> None:
    assert function(name) == known


def steps(*keys: str) -> Way:
    return Way(tuple(Instruction(n, f"f+{n:#x}", key, "", key) for n, key in enumerate(keys)), ())


def test_only_the_instructions_of_one_side_are_marked() -> None:
    found = compare_ways(steps(*"abcdefghijklm"), steps(*"abXcdefghijkm"))
    assert found.steps == (13, 13)
    assert ["".join(line.mark + line.instruction.key for line in hunk) for hunk in found.hunks] == [
        " a b+X c d",
        " j k-l m",
    ]
    assert (found.removed, found.inserted) == (1, 1)
    assert compare_ways(steps(*"abc"), steps(*"abc")).hunks == ()


def forged(tmp_path: Path, did: list[Did]) -> Way:
    return way(HandOver(forged_trace.machine(did).write(tmp_path)))


def test_an_instruction_more_in_a_recording(tmp_path: Path) -> None:
    before = forged_trace.way()
    more = Did(at(CONTROL_VIRTUAL + 0x12), NOP)
    found = compare_ways(forged(tmp_path / "a", before), forged(tmp_path / "b", [*before[:3], more, *before[3:]]))
    (hunk,) = found.hunks
    assert [(line.mark, line.instruction.where) for line in hunk if line.mark != " "] == [("+", "control page+0x12")]
    assert [line.instruction.text for line in hunk if line.mark != " "] == ["nop"]


def test_changes_of_control_registers_are_paired(tmp_path: Path) -> None:
    """Before, CR0.PG is cleared; after, WP too; and interrupts were off from the start. CR3 has other values."""
    before = forged_trace.way()
    first = Did(at(before[0].state.general["rip"], idt=0x7FF), CLI)
    old, new = forged(tmp_path / "a", before), forged(tmp_path / "b", [first, *before[1:]])
    found = {(pair.before, pair.after) for pair in compare_ways(old, new).controls if not pair.same}
    assert found == {("machine_kexec+0x0: IF 1 -> 0", "")}
    same = [pair.before.partition(": ")[2].split()[0] for pair in compare_ways(old, old).controls]
    assert {"IF", "IDTR", "CR3", "CR0"} <= set(same)
    assert all(pair.same for pair in compare_ways(old, old).controls)
