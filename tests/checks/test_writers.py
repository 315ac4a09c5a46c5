"""Who wrote a byte last, from a forged recording and the tables that were live."""

from __future__ import annotations

from rig.checks.writers import Writers, callers
from rig.handover import Tables
from rig.memory.image import PagesMemory
from rig.model import Symbol
from rig.trace import parse
from tests.forge import PGD, cpu, pgd_page
from tests.forged_trace import PAGING_32, Instruction, trace_text


def test_writes_are_translated_page_by_page_and_the_last_one_counts() -> None:
    memory = PagesMemory({PGD // 4096: pgd_page()})  # 4 MiB at 0 and at 0xc0000000, both physical 0
    recorded: list[Instruction] = [
        (0x1000, "f3ab", {"rdi": 0xC0002FF8, "rcx": 4}),  # rep stosd
        (0x1002, "ffff", {}),  # no instruction
        (0x1004, "8903", {"rbx": 0x3000}),  # mov [ebx], eax
        (0x1006, "8b03", {"rbx": 0x2FF8}),  # mov eax, [ebx]: reads
        (0x1008, "8903", {"rbx": 0x10000000}),  # mapped nowhere
    ]
    steps = parse(trace_text(recorded, PAGING_32 | {"cr3": PGD}), 0).steps
    writers = Writers(steps, Tables(memory, cpu(0), (memory,)))
    told = sorted((start, end, step.number) for step, start, end in writers.last(0x2FF0, 0x3006))
    assert told == [(0x2FF8, 0x3000, 0), (0x3000, 0x3004, 2), (0x3004, 0x3006, 0)]


def test_who_called_the_function_that_wrote() -> None:
    """As on x86_64 2.6.18: machine_kexec calls memcpy, which is patched to jump to memcpy_c."""
    symbols = (
        Symbol("machine_kexec", 0xC0110000, 0xC0110100),
        Symbol("memcpy", 0xC0200000, 0xC0200080),
        Symbol("memcpy_c", 0xC0200080, 0xC0200100),
    )
    recorded: list[Instruction] = [
        (0xC0110000, "fa", {}),  # cli
        (0xC0110001, "e8fafe0e00", {}),  # call memcpy
        (0xC0200000, "eb7e", {}),  # jmp memcpy_c
        (0xC0200080, "fc", {}),  # cld
        (0xC0200081, "a5", {}),  # movsd
        (0xC0200080, "fc", {}),  # its own loop, back to its start
        (0xC0200081, "a5", {}),
        (0xC0110006, "a5", {}),
    ]
    steps = parse(trace_text(recorded, PAGING_32 | {"cr3": PGD}), 0).steps
    assert callers(symbols, steps, steps[6]) == [0xC0200000, 0xC0110001]
    assert callers(symbols, steps, steps[7]) == []  # by machine_kexec itself
    assert callers(symbols, steps[4:], steps[6]) == []  # entered before the recording began
    assert callers(symbols[:1], steps, steps[6]) == []
