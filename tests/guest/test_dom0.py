"""Arming from dom0: what its shell is asked, and what its answers mean."""

from __future__ import annotations

from typing import Any, cast

import pytest

from rig.errors import GuestCommandFailed, UnsuitableKernel
from rig.guest import dom0
from rig.loads import LOADS
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

GOOD = {
    "capabilities": "control_d\n",
    "status": "0\n",
    "kexec": "",
    "loaded": "1\n",  # kexec --status exits with 1 when an image is loaded
    "vmcoreinfo": "0x0000000024f74000 1024\n",
}


class Answers:
    """A shell that gives these sections, and keeps what it was asked."""

    def __init__(self, **changes: str) -> None:
        self._told = "".join(f"@{name}\n{text}" for name, text in (GOOD | changes).items())
        self.asked = ""

    def run(self, command: str, _: Deadline) -> str:
        self.asked = command
        return self._told


def arm(answers: Answers, load: str = "kexec_load", below: str = "") -> tuple[int, int] | None:
    shell = cast(Shell, cast(Any, answers))
    return dom0.arm(shell, LOADS[load], "panic=-1", below, Deadline.after(1, "the answers"))


def test_dom0_loads_and_tells_where_its_vmcoreinfo_is() -> None:
    answers = Answers()
    assert arm(answers) == (0x24F74000, 0x1024)
    assert "kexec -p" in answers.asked
    assert "kexec --status -p" in answers.asked
    assert "--command-line=panic=-1" in answers.asked


def test_another_hypervisor_gets_the_kernel_as_its_dom0() -> None:
    answers = Answers()
    arm(answers, "plain", "dom0_mem=384M")
    assert (
        'kexec -l "$@" /rig/xen --command-line=dom0_mem=384M '
        "--module='/rig/crash-kernel panic=-1' --module=/rig/crash-initrd;" in answers.asked
    )
    assert "kexec --status -l" in answers.asked


def test_a_kernel_that_is_no_dom0_is_unsuitable() -> None:
    with pytest.raises(UnsuitableKernel, match="no dom0") as caught:
        arm(Answers(capabilities=""))
    assert "CONFIG_XEN_DOM0" in caught.value.hint


def test_kexecs_failure_is_told_in_its_words() -> None:
    with pytest.raises(GuestCommandFailed, match="exited with 255: Could not find a free area") as caught:
        arm(Answers(status="255\n", kexec="Could not find a free area of memory\n"))
    assert "crashkernel=" in caught.value.hint


def test_what_the_hypervisor_does_not_confirm_is_not_loaded() -> None:
    with pytest.raises(GuestCommandFailed, match="the hypervisor has no image"):
        arm(Answers(loaded="0\n"))
