"""Plain kexec of a machine that a hypervisor runs: from dom0 into Linux, and into a new hypervisor with a new dom0.

Not a scenario: this shows that it works, and that the hypervisor's page tables are what CR3 points to. What becomes of
old memory is not judged: the new image may be copied over it.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rig import catalog
from rig.guest import initramfs
from rig.guest.initramfs import Entry
from rig.guest.keys import RunKeys
from rig.guest.packages import PackageCache
from rig.kernel import symbols
from rig.memory import paging
from rig.memory.image import FileMemory, FileRange
from rig.model import Arch, CpuState, HypervisorFiles, Options, PagingMode, RunPlan
from rig.plan import plan
from rig.prepare import prepare
from rig.vm.deadline import Deadline
from rig.vm.qemu import MachineSpec, Vm, ram_ranges
from rig.xen import IDLE_PGD

pytestmark = pytest.mark.vm

LINUX = "kexec -l /rig/crash-kernel --initrd=/rig/crash-initrd --command-line='console=ttyS0,115200 panic=-1'"
XEN = (
    "kexec -l /rig/xen --command-line='console=com1 com1=115200,8n1 sync_console dom0_mem=384M' "
    "--module='/rig/crash-kernel console=hvc0 panic=-1' --module=/rig/dom0-initrd"
)
ENTRY = 8  # offset of entry_maddr in Xen's struct kexec_image: see rig/kernel/kimage.py


def soon(what: str) -> Deadline:
    return Deadline.after(180, what)


def extra_files(one: RunPlan, hypervisor: HypervisorFiles) -> bytes:
    """For a hypervisor that kexec starts: its image, and an initramfs for the dom0 on it."""
    cache = PackageCache()
    userland = cache.userland(Arch.AMD64).only("/bin/busybox", "/sbin/kexec")
    init = (catalog.roots()[0] / "guests/init/init").read_bytes()
    dom0 = initramfs.base(userland, cache.kernel(one.kernel, one.guest).dom0_modules, init)
    return initramfs.cpio(
        [Entry("/rig/xen", 0o644, hypervisor.image.read_bytes()), Entry("/rig/dom0-initrd", 0o644, dom0)]
    )


def kexec(vm: Vm, hypervisor: HypervisorFiles, load: str) -> tuple[CpuState, int, CpuState]:
    """The CPU at the hypervisor's machine_kexec, the place of the hypervisor's root, and the CPU at the new image."""
    vm.shell.run(load, soon("the image to be loaded"))
    at = symbols.named(hypervisor.symbols, (symbols.MACHINE_KEXEC, IDLE_PGD))
    memory = FileMemory(vm.ram_fd, [FileRange(*r) for r in ram_ranges(vm.spec)])

    def stop_at(address: int) -> CpuState:
        vm.gdb.set_breakpoint(address)
        stop = vm.gdb.continue_until_stop(soon(f"{address:#x}"))
        vm.gdb.remove_breakpoint(address)
        return vm.info_registers()[stop.cpu]

    vm.gdb.attach()
    vm.shell.send("kexec -e")
    old = stop_at(at[symbols.MACHINE_KEXEC])
    image, idle = (
        paging.translate(memory, PagingMode.FOUR_LEVEL, old.cr3, v).physical for v in (old.general["rdi"], at[IDLE_PGD])
    )
    new = stop_at(int.from_bytes(memory.read(image + ENTRY, 8), "little"))
    vm.gdb.detach()
    return old, idle, new


@pytest.fixture
def machine(tmp_path: Path) -> tuple[MachineSpec, HypervisorFiles]:
    """The guest xen, with all that kexec is to start in its initramfs."""
    (one,) = plan(catalog.load(), ["xen-dom0-panic"])
    with prepare(one, Options(accel="tcg"), RunKeys.make(), tmp_path, print, threading.Event()) as artefacts:
        assert artefacts.hypervisor is not None
        initrd = tmp_path / "initrd"
        initrd.write_bytes(artefacts.machine.initrd.read_bytes() + extra_files(one, artefacts.hypervisor))
        return replace(artefacts.machine, initrd=initrd), artefacts.hypervisor


@pytest.mark.parametrize(("load", "is_dom0"), [(LINUX, False), (XEN, True)])
def test_dom0_can_start_linux_and_a_new_hypervisor(
    machine: tuple[MachineSpec, HypervisorFiles], load: str, is_dom0: bool
) -> None:
    spec, hypervisor = machine
    with Vm(spec) as vm:
        first = vm.shell.wait_hello("first", soon("dom0's shell"))
        old, idle, new = kexec(vm, hypervisor, load)
        assert old.cr3 == idle  # no domain's: the hypervisor left dom0 for it
        assert (new.paging, new.cr4) == (PagingMode.FOUR_LEVEL, 0x20)  # PAE only: as machine_kexec leaves it
        assert new.cr3 not in (old.cr3, 0)
        second = vm.shell.wait_hello("first", soon("the second kernel's shell"))
        assert (second.release, second.vmcore) == (first.release, False)
        shown = vm.shell.run("cat /proc/xen/capabilities /proc/cmdline 2>&1; true", soon("its answer"))
        assert ("control_d" in shown) == is_dom0
        assert ("console=hvc0" in shown) == is_dom0
