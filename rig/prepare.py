"""What a run needs before anything boots: kernels, initramfs, control module, and the machine to start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import rig
from rig import catalog, loads
from rig.errors import RequestError
from rig.guest import disk, hypervisor, initramfs, legacy, makedumpfile
from rig.guest.cache import Cache
from rig.guest.keys import RunKeys
from rig.guest.packages import PackageCache
from rig.guest.userland import Userland
from rig.kernel import ages
from rig.kernel.build import obtain
from rig.kernel.modules import build_module
from rig.model import (
    Arch,
    Dump,
    DumpTo,
    Firmware,
    Guest,
    HypervisorFiles,
    Kernel,
    KernelFiles,
    KernelIdentity,
    LoadKind,
    Options,
    RunPlan,
    Scenario,
)
from rig.triggers import MODULE, TRIGGERS
from rig.vm import accel
from rig.vm.qemu import MachineSpec, qemu_version

# panic=-1: a panic that finds no crash kernel resets at once, which is seen as the guest's death; otherwise it would
# hang until the deadline. Neither nokaslr nor quiet: the rig follows KASLR, and the console is evidence.
CMDLINE = "console=ttyS0,115200 panic=-1"
NOTHING = "none"  # as a scenario's crashkernel: the parameter is left out
# Under a hypervisor the first UART is the hypervisor's own, and dom0 prints through it; the second one is dom0's.
DOM0_CMDLINE = "console=hvc0 panic=-1"
# sync_console: what is printed before a crash is printed, not in a buffer.
HYPERVISOR_CMDLINE = "console=com1 com1=115200,8n1 sync_console"
# What Debian's kdump-tools gives a crash kernel. maxcpus=1: the other CPUs are still where the panic left them.
CRASH_CMDLINE = "console=ttyS0,115200 panic=-1 maxcpus=1 irqpoll reset_devices"
# crashkernel= for kernels that don't look for a place themselves: behind the first kernel, which lies from 1 MiB on.
CRASHKERNEL_FIXED = {Arch.I386: "64M@16M", Arch.AMD64: "128M@16M"}

SECOND = "rig.role=second"  # by which guests/init/init knows that it was started by a plain kexec


@dataclass(frozen=True)
class Artefacts:
    """Everything that one run boots. vmlinux: of the first kernel, when the user gave one."""

    kernel: KernelIdentity
    crash_kernel: KernelIdentity
    environment: Mapping[str, Any]
    machine: MachineSpec
    crash_cmdline: str
    second_hypervisor_cmdline: str  # of the one that kexec starts; empty when it starts none
    control: bool
    vmlinux: Path | None
    cache: Cache
    disk: IO[bytes] | None  # that the machine has for the dump
    hypervisor: HypervisorFiles | None


def cmdlines(guest: Guest, scenario: Scenario, release: str, into: Guest | None = None) -> tuple[str, str]:
    """The command lines of the first and of the crash kernel (kexec-tools adds elfcorehdr= and memory maps).

    For a plain kexec nothing is reserved unless the scenario says so, and the second is no crash kernel's. release: of
    the first kernel. One that can't place the crash region is told where, unless the scenario says more. into: what the
    second is for, if that is another guest.
    """
    plain = loads.kind(scenario.load) is LoadKind.PLAIN
    console = DOM0_CMDLINE if into is not None and into.hypervisor else CMDLINE
    placed = ages.older(release, ages.CRASHKERNEL_PLACED) and "@" not in guest.crashkernel
    usual = CRASHKERNEL_FIXED[guest.arch] if placed else guest.crashkernel
    reserved = _reserving(scenario.crashkernel or (NOTHING if plain else usual))
    own = (DOM0_CMDLINE,) if guest.hypervisor else (CMDLINE, reserved)
    crash = (f"{console} {SECOND}" if plain else CRASH_CMDLINE, guest.crash_cmdline, scenario.crash_cmdline)
    return " ".join(filter(None, (*own, guest.cmdline, scenario.cmdline))), " ".join(filter(None, crash))


def hypervisor_cmdline(guest: Guest, scenario: Scenario) -> str:
    """The hypervisor's command line: the memory for a crash kernel is its own to reserve."""
    plain = loads.kind(scenario.load) is LoadKind.PLAIN
    reserved = _reserving(scenario.crashkernel or (NOTHING if plain else guest.crashkernel))
    return " ".join(filter(None, (HYPERVISOR_CMDLINE, reserved, guest.hypervisor_cmdline)))


