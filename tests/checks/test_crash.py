"""What came of the panic: the crash kernel that was loaded, or, without one, a reset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig.checks import run_check
from rig.facts import PlainPanic
from rig.model import Failure, Verdict
from tests.forge import PANIC_RIP, STACK, Machine
from tests.memory.forged_vmcore import vmcore_i386

SAID = "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.parametrize(
    ("seen", "verdict", "summary"),
    [
        ("panic=-1 maxcpus=1 elfcorehdr=0x1", Verdict.PASS, "reached user space"),
        ("elfcorehdr=0x1 panic=-1 maxcpus=1", Verdict.PASS, "reached user space"),  # kexec_file_load puts it first
        ("panic=-1 elfcorehdr=0x1", Verdict.FAIL, "another image ran"),
        (None, Verdict.ERROR, "which image ran is not known"),
    ],
)
def test_the_image_that_runs_is_the_one_loaded_last(
    tmp_path: Path, seen: str | None, verdict: Verdict, summary: str
) -> None:
    machine = Machine()
    machine.learn(crash_proc_cmdline=seen)
    found = run_check("crash-kernel-boots", machine.write(tmp_path))
    assert found.verdict is verdict
    assert summary in found.summary


@pytest.mark.parametrize(
    ("hypervisor", "is_dom0", "verdict"),
    [
        ("", True, Verdict.FAIL),  # nobody loaded one
        ("xen-hypervisor", False, Verdict.FAIL),
        ("xen-hypervisor", True, Verdict.PASS),
    ],
)
def test_a_hypervisor_runs_the_kernel_where_one_was_loaded(
    tmp_path: Path, hypervisor: str, is_dom0: bool, verdict: Verdict
) -> None:
    machine = Machine()
    plan = machine.facts.plan
    machine.learn(second_is_dom0=is_dom0, plan=replace(plan, into=replace(plan.guest, hypervisor=hypervisor)))
    found = run_check("crash-kernel-boots", machine.write(tmp_path))
    assert found.verdict is verdict
    assert "dom0" in found.summary or "bare" in found.summary


@pytest.mark.parametrize(
    ("seen", "verdict", "summary"),
    [
        (PlainPanic(SAID, "guest-reset"), Verdict.PASS, "then the machine reset"),
        (PlainPanic(SAID, "triple-fault"), Verdict.FAIL, "did not reset as it should, but: triple-fault"),
        (PlainPanic(SAID, "", "Linux version 6.1.0"), Verdict.FAIL, "nobody loaded came up: Linux version"),
        (None, Verdict.ERROR, "never heard to panic"),
    ],
)
def test_a_panic_without_a_crash_kernel_is_a_reset(
    tmp_path: Path, seen: PlainPanic | None, verdict: Verdict, summary: str
) -> None:
    machine = Machine()
    machine.learn(plain_panic=seen)
    found = run_check("plain-panic", machine.write(tmp_path))
    assert found.verdict is verdict
    assert summary in found.summary


def test_a_guest_that_dies_without_a_word_fails(tmp_path: Path) -> None:
    machine = Machine()
    machine.learn(died=True, broke_off=Failure("GuestDied", "a CPU of the guest took a triple fault", "panic"))
    assert run_check("plain-panic", machine.write(tmp_path)).verdict is Verdict.FAIL


EXCEPTION = {"rip": PANIC_RIP - 0x1000, "rsp": STACK + 0x200, "cs": 0x60}


@pytest.mark.parametrize(
    ("rip", "rsp", "verdict"),
    [
        (EXCEPTION["rip"], EXCEPTION["rsp"], Verdict.PASS),
        (EXCEPTION["rip"], EXCEPTION["rsp"] + 4, Verdict.FAIL),
        (PANIC_RIP + 0x80, STACK - 0x60, Verdict.FAIL),  # right without an exception
    ],
)
def test_after_an_exception_the_note_has_its_registers(tmp_path: Path, rip: int, rsp: int, verdict: Verdict) -> None:
    machine = Machine(headers=vmcore_i386([(rip, rsp), (0xC0030000, 0)]))
    machine.learn(exception=EXCEPTION)
    assert run_check("vmcore-registers", machine.write(tmp_path)).verdict is verdict
