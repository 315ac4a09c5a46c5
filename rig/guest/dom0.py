"""Arming a machine that a Xen hypervisor runs: dom0 hands the crash kernel to the hypervisor.

What dom0's kernel says of itself (/proc/iomem, kallsyms, crash_notes, kexec_crash_loaded) is of its own,
pseudo-physical memory, and has no part in the hand-over: the hypervisor is asked instead.
"""

from __future__ import annotations

from rig.errors import GuestCommandFailed, UnsuitableKernel
from rig.guest.arming import FLAGS, parse_sections, parse_vmcoreinfo
from rig.loads import Load
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

STATUS = "kexec --status -p"
LOADED = 1  # its exit status (kexec(8))
CAPABILITIES = "/proc/xen/capabilities"  # "control_d" in dom0


def script(load: Load, cmdline: str) -> str:
    """What dom0's shell is asked to do. Every section is printed whatever becomes of the others."""
    return f"""
load() {{ kexec {FLAGS[load.kind]} "$@" /rig/crash-kernel --initrd=/rig/crash-initrd --command-line='{cmdline}'; }}
echo @capabilities; cat {CAPABILITIES}
({load.command}) >/tmp/kexec.log 2>&1; status=$?
echo @status; echo $status
echo @kexec; cat /tmp/kexec.log
{STATUS} >/tmp/kexec.log 2>&1; status=$?
echo @loaded; echo $status
echo @vmcoreinfo; cat /sys/kernel/vmcoreinfo
true
"""


def arm(shell: Shell, load: Load, cmdline: str, deadline: Deadline) -> tuple[int, int] | None:
    """Load the crash kernel from dom0, with the hypervisor's own word that it is loaded. cmdline: the crash kernel's.

    Returns where dom0's vmcoreinfo is, machine address and bytes: dom0 itself translates it (paddr_vmcoreinfo_note() in
    arch/x86/xen/mmu_pv.c).

    Raises UnsuitableKernel when the kernel is no dom0, and GuestCommandFailed with kexec's own words.
    """
    told = parse_sections(shell.run(script(load, cmdline), deadline))
    if "control_d" not in told["capabilities"]:
        raise UnsuitableKernel(
            f"the kernel is no dom0: {CAPABILITIES} says {told['capabilities'].strip()!r}",
            hint="build it with CONFIG_XEN_DOM0=y, CONFIG_XENFS=y, CONFIG_XEN_PRIVCMD=y and CONFIG_XEN_DEV_EVTCHN=y",
        )
    if status := int(told["status"]):
        hint = "is the hypervisor's crashkernel= large enough?"
        raise GuestCommandFailed(load.command, status, told["kexec"], hint=hint)
    if (status := int(told["loaded"])) != LOADED:
        raise GuestCommandFailed(
            STATUS, status, f"kexec was content, but the hypervisor has no crash kernel ({LOADED} would say it has)"
        )
    return parse_vmcoreinfo(told["vmcoreinfo"])
