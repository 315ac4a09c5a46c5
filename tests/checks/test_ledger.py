"""Owners that the recording names, on forged evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rig.checks import run_check
from rig.checks.ledger import claims
from rig.evidence.reader import Evidence
from rig.facts import PerCpu
from rig.memory.ledger import Change, split
from rig.model import Arch, Checkpoint, CheckResult, Segment, Symbol, Verdict
from tests.forge import CRASH, NOTES, PGD, Machine, cpu
from tests.forged_trace import PAGING_32, Instruction, at, event, record, trace_text

CONTROL = CRASH.start  # executed there through the identity map: entry 2 of the pgd
MACHINE_KEXEC = 0xC0011000


def forged() -> Machine:
    machine = Machine()
    table = bytearray(machine.base[PGD // 4096])
    table[8:12] = (CRASH.start | 0x83).to_bytes(4, "little")
    machine.base[PGD // 4096] = bytes(table)
    return machine


def judged(machine: Machine, tmp_path: Path, steps: list[Instruction]) -> CheckResult:
    machine.learn(symbols={"machine_kexec": MACHINE_KEXEC})
    record(machine, steps)
    return run_check("memory-accounted", machine.write(tmp_path))


def owners(found: CheckResult) -> dict[str, dict[str, Any]]:
    return {entry["owner"]: entry for entry in found.figures["owners"]}


def test_the_control_page_is_what_was_executed_in_the_crash_region(tmp_path: Path) -> None:
    machine = forged()
    machine.symbols = (Symbol("machine_kexec", MACHINE_KEXEC, MACHINE_KEXEC + 0x100),)
    machine.change(Checkpoint.HANDOVER, CONTROL + 16, b"code")
    machine.change(Checkpoint.HANDOVER, 0x100010, b"xyz!")  # kernel .data
    steps: list[Instruction] = [(MACHINE_KEXEC, "8903", {"rbx": 0xC0100010}), (CONTROL, "90", {})]
    found = judged(machine, tmp_path, steps)
    assert found.verdict is Verdict.PASS, found.summary
    assert (found.figures["bytes_changed"], found.figures["crash_region_bytes"]) == (4, 4)
    assert owners(found)["control page"]["bytes"] == 4
    assert owners(found)["kernel .data"]["writers"] == {"machine_kexec": 4}


def test_any_other_page_of_the_loaded_image_has_no_owner_and_its_writer_is_named(tmp_path: Path) -> None:
    machine = forged()
    machine.change(Checkpoint.MACHINE_KEXEC, CRASH.start + 0x5000, b"1234")
    steps: list[Instruction] = [
        (0xC0010000, "8903", {"rbx": CRASH.start + 0x5000}),
        (MACHINE_KEXEC, "90", {}),
        (CONTROL, "90", {}),
    ]
    found = judged(machine, tmp_path, steps)
    assert (found.verdict, found.figures["unaccounted"]) == (Verdict.FAIL, 4)
    assert owners(found)["unaccounted"]["writers"] == {"0xc0010000": 4}


def test_bytes_without_an_owner_are_no_verdict_when_owners_were_never_looked_up(tmp_path: Path) -> None:
    """The run broke off in the hand-over, before the survey: seen with a QEMU that was killed there."""
    machine = forged()
    machine.change(Checkpoint.MACHINE_KEXEC, 0x3000, b"1234")
    machine.learn(tables=())
    found = judged(machine, tmp_path, [(MACHINE_KEXEC, "90", {}), (CONTROL, "90", {})])
    assert (found.verdict, found.figures["unaccounted"]) == (Verdict.ERROR, 4)


def test_a_changed_crash_region_without_a_recording_is_no_verdict(tmp_path: Path) -> None:
    machine = forged()
    machine.change(Checkpoint.HANDOVER, CRASH.start + 0x5000, b"1234")
    assert run_check("memory-accounted", machine.write(tmp_path)).verdict is Verdict.ERROR


# The stop itself; then whatever the CPU writes has no owner by that.
@pytest.mark.parametrize("stopped", [True, False])
def test_what_another_cpu_did_before_the_nmi_is_its_own(tmp_path: Path, stopped: bool) -> None:
    machine = forged()
    spots = (0x400000, 0x400010, 0x400020, 0x400030)
    for spot in spots:  # nobody's page, as far as is known
        machine.change(Checkpoint.MACHINE_KEXEC, spot, b"1234")
    table = bytearray(machine.base[PGD // 4096])
    table[4:8] = (0x400000 | 0x83).to_bytes(4, "little")  # 4 MiB on are mapped to themselves
    machine.base[PGD // 4096] = bytes(table)
    machine.learn(symbols={"machine_kexec": MACHINE_KEXEC})
    record(machine, [(MACHINE_KEXEC, "90", {}), (CONTROL, "90", {})])
    path = machine.write(tmp_path).path
    other, both, _, after = spots

    def wrote(cpu: int, *where: tuple[int, int]) -> str:
        writes: list[Instruction] = [(pc, "8903", {"rbx": spot}) for pc, spot in where]
        return trace_text(writes, PAGING_32 | {"cr3": PGD, "rax": 0x39E067}, cpu)

    before = wrote(0, (0xC0010000, both)) + wrote(1, (0xC0030000, other), (0xC0030002, both))
    before += event(2, at(0xC0030004, cr3=PGD)) if stopped else ""
    before += wrote(1, (0xC0031000, after))
    (path / "before.log.zst").write_bytes(zstandard.compress(before.encode()))
    found = run_check("memory-accounted", Evidence(path))
    assert found.verdict is Verdict.FAIL
    assert owners(found).get("another CPU, before it was stopped", {}).get("bytes", 0) == (4 if stopped else 0)
    assert found.figures["unaccounted"] == (12 if stopped else 16)


def test_an_accessed_bit_is_the_cpus(tmp_path: Path) -> None:
    machine = forged()
    machine.change(Checkpoint.HANDOVER, PGD + 4 * 768, b"\xa3")
    found = judged(machine, tmp_path, [(MACHINE_KEXEC, "90", {})])
    (owner,) = owners(found)
    assert (found.verdict, owner) == (Verdict.PASS, "accessed/dirty bits of page tables, set by the CPU")


def test_a_kernel_that_does_not_tell_where_its_data_lie_is_not_judged(tmp_path: Path) -> None:
    """Neither failed for what is its own, nor passed for what may be somebody else's."""
    for release, address in (("2.6.18", 0x400010), ("2.6.29.6", 0x100010)):
        machine = forged()
        machine.learn(kernel=replace(machine.facts.kernel, release=release))
        machine.change(Checkpoint.HANDOVER, address, b"1234")
        found = judged(machine, tmp_path / release, [(MACHINE_KEXEC, "90", {})])
        assert (found.verdict, found.figures["bytes_changed"]) == (Verdict.ERROR, 4)
        assert "does not tell where" in found.summary