def _reserving(crashkernel: str) -> str:
    """The parameter that reserves memory; empty for none."""
    return f"crashkernel={crashkernel}" if crashkernel != NOTHING else ""


@contextlib.contextmanager
def prepare(
    plan: RunPlan,
    options: Options,
    keys: RunKeys,
    run_dir: Path,
    listener: Callable[[str], None],
    cancel: threading.Event,
) -> Iterator[Artefacts]:
    """Fetch, build, put together. The initramfs lives in memory as long as the context: nothing to clean up on disk.

    :raise RequestError: what was asked for can't be booted, loaded or built
    """
    cache = PackageCache(progress=lambda text: listener(f"note: {text}"))
    guest = plan.guest
    kernel = obtain(plan.kernel, guest, cache, cancel)
    chosen_crash, stand_in = _crash_kernel(plan, kernel)
    if stand_in:
        listener(f"note: {stand_in}")
    same = chosen_crash == plan.kernel and plan.into is None
    crash = kernel if same else obtain(chosen_crash, plan.into or guest, cache, cancel)
    _require_loadable(plan, crash)
    below = hypervisor.obtain(guest.hypervisor, cache) if guest.hypervisor else None
    above = plan.into.hypervisor if plan.into else ""
    started = hypervisor.obtain(above, cache) if above else None
    sources = catalog.control(plan.scenario)
    control = build_module(sources, kernel, cache) if sources else None
    wanted = TRIGGERS[plan.scenario.trigger].module
    trigger = build_module(catalog.roots()[0] / "kernels" / "triggers" / MODULE, kernel, cache) if wanted else None
    chosen = _accelerator(plan, options, cache.cache)
    userlands = tuple(_userland(cache, files, plan.scenario.dump, cancel) for files in (kernel, crash))
    blob = _initramfs(userlands, plan, (kernel, crash), keys, (control, trigger))
    if started:
        blob += initramfs.hypervisor(started.image)
    first, second = cmdlines(guest, plan.scenario, kernel.release, plan.into)
    underneath = hypervisor_cmdline(guest, plan.scenario) if below else ""
    with contextlib.ExitStack() as stack:
        initrd = stack.enter_context(os.fdopen(os.memfd_create("rig-initrd"), "wb"))
        initrd.write(blob)
        initrd.flush()
        drive = None
        if plan.scenario.dump_to is DumpTo.DISK:
            drive = stack.enter_context(disk.create(run_dir, guest.memory << 20))
        yield Artefacts(
            kernel=_identity(plan.kernel, kernel),
            crash_kernel=_identity(chosen_crash, crash),
            environment={
                "rig": rig.__version__,
                "qemu": qemu_version(),
                "accel": chosen.name,
                "accel_reason": chosen.reason,
                "cmdline": first,
                "userland": "built with musl" if legacy.is_legacy(kernel) else "packages",
                **({"crash_kernel_note": stand_in} if stand_in else {}),
                **_told(below, underneath),
                "initramfs": {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()},
            },
            machine=MachineSpec(
                memory=guest.memory,
                cpus=guest.cpus,
                machine=guest.machine,
                cpu=guest.cpu,
                accel=chosen.name,
                kernel=kernel.bzimage,
                initrd=_open_file(initrd),
                cmdline=first,
                run_dir=run_dir,
                hypervisor=below.image if below else None,
                hypervisor_cmdline=underneath,
                firmware=cache.firmware() if guest.firmware is Firmware.UEFI else None,
                disk=_open_file(drive) if drive else None,
            ),
            crash_cmdline=second,
            second_hypervisor_cmdline=hypervisor_cmdline(plan.into, plan.scenario) if plan.into and started else "",
            control=control is not None,
            vmlinux=kernel.vmlinux,
            cache=cache.cache,
            disk=drive,
            hypervisor=below,
        )


def _open_file(file: IO[bytes]) -> Path:
    """A path by which QEMU can open a file that has no other."""
    return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


