"""What an instruction accesses, from its bytes and registers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig import operands
from rig.errors import EvidenceError
from rig.model import Segment
from rig.operands import Access
from rig.trace import parse
from tests.trace_text import PAGING_32, PAGING_64, trace_text

PC = 0x1000
REGISTERS = {"rsp": 0x8000, "rbp": 0x9000, "rdi": 0x3000, "rsi": 0x4000, "rcx": 4, "rax": 0x10, "r11": 0x5000}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("4989a300080000", [(0x5800, 8, True, False)]),  # mov [r11+0x800], rsp
        ("488b442408", [(0x8008, 8, False, True)]),  # mov rax, [rsp+8]
        ("488b0510000000", [(PC + 7 + 0x10, 8, False, False)]),  # mov rax, [rip+0x10]
        ("488d4708", []),  # lea rax, [rdi+8]
        ("0f1f440000", []),  # nop [rax+rax]
        ("8b0487", [(0x3040, 4, False, False)]),  # mov eax, [rdi+rax*4]
        ("6a00", [(0x7FF8, 8, True, True)]),  # push 0
        ("e800000000", [(0x7FF8, 8, True, True)]),  # call
        ("c3", [(0x8000, 8, False, True)]),  # ret
        ("9d", [(0x8000, 8, False, True)]),  # popfq
        ("c9", [(0x9000, 8, False, True)]),  # leave
        ("f348a5", [(0x3000, 32, True, False), (0x4000, 32, False, False)]),  # rep movsq
        ("48ab", [(0x3000, 8, True, False)]),  # stosq
        ("0f0118", [(0x10, 10, False, False)]),  # lidt [rax]
    ],
)
def test_accesses_of_64_bit_code(code: str, expected: list[tuple[int, int, bool, bool]]) -> None:
    (step,) = parse(trace_text([(PC, code, REGISTERS)], PAGING_64), 0).steps
    assert operands.accesses(step) == tuple(Access(*e) for e in expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("50", [(0x7FFC, 4, True, True)]),  # push eax
        ("8b44241c", [(0x801C, 4, False, True)]),  # mov eax, [esp+0x1c]
        ("8b40f0", [(0, 4, False, False)]),  # mov eax, [eax-0x10]
        ("f3a5", [(0x3000, 16, True, False), (0x4000, 16, False, False)]),  # rep movsd
    ],
)
def test_accesses_of_32_bit_code(code: str, expected: list[tuple[int, int, bool, bool]]) -> None:
    (step,) = parse(trace_text([(PC, code, REGISTERS)], PAGING_32), 0).steps
    assert operands.accesses(step) == tuple(Access(*e) for e in expected)


def test_backwards_a_string_begins_at_its_lowest_element() -> None:
    backwards = REGISTERS | {"rflags": 0x446}  # DF
    (step,) = parse(trace_text([(PC, "f348ab", backwards)], PAGING_64), 0).steps
    assert operands.accesses(step) == (Access(0x3000 - 24, 32, True, False),)


def test_a_segments_base_counts() -> None:
    (step,) = parse(trace_text([(PC, "65488b07", REGISTERS)], PAGING_64), 0).steps  # mov rax, gs:[rdi]
    segments = {**step.state.segments, "gs": Segment(0, 0xFFFF888000000000, 0, 0)}
    moved = replace(step, state=replace(step.state, segments=segments))
    assert operands.accesses(moved)[0].virtual == 0xFFFF888000003000


def test_bytes_that_are_no_instruction() -> None:
    (step,) = parse(trace_text([(PC, "ffff", REGISTERS)], PAGING_64), 0).steps
    with pytest.raises(EvidenceError, match="can't decode the instruction at 0x1000: ff ff"):
        operands.accesses(step)