def test_claims_tell_the_owner_of_given_bytes(tmp_path: Path) -> None:
    told = claims(Machine().write(tmp_path))
    spot = Change("", NOTES[0][0], 4)
    assert list(split(spot, told)) == [("crash notes of CPU 0", NOTES[0][0], 4)]


def test_what_the_kernel_gave_back_of_its_image_is_not_its_own(tmp_path: Path) -> None:
    machine = forged()
    text = 0xC1000000  # virtual, of physical 0xc0000; .data from 0x100000 on
    start = text + 0x50000
    machine.learn(text=text, given_back=((start, start + 0x1000),))
    machine.symbols = (Symbol("before", text + 0x40000, start), Symbol("freed", start, start + 0x1000))
    machine.change(Checkpoint.HANDOVER, 0x10FFFE, b"12")
    machine.change(Checkpoint.HANDOVER, 0x110000, b"345")  # in the freed part
    found = owners(judged(machine, tmp_path, [(MACHINE_KEXEC, "90", {})]))
    assert (found["kernel before"]["bytes"], found["unaccounted"]["bytes"]) == (2, 3)


@pytest.mark.parametrize(
    ("gs", "start", "end"),
    [
        (0xC02FD000, 0x2FD000, 0x303000),  # the unit's start: all of the used part
        (0xC0700000, 0x2FE000, 0x30A000),  # mapped, but the notes are far from there: what is certain by the notes
        (0x7F000000, 0x2FE000, 0x30A000),  # no address at all
    ],
)
def test_a_per_cpu_area_holds_its_cpus_notes_wherever_gs_points(gs: int, start: int, end: int, tmp_path: Path) -> None:
    machine = forged()
    guest = replace(machine.facts.plan.guest, arch=Arch.AMD64)
    machine.learn(
        plan=replace(machine.facts.plan, guest=guest), per_cpu=PerCpu(static=0x2000, used=0x6000, unit=0x10000)
    )
    first = cpu(0)
    first = replace(first, segments={**first.segments, "gs": Segment(0, gs, 0, 0)})
    machine.cpus = {**machine.cpus, Checkpoint.PANIC: (first, cpu(1, rip=0xC0030000))}
    told = [claim for claim in claims(machine.write(tmp_path)) if claim.owner == "per-CPU area of CPU 0"]
    assert [(claim.start, claim.end) for claim in told] == [(start, end)]
