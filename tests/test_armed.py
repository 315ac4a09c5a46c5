from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig import armed
from rig.guest.arming import Self
from rig.guest.keys import RunKeys
from rig.model import (
    Arch,
    Brought,
    DumpTo,
    Firmware,
    Ingredients,
    KernelFiles,
    Options,
    Range,
    Repeat,
    RunPlan,
    Userland,
)
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Standing
from rig.vm.template import Template
from tests.forge import GUEST, scenario
from tests.forge import KERNEL as STOCK

FILES = KernelFiles("k", "6.1", Arch.AMD64, Path("k"), "abc")
PLAN = RunPlan(scenario(), GUEST, STOCK, STOCK)
USERLAND = Userland(Arch.AMD64, {}, {})
MADE_OF = Ingredients(FILES, FILES, (USERLAND, USERLAND), Path("init"))
MACHINE = MachineSpec(512, 1, "pc", "qemu64", "tcg", Path("k"), Path("/proc/7/fd/9"), "quiet", Path("results/.run"))


@pytest.fixture(autouse=True)
def _qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(armed, "qemu_version", lambda: "QEMU 7.2")


def key(**changes: Any) -> str:
    given: dict[str, Any] = {"plan": PLAN, "made_of": MADE_OF, "machine": MACHINE, "crash_cmdline": "irqpoll"}
    return armed.key(**{**given, "keyless": "def", **changes})


def test_what_differs_from_run_to_run_is_no_part_of_the_key() -> None:
    assert key() == key(machine=replace(MACHINE, initrd=Path("/proc/8/fd/1"), run_dir=Path("x"), monitor=Path("m")))


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": replace(MACHINE, memory=256)},
        {"machine": replace(MACHINE, cmdline="quiet nokaslr")},
        {"machine": replace(MACHINE, cpu="max")},
        {"made_of": replace(MADE_OF, kernel=replace(FILES, sha256="abd"))},
        {"made_of": replace(MADE_OF, crash_kernel=replace(FILES, sha256="abd"))},
        {"keyless": "deg"},
        {"crash_cmdline": "irqpoll nr_cpus=1"},
        {"plan": replace(PLAN, scenario=replace(PLAN.scenario, hops=1))},
        {"plan": replace(PLAN, scenario=replace(PLAN.scenario, load="kexec_file_load"))},
    ],
)
def test_all_that_goes_into_a_template_is_in_its_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_another_qemu_is_another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(armed, "qemu_version", lambda: "QEMU 8.0")
    assert key() != before


SCENARIO = PLAN.scenario


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"options": Options(template=False)}, "--no-template"),
        ({"options": Options(repeat=Repeat(MADE_OF, {}))}, "done again"),
        ({"options": Options(repeat=Repeat(MADE_OF, {}, Brought(Path("there"), {})))}, ""),
        ({"accel": "kvm"}, "kvm"),
        ({"plan": replace(PLAN, guest=replace(GUEST, hypervisor="xen"))}, "hypervisor"),
        ({"plan": replace(PLAN, guest=replace(GUEST, firmware=Firmware.UEFI))}, "firmware"),
        ({"plan": replace(PLAN, scenario=replace(SCENARIO, dump_to=DumpTo.DISK))}, "disk"),
        ({"made_of": replace(MADE_OF, control=Path("control.ko"))}, "module"),
    ],
)
def test_which_runs_boot_their_own_guest(changes: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {"plan": PLAN, "made_of": MADE_OF, "options": Options(), "accel": "tcg", **changes}
    said = armed.unfit(**given)
    assert why in said
    assert bool(said) == bool(why)


def test_what_was_learned_survives() -> None:
    known = Self((Range(0, 4095, "System RAM"),), {"panic": 1 << 63}, ((4096, 512),), None, None, None, (1, 2))
    learned = armed.Armed(RunKeys.make(), known, {"bytes": 7})
    template = Template("k", 0.0, Standing(3, 4, b"", "ttyS1"), {}, armed.pack(learned))
    assert armed.unpack(template) == learned
    assert armed.told(template, "") == {"used": True, "key": "k", "made": "1970-01-01T00:00:00+00:00"}
    assert armed.told(None, "why") == {"used": False, "why": "why"}