def _accelerator(plan: RunPlan, options: Options, cache: Cache) -> accel.Accel:
    if loads.kind(plan.scenario.load) is not LoadKind.PLAIN:
        return accel.choose(options.accel, memo=cache.root / "kvm.json")
    if options.accel == "kvm":
        raise RequestError("plain kexec can't be recorded under KVM", hint="leave out --accel kvm")
    return accel.Accel("tcg", "stepping through the copying of a plain kexec's image would take hours under KVM")


def _crash_kernel(plan: RunPlan, kernel: KernelFiles) -> tuple[Kernel, str]:
    """The crash kernel, and why it isn't the first one again; empty when it is as planned.

    A kernel that isn't relocatable runs only where it was linked to, which is where the first one lies. One that is,
    but old, may not read the memory map that kexec-tools hands over (kexec(8),
    --pass-memmap-cmdline).
    """
    old = legacy.is_legacy(kernel)
    if loads.kind(plan.scenario.load) is not LoadKind.CRASH:
        return plan.crash_kernel, ""
    if plan.crash_kernel != plan.kernel or (kernel.relocatable and not old):
        return plan.crash_kernel, ""
    stock = catalog.find(catalog.load().kernels, plan.guest.kernel, "kernel")
    why = "too old to be relied on as" if kernel.relocatable else "not relocatable, so it can't be"
    return stock, f"{kernel.release} is {why} its own crash kernel: {stock.name} is taken"


def _require_loadable(plan: RunPlan, crash: KernelFiles) -> None:
    if loads.kind(plan.scenario.load) is LoadKind.CRASH and not crash.relocatable:
        raise RequestError(
            f"{plan.crash_kernel.name} ({crash.release}) can't be a crash kernel: its bzImage is not relocatable",
            hint="name another with --crash-kernel, or build it with CONFIG_RELOCATABLE=y",
        )


def _told(below: HypervisorFiles | None, cmdline: str) -> dict[str, Any]:
    """What the environment says of the hypervisor; nothing without one."""
    if below is None:
        return {}
    told = {"package": below.package, "version": below.version, "sha256": below.sha256}
    return {"hypervisor": {**told, "cmdline": cmdline}}


def _userland(cache: PackageCache, kernel: KernelFiles, dump: Dump, cancel: threading.Event) -> Userland:
    """What runs on this kernel."""
    if legacy.is_legacy(kernel):
        return legacy.userland(cache, kernel.arch, cancel)
    return cache.userland(kernel.arch, dump)


def _initramfs(
    userlands: tuple[Userland, ...],
    plan: RunPlan,
    kernels: tuple[KernelFiles, KernelFiles],
    keys: RunKeys,
    added: tuple[Path | None, Path | None],
) -> bytes:
    """The first kernel's initramfs, which holds the crash kernel's. Each gets only the programs it runs.

    With hops it holds that kernel itself once more, with such an initramfs for it.
    """
    (kernel, crash), (first, second) = kernels, userlands
    init = (catalog.roots()[0] / "guests" / "init" / "init").read_bytes()
    filters = (makedumpfile.PROGRAM,) if plan.scenario.dump is Dump.MAKEDUMPFILE else ()
    plain = loads.kind(plan.scenario.load) is LoadKind.PLAIN
    served = () if plain else tuple(path for path in ("/usr/sbin/dropbear", *filters) if path in second.files)
    modules = crash.modules + (crash.disk_modules if plan.scenario.dump_to is DumpTo.DISK else ())
    blob = initramfs.first(
        # No device drivers: the first kernel must not set up a device that writes to memory by DMA.
        initramfs.base(first.only("/bin/busybox", "/sbin/kexec"), kernel.dom0_modules, init),
        crash.bzimage,
        initramfs.base(second.only("/bin/busybox", *served), crash.dom0_modules if plain else modules, init),
        initramfs.run_segment(keys.authorized_keys, keys.dropbear_host_key),
        *added,
    )
    for _ in range(plan.scenario.hops):
        blob += initramfs.hop(kernel.bzimage, blob)
    return blob


def _identity(kernel: Kernel, files: KernelFiles) -> KernelIdentity:
    return KernelIdentity(kernel.name, files.release, files.sha256)
