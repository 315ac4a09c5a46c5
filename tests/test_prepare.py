"""What a kernel gets by what it is: command line, crash kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig import catalog
from rig.errors import RequestError
from rig.model import Arch, Guest, Kernel, KernelFiles, RunPlan
from rig.prepare import SECOND, _crash_kernel, _require_loadable, cmdlines
from tests.forge import GUEST, scenario

OLD = Kernel("old", "forged", image=Path("old"))


def files(*, relocatable: bool, release: str = "2.6.18") -> KernelFiles:
    return KernelFiles("old", release, Arch.I386, Path("old"), "0", relocatable=relocatable)


@pytest.fixture
def guest() -> Guest:
    return catalog.load().guests["i386"]


@pytest.mark.parametrize(
    ("release", "arch", "reserved"),
    [
        ("2.6.18", Arch.I386, "crashkernel=64M@16M"),
        ("2.6.26", Arch.AMD64, "crashkernel=128M@16M"),
        ("2.6.27", Arch.I386, "crashkernel=4M"),
    ],
)
def test_a_kernel_that_places_no_crash_region_is_told_where(release: str, arch: Arch, reserved: str) -> None:
    first, _ = cmdlines(replace(GUEST, arch=arch), scenario(), release)
    assert reserved in first.split()


def test_a_place_that_was_asked_for_stays() -> None:
    first, _ = cmdlines(replace(GUEST, crashkernel="32M@32M"), scenario(), "2.6.18")
    assert "crashkernel=32M@32M" in first.split()
    first, _ = cmdlines(GUEST, scenario(crashkernel="none"), "2.6.18")
    assert "crashkernel" not in first


def test_an_old_kernel_or_one_that_cant_be_moved_gets_the_guests_stock_kernel_as_crash_kernel(guest: Guest) -> None:
    plan = RunPlan(scenario(), guest, OLD, OLD)
    crash, why = _crash_kernel(plan, files(relocatable=False))
    assert crash.name == guest.kernel
    assert "2.6.18 is not relocatable" in why
    crash, why = _crash_kernel(plan, files(relocatable=True, release="2.6.24"))
    assert (crash.name, "2.6.24 is too old" in why) == (guest.kernel, True)
    assert _crash_kernel(plan, files(relocatable=True, release="6.1.0")) == (OLD, "")
    named = replace(plan, crash_kernel=replace(OLD, name="named"))
    assert _crash_kernel(named, files(relocatable=False)) == (named.crash_kernel, "")


def test_one_that_was_named_as_crash_kernel_is_refused() -> None:
    with pytest.raises(RequestError, match=r"old \(2.6.18\) can't be a crash kernel.*not relocatable") as caught:
        _require_loadable(RunPlan(scenario(), GUEST, OLD, OLD), files(relocatable=False))
    assert "--crash-kernel" in caught.value.hint
    _require_loadable(
        RunPlan(scenario(), GUEST, OLD, OLD), replace(files(relocatable=False), linked_at=(0x1000000, 0x1200000))
    )


def test_a_crash_kernel_has_memory_reserved_and_one_cpu() -> None:
    first, crash = cmdlines(replace(GUEST, crash_cmdline="nosmp"), scenario(crash_cmdline="quiet"), "6.1")
    assert "crashkernel=4M" in first.split()
    assert "maxcpus=1" in crash.split()
    assert crash.endswith("nosmp quiet")
    assert SECOND not in crash


def test_a_plain_kexec_reserves_nothing_and_says_so_to_the_second_kernel() -> None:
    first, second = cmdlines(GUEST, scenario(load="plain"), "6.1")
    assert "crashkernel" not in first
    assert SECOND in second.split()
    assert "maxcpus" not in second
    assert "crashkernel=8M" in cmdlines(GUEST, scenario(load="plain", crashkernel="8M"), "6.1")[0].split()
