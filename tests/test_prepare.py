"""Command lines of the two kernels."""

from __future__ import annotations

from dataclasses import replace

from rig.prepare import SECOND, cmdlines
from tests.forge import GUEST, scenario


def test_a_crash_kernel_has_memory_reserved_and_one_cpu() -> None:
    first, crash = cmdlines(replace(GUEST, crash_cmdline="nosmp"), scenario(crash_cmdline="quiet"))
    assert "crashkernel=4M" in first.split()
    assert "maxcpus=1" in crash.split()
    assert crash.endswith("nosmp quiet")
    assert SECOND not in crash


def test_a_plain_kexec_reserves_nothing_and_says_so_to_the_second_kernel() -> None:
    first, second = cmdlines(GUEST, scenario(load="plain"))
    assert "crashkernel" not in first
    assert SECOND in second.split()
    assert "maxcpus" not in second
    assert "crashkernel=8M" in cmdlines(GUEST, scenario(load="plain", crashkernel="8M"))[0].split()
