"""What an instruction writes, from its bytes and the registers before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rig.memory.image import PagesMemory
from rig.model import Segment
from rig.trace import Step
from rig.writes import Writers, virtual_writes, writes
from tests.forge import PGD, cpu, pgd_page

CODE32 = Segment(0x60, 0, 0xFFFFFFFF, 0x00C09B00)
CODE64 = Segment(0x10, 0, 0xFFFFFFFF, 0x00AF9B00)
STACK = 0xC0201FF0


def step(code: str, *, wide: bool = False, repeats: int = 1, number: int = 0, fs: int = 0, **general: int) -> Step:
    state = cpu(0)
    segments = {**state.segments, "cs": CODE64 if wide else CODE32, "fs": Segment(0xD8, fs, 0xFFFFFFFF, 0)}
    registers = {**state.general, "rip": 0x1000, **general}
    efer = 0x500 if wide else 0
    return Step(number, replace(state, general=registers, segments=segments, efer=efer), bytes.fromhex(code), repeats)


@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        ("8903", {"rbx": 0x2000}, [(0x2000, 4)]),  # mov [ebx], eax
        ("8b03", {"rbx": 0x2000}, []),  # mov eax, [ebx]: reads
        ("3903", {"rbx": 0x2000}, []),  # cmp [ebx], eax: reads
        ("894c8b04", {"rbx": 0x2000, "rcx": 3}, [(0x2010, 4)]),  # mov [ebx+ecx*4+4], ecx
        ("8943fc", {"rbx": 2}, [(0xFFFFFFFE, 4)]),  # mov [ebx-4], eax: wraps at 4 GiB
        ("64890510000000", {"fs": 0x5000}, [(0x5010, 4)]),  # mov fs:[0x10], eax
        ("f00fb10b", {"rbx": 0x2000}, [(0x2000, 4)]),  # lock cmpxchg [ebx], ecx
        ("0f010424", {"rsp": 0x3000}, [(0x3000, 6)]),  # sgdt [esp]
        ("0fab03", {"rbx": 0x2000, "rax": 70}, [(0x2008, 4)]),  # bts [ebx], eax: bit 70 is in the third word
        ("0fab03", {"rbx": 0x2000, "rax": 0xFFFFFFFF}, [(0x1FFC, 4)]),  # bit -1
        ("55", {}, [(STACK - 4, 4)]),  # push ebp
        ("6655", {}, [(STACK - 2, 2)]),  # push bp
        ("60", {}, [(STACK - 32, 32)]),  # pusha
        ("e800000000", {}, [(STACK - 4, 4)]),  # call
        ("8f03", {"rbx": 0x2000}, [(0x2000, 4)]),  # pop [ebx]
        ("f3ab", {"rdi": 0x2000, "rcx": 8, "repeats": 9}, [(0x2000, 32)]),  # rep stosd; the ninth found ECX = 0
        ("f3ab", {"rdi": 0x2000, "rcx": 8, "repeats": 3}, [(0x2000, 12)]),  # interrupted
        ("f3ab", {"rdi": 0x2000, "rcx": 0}, []),
        ("f3a4", {"rsi": 1, "rdi": 0x2000, "rcx": 4, "repeats": 4, "rflags": 0x400}, [(0x1FFD, 4)]),  # DF: downwards
        ("0f0b", {}, []),  # ud2
    ],
)
def test_what_32_bit_instructions_write(code: str, given: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert list(virtual_writes(step(code, **given))) == expected


@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        ("48890510000000", {}, [(0x1017, 8)]),  # mov [rip+0x10], rax: from the next instruction on
        ("50", {"rsp": 0x3000}, [(0x2FF8, 8)]),  # push rax
        ("4c8903", {"rbx": 0x2000, "fs": 0x5000}, [(0x2000, 8)]),  # mov [rbx], r8: DS counts as 0
        ("6489042510000000", {"fs": 0x5000}, [(0x5010, 4)]),  # mov fs:[0x10], eax
        ("678903", {"rbx": 0x1_0000_2000}, [(0x2000, 4)]),  # mov [ebx], eax
        ("f348ab", {"rdi": 0x2000, "rcx": 512, "repeats": 513}, [(0x2000, 4096)]),  # rep stosq
    ],
)
def test_what_64_bit_instructions_write(code: str, given: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert list(virtual_writes(step(code, wide=True, **given))) == expected


def test_writes_are_translated_page_by_page_and_the_last_one_counts() -> None:
    memory = PagesMemory({PGD // 4096: pgd_page()})  # 4 MiB at 0 and at 0xc0000000, both physical 0
    steps = [
        step("f3ab", number=0, rdi=0xC0002FF8, rcx=4, repeats=5),
        step("8903", number=1, rbx=0x3000),
        step("8903", number=2, rbx=0x10000000),  # mapped nowhere
    ]
    found = list(writes(steps, lambda _: memory))
    assert [(w.step.number, w.start, w.end) for w in found] == [
        (0, 0x2FF8, 0x3000),
        (0, 0x3000, 0x3008),
        (1, 0x3000, 0x3004),
    ]
    told = sorted((start, end, s.number) for s, start, end in Writers(found).last(0x2FF0, 0x3006))
    assert told == [(0x2FF8, 0x3000, 0), (0x3000, 0x3004, 1), (0x3004, 0x3006, 0)]
