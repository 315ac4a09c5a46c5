"""vmcore-registers of a machine that a hypervisor ran: by its notes, and by what the dump holds of dom0."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from rig.checks import run_check
from rig.facts import Hypervisor, PgdOwner
from rig.model import CheckResult, Range, Symbol, Verdict
from tests.forge import CRASH, PGD, STACK, Machine, cpu
from tests.memory.forged_vmcore import note, vmcore

SAVE = 0xC0040000  # kexec_crash_save_cpu
IDLE_VIRTUAL = 0xFFFF82D04046E000
CODE = 0x400000  # machine address of the hypervisor's code
DOM0_VMCOREINFO = 0x123000  # machine address
RELEASE = b"OSRELEASE=6.1.0-forged\n"


def prstatus(rip: int, rsp: int) -> bytes:
    """struct elf_prstatus of x86_64, 336 bytes: 112 of head, 27 registers, pr_fpvalid."""
    registers = [0] * 27
    registers[16:21] = [rip, 0x60, 0, rsp, 0x68]  # rip cs rflags rsp ss
    return bytes(112) + struct.pack("<27Q", *registers) + bytes(8)


def notes(*, rip: int = SAVE + 0xB2, cr3: int | None = None, root: int = IDLE_VIRTUAL, start: int = CODE) -> bytes:
    """The notes of one CPU. start: what the hypervisor says of its image, without the offset of its code."""
    seen = cpu(0)
    control = struct.pack("<4Q", seen.cr0, 0xDEAD, seen.cr3 if cr3 is None else cr3, seen.cr4)
    info = struct.pack("<10Q", 4, 17, *[0] * 6, start - 0x200000, 0x456)
    return (
        note(b"CORE", 1, prstatus(rip, STACK - 16))
        + note(b"Xen", 0x1000002, control)
        + note(b"Xen", 0x1000001, info)
        + note(b"VMCOREINFO_XEN", 0, f"PAGESIZE=4096\nSYMBOL(pgd_l4)={root:x}\n".encode() + bytes(20))
    )


def judged(
    tmp_path: Path, written: bytes | None = None, *, dom0: bytes = RELEASE, vmcoreinfo: int = DOM0_VMCOREINFO
) -> CheckResult:
    machine = Machine(
        headers=vmcore(notes() if written is None else written),
        symbols=(Symbol("kexec_crash_save_cpu", SAVE, SAVE + 0x400),),
    )
    more = {f"r{number}": 0 for number in range(8, 16)}
    machine.cpus = {
        moment: (replace(cpus[0], general={**cpus[0].general, **more}),) for moment, cpus in machine.cpus.items()
    }
    machine.learn(
        hypervisor=Hypervisor(
            "xen-hypervisor-4.17-amd64",
            "4.17",
            {"kexec_crash_save_cpu": SAVE, "idle_pg_table": IDLE_VIRTUAL},
            {},
            (vmcoreinfo, 0x1024),
        ),
        pgd_owner=PgdOwner("dom0", 0x46E000, 0x8D74000),
        iomem=(Range(CODE, CODE + 0xFFFF, "Kernel code", 1), CRASH),
    )
    evidence = machine.write(tmp_path)
    (evidence.path / "vmcore/dom0.bin").write_bytes(dom0)
    return run_check("vmcore-registers", evidence)


def test_the_hypervisors_notes_place_the_cpu_and_show_both(tmp_path: Path) -> None:
    result = judged(tmp_path)
    assert result.verdict is Verdict.PASS, result.summary
    assert (result.figures["rip_offset"], result.figures["rsp_offset"]) == (0xB2, 16)
    assert result.figures["control_registers"][0]["cr3"] == cpu(0).cr3 == PGD
    assert result.figures["dom0_note"] is False
    assert "6.1.0-forged" in result.summary


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (notes(rip=SAVE + 0x400), "0 notes place a CPU in kexec_crash_save_cpu"),
        (notes(cr3=PGD + 0x1000), "no note has the control registers of panic, CR3 0x5000"),
        (notes(root=IDLE_VIRTUAL + 0x1000), "VMCOREINFO_XEN says SYMBOL(pgd_l4)=ffff82d04046f000"),
        (notes(start=CODE + 0x200000), "its note says 0x400000"),
        (notes() + notes(), "2 NT_PRSTATUS notes for 1 CPUs"),
        (note(b"CORE", 1, prstatus(SAVE, STACK)), "VMCOREINFO_XEN says SYMBOL(pgd_l4)=(nothing)"),
    ],
)
def test_notes_that_do_not_fit_the_machine_fail(tmp_path: Path, written: bytes, words: str) -> None:
    result = judged(tmp_path, written)
    assert result.verdict is Verdict.FAIL
    assert words in result.summary


def test_a_dump_without_dom0_fails(tmp_path: Path) -> None:
    other = judged(tmp_path, dom0=b"OSRELEASE=5.10.0\n")
    assert (other.verdict, "no vmcoreinfo of 6.1.0-forged" in other.summary) == (Verdict.FAIL, True)
    outside = judged(tmp_path, vmcoreinfo=0x900000)
    assert (outside.verdict, "0x900000, is not in the dump" in outside.summary) == (Verdict.FAIL, True)


def test_pgd_of_dom0_is_told_by_both_addresses(tmp_path: Path) -> None:
    machine = Machine()
    machine.learn(pgd_owner=PgdOwner("dom0", 0x46E000, 0x8D74000))
    result = run_check("pgd-survives", machine.write(tmp_path))
    assert result.summary.startswith("dom0's pgd (pseudo-physical 0x8d74000) at 0x5000: 0 of 4096 bytes changed")
    assert result.figures["owner"] == {"name": "dom0", "idle": 0x46E000, "pseudo_physical": 0x8D74000}
    machine.learn(pgd_owner=PgdOwner("hypervisor", PGD, None))
    assert run_check("pgd-survives", machine.write(tmp_path)).summary.startswith("the hypervisor's own pgd at 0x5000")
