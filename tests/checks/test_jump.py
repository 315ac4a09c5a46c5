"""A kexec jump on a small forged x86_64 machine: out and back, and what may be different then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from rig.checks import run_check
from rig.evidence import Copied
from rig.evidence.reader import Evidence
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts, Jump
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, CpuState, Failure, Symbol, Verdict
from tests.checks.forged_handover import CONTROL, DIRECT, ENTRY, MACHINE_KEXEC, PGD_COPY, RELOCATE_KERNEL, Handover
from tests.forge import PGD, RAM, cpu, scenario
from tests.forged_trace import PAGING_64, Instruction, trace_text

SOURCE, SWAP = 0x600000, 0x601000
IMAGE, KERNELS = b"\x11" * PAGE_SIZE, b"\x22" * PAGE_SIZE  # what lies at ENTRY: while away, before and after
CONTEXT = 0x300000  # physical: where the kernel saves its state
TEXT = 0x210000  # physical: where the kernel has relocate_kernel
COUNT = 0x800  # bytes from the image's start: what it writes of itself
STACK = DIRECT + 0x500FF0
BACK = MACHINE_KEXEC + 0x40  # where machine_kexec goes on
CHECK = "context-preserved"


def swapping(at: int, rdi: int, rsi: int) -> list[Instruction]:
    return [(at, "f348a5", {"rdi": rdi, "rsi": rsi, "rcx": 512}), (at + 3, "90", {"rcx": 0})]


def swapped(at: int) -> list[Instruction]:
    """Source to swap page, destination to source, swap page to destination, as relocate_kernel does it."""
    return [
        *swapping(at, SWAP, SOURCE),
        *swapping(at + 4, SOURCE, ENTRY),
        *swapping(at + 8, ENTRY, SWAP),
    ]


@dataclass
class Trip(Handover):
    """returned: what is in memory at `returned` besides, physical -> bytes. after: registers then. facts: others.

    page: of the control page, and text: of the kernel's own copy of it, the RET behind the last change of CR3.
    flags: EFLAGS there.
    """

    segments: tuple[tuple[int, int], ...] = ((ENTRY, PAGE_SIZE),)
    returned: dict[int, bytes] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    page: dict[int, str] = field(default_factory=lambda: {0x63: "c3"})
    text: bytes = b"\xc3"
    flags: int = 0x46
    more_steps: list[Instruction] = field(default_factory=lambda: swapped(CONTROL + 0x30))

    def steps(self) -> list[Instruction]:
        """save_processor_state() first: mov [rax], rbx."""
        saved: Instruction = (MACHINE_KEXEC - 3, "488918", {"cr3": PGD, "rax": DIRECT + CONTEXT})
        first, *rest = super().steps()
        return [first, *rest[:1], (MACHINE_KEXEC + 5, saved[1], saved[2]), *rest[1:]]

    def back(self) -> list[Instruction]:
        """The image counts, mov [rax], ecx, and returns; the kernel swaps again and takes its tables back."""
        return [
            (ENTRY, "8908", {"cr3": PGD_COPY, "rax": ENTRY + COUNT, "rcx": 1, "rsp": SWAP + 0xFF0}),
            (ENTRY + 2, "c3", {}),
            *swapped(CONTROL + 0x50),
            (RELOCATE_KERNEL + 0x60, "0f22d8", {"rax": PGD}),  # mov cr3, rax
            (RELOCATE_KERNEL + 0x63, "c3", {"cr3": PGD, "rsp": STACK - 8, "rflags": self.flags}),
            (BACK - 1, "c3", {"rsp": STACK, "rflags": 0x46}),
        ]

    def evidence(self, tmp_path: Path) -> Evidence:
        machine = self.machine()
        plan = replace(machine.facts.plan, scenario=scenario(load="jump", trigger="kexec-jump"))
        captured = (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.RETURNED)
        facts = replace(machine.facts, plan=plan, captured=captured, crash_region=None, dump=None)
        assert facts.kimage is not None
        facts = replace(facts, kimage=replace(facts.kimage, layout="start is word 3 (2.6.20 and newer)"), **self.facts)
        before = machine.base | {
            at // PAGE_SIZE: page
            for at, page in {
                **dict.fromkeys((CONTROL, CONTEXT, SWAP, 0x500000, 0x700000), bytes(PAGE_SIZE)),
                ENTRY: KERNELS,
                SOURCE: IMAGE,
                TEXT: bytes(0x63) + self.text + bytes(PAGE_SIZE - 0x63 - len(self.text)),
            }.items()
        }
        away = dict(machine.later[Checkpoint.HANDOVER])
        away |= {ENTRY // PAGE_SIZE: IMAGE, SOURCE // PAGE_SIZE: KERNELS, SWAP // PAGE_SIZE: IMAGE}
        back = {pfn: page for pfn, page in away.items() if pfn not in (ENTRY // PAGE_SIZE, SOURCE // PAGE_SIZE)}
        for at, blob in {CONTEXT: b"\x01", SOURCE + COUNT: b"\x01\0\0\0", **self.returned}.items():
            page, offset = back.get(at // PAGE_SIZE, before[at // PAGE_SIZE]), at % PAGE_SIZE
            back[at // PAGE_SIZE] = page[:offset] + blob + page[offset + len(blob) :]
        return self._write(tmp_path, facts, {captured[0]: before, captured[1]: away, captured[2]: back})

    def _write(self, tmp_path: Path, facts: Facts, memory: Mapping[Checkpoint, dict[int, bytes]]) -> Evidence:
        writer = EvidenceWriter(tmp_path, "jump")
        first = memory[Checkpoint.MACHINE_KEXEC]
        hashes = np.full(RAM // PAGE_SIZE, xxhash.xxh3_64_intdigest(bytes(PAGE_SIZE)), np.uint64)
        for pfn, page in first.items():
            hashes[pfn] = xxhash.xxh3_64_intdigest(page)
        writer.write_hashes(hashes, Checkpoint.MACHINE_KEXEC)
        there = np.array([xxhash.xxh3_64_intdigest(IMAGE)], np.uint64)
        writer.write_image(Copied(np.array([ENTRY], np.uint64), np.array([SOURCE], np.uint64), there))
        for checkpoint in facts.captured:
            writer.write_pages(checkpoint, memory[checkpoint])
        start, end = state(MACHINE_KEXEC, STACK), state(BACK, STACK + 8)
        end = replace(end, **{name: value for name, value in self.after.items() if name != "general"})
        end = replace(end, general={**end.general, **self.after.get("general", {})})
        away = replace(start, cr3=PGD_COPY, general={**start.general, "rip": ENTRY})
        for checkpoint, one in zip(Checkpoint, (None, None, start, away, end), strict=False):
            if one is not None:
                writer.write_registers(checkpoint, (one,))
        writer.write_trace(trace_text(self.steps(), PAGING_64))
        writer.write_back(trace_text(self.back(), PAGING_64))
        writer.write_symbols([Symbol("machine_kexec", MACHINE_KEXEC, MACHINE_KEXEC + 0x100)])
        writer.write("run.json", to_json(facts))
        return Evidence(writer.finish())


def state(rip: int, rsp: int) -> CpuState:
    one = cpu(0, rip=rip, rsp=rsp)
    names = dict.fromkeys((f"r{n}" for n in range(8, 16)), 0)
    return replace(one, general={**one.general, **names}, cr0=0x80050033, cr4=0x6F0, efer=0xD01, cr3=PGD)


def judged(tmp_path: Path, **trip: Any) -> CheckResult:
    return run_check(CHECK, Trip(**trip).evidence(tmp_path))


def test_what_the_kernel_and_the_image_wrote_has_owners(tmp_path: Path) -> None:
    result = judged(tmp_path)
    assert result.verdict is Verdict.PASS, result.summary
    owners = {row["owner"]: row["bytes"] for row in result.figures["owners"]}
    assert owners.pop("control page") > 0
    assert owners == {"swap page": PAGE_SIZE, "written by machine_kexec": 1, "written by the image, in itself": 4}


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (0x700123, "nobody wrote it"),
        (ENTRY + 5, "of the image's destination: relocate_kernel wrote it last, and has not put it back"),
        (SOURCE + 9, "of the image where it is kept: the image did not write it"),
        (0x500FF0, "above the stack pointer: the return address"),
    ],
)
def test_a_byte_without_an_owner_fails(tmp_path: Path, address: int, why: str) -> None:
    result = judged(tmp_path, returned={address: b"\x7f"})
    assert (result.verdict, result.figures["unaccounted"]) == (Verdict.FAIL, 1), why
    assert f"{address:#x}+1" in result.summary


def test_a_second_page_that_is_written_through_is_no_swap_page(tmp_path: Path) -> None:
    """As by an exchange that goes wrong once, of two."""
    steps = [*swapped(CONTROL + 0x30), *swapped(CONTROL + 0x30), *swapping(CONTROL + 0x3C, 0x700000, ENTRY)]
    result = judged(tmp_path, more_steps=steps, returned={0x700000: IMAGE})
    assert (result.verdict, result.figures["unaccounted"]) == (Verdict.FAIL, PAGE_SIZE)


def test_the_stack_below_the_frame_means_nothing(tmp_path: Path) -> None:
    assert judged(tmp_path, returned={0x500FE8: b"\x7f"}).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("after", "register"),
    [
        ({"cr4": 0x6F0 ^ 1 << 7}, "cr4"),
        ({"general": {"rbx": 1}}, "rbx"),
        ({"general": {"rsp": STACK}}, "rsp"),
        ({"general": {"rflags": 1 << 9}}, "IF"),
        ({"gdt_limit": 0x7F}, "gdtr"),
    ],
)
def test_a_register_that_is_not_restored_fails(tmp_path: Path, after: Mapping[str, Any], register: str) -> None:
    result = judged(tmp_path, after=after)
    assert (result.verdict, [row["register"] for row in result.figures["registers"]]) == (Verdict.FAIL, [register])


def test_a_jump_that_never_came_back_is_not_judged(tmp_path: Path) -> None:
    seen = (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER)
    assert judged(tmp_path, facts={"captured": seen}).verdict is Verdict.ERROR


# ---------------------------------------------------------------- way-back-is-safe


@pytest.mark.parametrize(
    ("trip", "verdict", "words"),
    [
        ({}, Verdict.PASS, "after the one table switch"),
        ({"text": b"\x90"}, Verdict.FAIL, "with other bytes"),
        ({"flags": 0x246}, Verdict.FAIL, "interrupts were on"),
        ({"facts": {"captured": (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER)}}, Verdict.ERROR, "not seen to return"),
    ],
)
def test_the_way_back_is_judged_like_the_way_out(
    tmp_path: Path, trip: Mapping[str, Any], verdict: Verdict, words: str
) -> None:
    result = run_check("way-back-is-safe", Trip(**trip).evidence(tmp_path))
    assert (result.verdict, words in result.summary) == (verdict, True), result.summary


# ---------------------------------------------------------------- jump-returns

AGAIN = ENTRY + 0x21  # where the image asks to be entered next
HERE = ("6fb2", "6fb2")


@pytest.mark.parametrize(
    ("ended", "entry", "verdict", "words"),
    [
        (Jump(0, 0, HERE), AGAIN, Verdict.PASS, "entered at 0x900021"),
        (Jump(0, 0, HERE), 0x1234, Verdict.FAIL, "0x1234"),
        (Jump(16, 0, HERE), AGAIN, Verdict.FAIL, "errno 16"),
        (Jump(0, 22, HERE), AGAIN, Verdict.FAIL, "entered again"),
        (Jump(0, 0, ("6fb2", "01c4")), AGAIN, Verdict.FAIL, "another kernel"),
        (Jump(0, None, HERE), AGAIN, Verdict.ERROR, "once"),
        (None, AGAIN, Verdict.ERROR, "not heard of"),
    ],
)
def test_user_space_has_the_word(tmp_path: Path, ended: Jump | None, entry: int, verdict: Verdict, words: str) -> None:
    start = {0x300000 + 24: entry.to_bytes(8, "little")}  # kimage->start
    result = run_check("jump-returns", Trip(returned=start, facts={"jump_ended": ended}).evidence(tmp_path))
    assert result.verdict is verdict
    assert words in result.summary


def test_a_guest_that_dies_has_not_returned(tmp_path: Path) -> None:
    facts = {"died": True, "broke_off": Failure("GuestDied", "the guest has reset", "return")}
    result = run_check("jump-returns", Trip(facts=facts).evidence(tmp_path))
    assert result.verdict is Verdict.FAIL
    assert "the guest has reset" in result.summary
