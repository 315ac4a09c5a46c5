"""identity-map-complete on a forged hand-over: healthy it passes, each defect fails it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.checks import run_check
from rig.facts import Hypervisor
from rig.model import CheckResult, Range, Verdict
from tests.checks.forged_handover import ENTRY, IOMEM, LARGE, Handover
from tests.forge import CRASH, PANIC_RIP, PGD, Machine
from tests.forged_trace import PAGING_32, trace_text

MIB2 = 0x200000
NX, WRITABLE = 1 << 63, 2


def judged(machine: Machine, tmp_path: Path) -> CheckResult:
    return run_check("identity-map-complete", machine.write(tmp_path))


def test_a_complete_map(tmp_path: Path) -> None:
    result = judged(Handover().machine(), tmp_path)
    assert result.verdict is Verdict.PASS, result.summary
    ranges = {(r["name"], r["start"]): (r["end"], r["covered"], r["page_sizes"]) for r in result.figures["ranges"]}
    assert ranges == {
        ("System RAM", 0x1000): (0x9F000, 0x9E000, [MIB2]),  # the last page is not whole: 0x9fbff
        ("System RAM", 0x100000): (0x1000000, 0xF00000, [MIB2]),
        ("crash region", CRASH.start): (CRASH.last + 1, CRASH.size, [MIB2]),
        ("segment 0 of the image", ENTRY): (ENTRY + 0x2000, 0x2000, [MIB2]),
    }
    # the first 2 MiB page has more in it than RAM: that is told
    assert [(e["start"], e["end"], e["name"]) for e in result.figures["extra"]] == [
        (0, 0x1000, "not in /proc/iomem"),
        (0x9F000, 0x100000, "System RAM, Reserved"),
    ]
    assert result.figures["large_pages_beyond"] == [[0, MIB2]]


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        (2, 0, f"{MIB2} bytes at 0x400000 are not mapped to themselves"),  # a hole in RAM
        (5, 0, f"{MIB2} bytes at 0xa00000 are not mapped"),  # in the crash region
        (7, 3 * MIB2 | LARGE, "0xe00000 leads to 0x600000"),  # redirected
        (9, 3 * MIB2 | LARGE, "0x1200000 leads to 0x600000"),  # where nothing is needed, but nothing wrong may be
        (7, 7 * MIB2 | LARGE | 1 << 13, "0xe00000 are not mapped"),  # a reserved bit: the CPU would fault
        (4, 4 * MIB2 | LARGE | NX, "the entry 0x900000 is mapped no-execute"),
        (5, 5 * MIB2 | (LARGE & ~WRITABLE), "crash region is mapped read-only"),
    ],
)
def test_a_map_with_a_defect(entry: int, value: int, told: str, tmp_path: Path) -> None:
    handover = Handover()
    handover.pd[entry] = value
    handover.more_steps = [(handover.control + 0x20, "c3", {"cr0": 0x80010011})]
    machine = handover.machine()
    result = judged(machine, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert told in result.summary


def test_read_only_does_not_matter_without_write_protection(tmp_path: Path) -> None:
    handover = Handover()
    handover.pd[5] &= ~WRITABLE
    assert judged(handover.machine(), tmp_path).verdict is Verdict.PASS  # CR0.WP is clear there


def test_the_map_of_the_copy_counts_not_that_of_the_entry(tmp_path: Path) -> None:
    handover = Handover()
    handover.more_steps = [
        (handover.control + 0x28, "f348a5", {"rcx": 512, "rsi": 0x300000, "rdi": ENTRY}),  # rep movsq
        (handover.control + 0x2B, "c3", {"cr0": 0x11, "cr3": 0}),  # paging is off later
    ]
    del handover.pd[2]
    assert judged(handover.machine(), tmp_path).verdict is Verdict.FAIL


def test_firmware_tables_must_be_covered(tmp_path: Path) -> None:
    machine = Handover().machine()
    machine.learn(iomem=(*IOMEM, Range(0x1000800, 0x10017FF, "ACPI Tables")))
    result = judged(machine, tmp_path)
    assert (result.verdict, result.figures["holes"]) == (Verdict.FAIL, [[0x1000000, 0x1002000]])


def test_under_a_hypervisor_only_the_image_must_be_mapped(tmp_path: Path) -> None:
    """It maps no RAM besides: not even all of the crash region."""
    machine = Handover().machine()
    machine.learn(hypervisor=Hypervisor("xen", "4.17", {}, {}, None))
    assert [row["name"] for row in judged(machine, tmp_path).figures["ranges"]] == ["segment 0 of the image"]
    assert machine.facts.kimage is not None
    machine.learn(kimage=replace(machine.facts.kimage, segments=((0x2000000, 0x1000),)))
    outside = judged(machine, tmp_path)
    assert (outside.verdict, outside.figures["holes"]) == (Verdict.FAIL, [[0x2000000, 0x2001000]])
    machine.learn(kimage=replace(machine.facts.kimage, segments=()))
    assert judged(machine, tmp_path).verdict is Verdict.ERROR


def test_efis_tables_must_be_covered(tmp_path: Path) -> None:
    machine = Handover().machine()
    machine.learn(efi_tables=((ENTRY + 0x100, 120), (0x1000F80, 240)))
    result = judged(machine, tmp_path)
    assert (result.verdict, result.figures["holes"]) == (Verdict.FAIL, [[0x1000000, 0x1002000]])
    assert [r["name"] for r in result.figures["ranges"]][-4:-2] == ["EFI system table", "EFI configuration tables"]


@pytest.mark.parametrize("facts", [{"crash_region": None}, {"kimage": None}, {"iomem": ()}])
def test_without_what_must_be_covered_it_can_not_be_judged(facts: dict[str, Any], tmp_path: Path) -> None:
    machine = Handover().machine()
    machine.learn(**facts)
    assert judged(machine, tmp_path).verdict is Verdict.ERROR


def test_with_paging_off_addresses_are_their_own_below_4_gib(tmp_path: Path) -> None:
    machine = Machine()
    off = {"cr0": 0x33, "cr3": 0}
    machine.trace = trace_text([(PANIC_RIP, "90", {"cr3": PGD}), (0x801000, "c3", off)], PAGING_32)
    machine.learn(iomem=IOMEM, symbols={"machine_kexec": PANIC_RIP})
    result = judged(machine, tmp_path)
    assert (result.verdict, result.figures["paging"]) == (Verdict.PASS, "off")
    assert all(r["covered"] == r["end"] - r["start"] for r in result.figures["ranges"])
    assert machine.facts.kimage is not None
    machine.learn(kimage=replace(machine.facts.kimage, segments=((1 << 32, 0x1000),)))
    assert judged(machine, tmp_path).verdict is Verdict.FAIL
