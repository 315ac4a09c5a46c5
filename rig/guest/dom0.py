"""Arming a machine that a Xen hypervisor runs: dom0 hands the new image to the hypervisor.

What dom0's kernel says of itself (/proc/iomem, kallsyms, crash_notes, kexec_crash_loaded) is of its own,
pseudo-physical memory, and has no part in the hand-over: the hypervisor is asked instead.
"""

from __future__ import annotations

import shlex

from rig.errors import GuestCommandFailed, UnsuitableKernel
from rig.guest.arming import FLAGS, parse_sections, parse_vmcoreinfo
from rig.guest.initramfs import HYPERVISOR
from rig.loads import Load
from rig.model import LoadKind
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

STATUS = "kexec --status"
LOADED = 1  # its exit status (kexec(8))
CAPABILITIES = "/proc/xen/capabilities"
DOM0 = "control_d"  # what it says there


def script(load: Load, cmdline: str, hypervisor_cmdline: str) -> str:
    """What dom0's shell is asked to do. Every section is printed whatever becomes of the others.

    With a command line for it, it is another hypervisor that is loaded, with the kernel as its dom0.
    """
    image = f"/rig/crash-kernel --initrd=/rig/crash-initrd --command-line={shlex.quote(cmdline)}"
    if hypervisor_cmdline:
        module = shlex.quote(f"/rig/crash-kernel {cmdline}")
        options = f"--command-line={shlex.quote(hypervisor_cmdline)} --module={module} --module=/rig/crash-initrd"
        image = f"{HYPERVISOR} {options}"
    return f"""
load() {{ kexec {FLAGS[load.kind]} "$@" {image}; }}
echo @capabilities; cat {CAPABILITIES}
({load.command}) >/tmp/kexec.log 2>&1; status=$?
echo @status; echo $status
echo @kexec; cat /tmp/kexec.log
{STATUS} {FLAGS[load.kind]} >/tmp/kexec.log 2>&1; status=$?
echo @loaded; echo $status
echo @vmcoreinfo; cat /sys/kernel/vmcoreinfo
true
"""


def arm(shell: Shell, load: Load, cmdline: str, below: str, deadline: Deadline) -> tuple[int, int] | None:
    """Load the new image from dom0, with the hypervisor's own word that it is loaded.

    cmdline: the new kernel's. below: of the hypervisor that is to run it; empty when it gets the bare machine.

    Returns where dom0's vmcoreinfo is, machine address and bytes: dom0 itself translates it (paddr_vmcoreinfo_note() in
    arch/x86/xen/mmu_pv.c).

    Raises UnsuitableKernel when the kernel is no dom0, and GuestCommandFailed with kexec's own words.
    """
    told = parse_sections(shell.run(script(load, cmdline, below), deadline))
    if DOM0 not in told["capabilities"]:
        raise UnsuitableKernel(
            f"the kernel is no dom0: {CAPABILITIES} says {told['capabilities'].strip()!r}",
            hint="build it with CONFIG_XEN_DOM0=y, CONFIG_XENFS=y, CONFIG_XEN_PRIVCMD=y and CONFIG_XEN_DEV_EVTCHN=y",
        )
    if status := int(told["status"]):
        hint = "is the hypervisor's crashkernel= large enough?" if load.kind is LoadKind.CRASH else ""
        raise GuestCommandFailed(load.command, status, told["kexec"], hint=hint)
    if (status := int(told["loaded"])) != LOADED:
        raise GuestCommandFailed(
            f"{STATUS} {FLAGS[load.kind]}",
            status,
            f"kexec was content, but the hypervisor has no image ({LOADED} would say it has)",
        )
    return parse_vmcoreinfo(told["vmcoreinfo"])
