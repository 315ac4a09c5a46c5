"""What an instruction accesses, from its bytes and the registers before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from rig import operands
from rig.errors import EvidenceError
from rig.model import Segment
from rig.operands import Access
from rig.trace import Step, parse
from tests.forged_trace import PAGING_32, PAGING_64, trace_text

PC = 0x1000
TOP = 0x8000
GIVEN = {"rsp": TOP, "rbp": 0x9000, "rdi": 0x3000, "rsi": 0x4000, "rcx": 4, "rax": 0x10, "rbx": 0x2000}
WRITE, READ = (True, False), (False, False)
PUSH, POP = (True, True), (False, True)  # through the stack pointer

Expected = tuple[int, int, tuple[bool, bool]]  # address, bytes, (write, stack)


def step(code: str, mode: Mapping[str, int], changed: Mapping[str, int]) -> Step:
    """Executed with FS at 0x5000."""
    (found,) = parse(trace_text([(PC, code, {**GIVEN, **changed})], mode), 0).steps
    segments = {**found.state.segments, "fs": Segment(0xD8, 0x5000, 0xFFFFFFFF, 0)}
    return replace(found, state=replace(found.state, segments=segments))


@pytest.mark.parametrize(
    ("code", "changed", "expected"),
    [
        ("4989a300080000", {"r11": 0x5000}, [(0x5800, 8, WRITE)]),  # mov [r11+0x800], rsp
        ("488b442408", {}, [(TOP + 8, 8, POP)]),  # mov rax, [rsp+8]
        ("48890510000000", {}, [(PC + 7 + 0x10, 8, WRITE)]),  # mov [rip+0x10], rax: from the next instruction on
        ("488d4708", {}, []),  # lea rax, [rdi+8]
        ("0f1f440000", {}, []),  # nop [rax+rax]
        ("8b0487", {}, [(0x3040, 4, READ)]),  # mov eax, [rdi+rax*4]
        ("678903", {"rbx": 0x1_0000_2000}, [(0x2000, 4, WRITE)]),  # mov [ebx], eax
        ("64488b042510000000", {}, [(0x5010, 8, READ)]),  # mov rax, fs:[0x10]
        ("50", {}, [(TOP - 8, 8, PUSH)]),  # push rax
        ("ff33", {}, [(0x2000, 8, READ), (TOP - 8, 8, PUSH)]),  # push [rbx]
        ("e800000000", {}, [(TOP - 8, 8, PUSH)]),  # call
        ("c3", {}, [(TOP, 8, POP)]),  # ret
        ("9d", {}, [(TOP, 8, POP)]),  # popfq
        ("c9", {}, [(0x9000, 8, POP)]),  # leave
        ("f348a5", {}, [(0x3000, 32, WRITE), (0x4000, 32, READ)]),  # rep movsq
        ("48ab", {}, [(0x3000, 8, WRITE)]),  # stosq
        ("f20f1107", {}, [(0x3000, 8, WRITE)]),  # movsd [rdi], xmm0: no string, though its name is
        ("0f0118", {}, [(0x10, 10, READ)]),  # lidt [rax]
    ],
)
def test_accesses_of_64_bit_code(code: str, changed: Mapping[str, int], expected: list[Expected]) -> None:
    assert operands.accesses(step(code, PAGING_64, changed)) == tuple(Access(at, n, *how) for at, n, how in expected)


@pytest.mark.parametrize(
    ("code", "changed", "expected"),
    [
        ("8903", {}, [(0x2000, 4, WRITE)]),  # mov [ebx], eax
        ("3903", {}, [(0x2000, 4, READ)]),  # cmp [ebx], eax
        ("894c8b04", {"rcx": 3}, [(0x2010, 4, WRITE)]),  # mov [ebx+ecx*4+4], ecx
        ("8943fc", {"rbx": 2}, [(0xFFFFFFFE, 4, WRITE)]),  # mov [ebx-4], eax: wraps at 4 GiB
        ("64890510000000", {}, [(0x5010, 4, WRITE)]),  # mov fs:[0x10], eax
        ("f00fb10b", {}, [(0x2000, 4, WRITE)]),  # lock cmpxchg [ebx], ecx
        ("0f010424", {}, [(TOP, 6, PUSH)]),  # sgdt [esp]
        ("0fab03", {"rax": 70}, [(0x2008, 4, WRITE)]),  # bts [ebx], eax: bit 70 is in the third word
        ("0fa303", {"rax": 0xFFFFFFFF}, [(0x1FFC, 4, READ)]),  # bt [ebx], eax: bit -1
        ("6655", {}, [(TOP - 2, 2, PUSH)]),  # push bp
        ("60", {}, [(TOP - 32, 32, PUSH)]),  # pusha
        ("8f03", {}, [(0x2000, 4, WRITE), (TOP, 4, POP)]),  # pop [ebx]
        ("f3a5", {}, [(0x3000, 16, WRITE), (0x4000, 16, READ)]),  # rep movsd
        ("f3ab", {"rcx": 0}, []),  # rep stosd
        ("f3a4", {"rflags": 0x446}, [(0x2FFD, 4, WRITE), (0x3FFD, 4, READ)]),  # rep movsb with DF: downwards
        ("0f0b", {}, []),  # ud2
    ],
)
def test_accesses_of_32_bit_code(code: str, changed: Mapping[str, int], expected: list[Expected]) -> None:
    assert operands.accesses(step(code, PAGING_32, changed)) == tuple(Access(at, n, *how) for at, n, how in expected)


def test_a_string_that_was_interrupted_is_told_as_far_as_it_came() -> None:
    (access,) = operands.accesses(replace(step("f348ab", PAGING_64, {"rcx": 512}), repeats=3))
    assert access.size == 24


@pytest.mark.parametrize(("code", "bits", "branch", "ends"), [("7580", 32, -126, False), ("eb0e", 64, 16, True)])
def test_where_control_goes(code: str, bits: int, branch: int, ends: bool) -> None:
    found = operands.decode(bytes.fromhex(code), PC, bits)
    assert (found.branch, found.ends, found.size) == (branch, ends, 2)


def test_bytes_that_are_no_instruction() -> None:
    with pytest.raises(EvidenceError, match="can't decode the instruction at 0x1000: ff ff"):
        operands.accesses(step("ffff", PAGING_64, {}))
