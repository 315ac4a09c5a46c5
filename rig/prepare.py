"""What a run needs before anything boots: kernels, initramfs, control module, and the machine to start."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rig
from rig import catalog, loads
from rig.errors import RequestError
from rig.guest import initramfs
from rig.guest.cache import Cache
from rig.guest.keys import RunKeys
from rig.guest.packages import MAKEDUMPFILE, PackageCache
from rig.kernel.build import obtain
from rig.kernel.modules import build_module
from rig.model import (
    Dump,
    Firmware,
    Guest,
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
# What Debian's kdump-tools gives a crash kernel. maxcpus=1: the other CPUs are still where the panic left them.
CRASH_CMDLINE = "console=ttyS0,115200 panic=-1 maxcpus=1 irqpoll reset_devices"

SECOND = "rig.role=second"  # by which guests/init/init knows that it was started by a plain kexec


@dataclass(frozen=True)
class Artefacts:
    """Everything that one run boots. vmlinux: of the first kernel, when the user gave one."""

    kernel: KernelIdentity
    crash_kernel: KernelIdentity
    environment: Mapping[str, Any]
    machine: MachineSpec
    crash_cmdline: str
    control: bool
    vmlinux: Path | None
    cache: Cache


def cmdlines(guest: Guest, scenario: Scenario) -> tuple[str, str]:
    """The command lines of the first and of the crash kernel (kexec-tools adds elfcorehdr= and memory maps).

    For a plain kexec nothing is reserved unless the scenario says so, and the second is no crash kernel's.
    """
    plain = loads.kind(scenario.load) is LoadKind.PLAIN
    reserved = scenario.crashkernel or (NOTHING if plain else guest.crashkernel)
    first = (CMDLINE, f"crashkernel={reserved}" if reserved != NOTHING else "", guest.cmdline, scenario.cmdline)
    crash = (f"{CMDLINE} {SECOND}" if plain else CRASH_CMDLINE, guest.crash_cmdline, scenario.crash_cmdline)
    return " ".join(filter(None, first)), " ".join(filter(None, crash))


@contextmanager
def prepare(
    plan: RunPlan,
    options: Options,
    keys: RunKeys,
    run_dir: Path,
    listener: Callable[[str], None],
    cancel: threading.Event,
) -> Iterator[Artefacts]:
    """Fetch, build, put together. The initramfs lives in memory as long as the context: nothing to clean up on disk."""
    cache = PackageCache(progress=lambda text: listener(f"note: {text}"))
    guest = plan.guest
    kernel = obtain(plan.kernel, guest, cache, cancel)
    same = plan.crash_kernel == plan.kernel and plan.into is None
    crash = kernel if same else obtain(plan.crash_kernel, plan.into or guest, cache, cancel)
    sources = catalog.control(plan.scenario)
    control = build_module(sources, kernel, cache) if sources else None
    wanted = TRIGGERS[plan.scenario.trigger].module
    trigger = build_module(catalog.roots()[0] / "kernels" / "triggers" / MODULE, kernel, cache) if wanted else None
    chosen = _accelerator(plan, options, cache.cache)
    blob = _initramfs(cache, plan, (kernel, crash), keys, (control, trigger))
    first, second = cmdlines(guest, plan.scenario)
    fd = os.memfd_create("rig-initrd")
    try:
        with os.fdopen(os.dup(fd), "wb") as out:
            out.write(blob)
        yield Artefacts(
            kernel=_identity(plan.kernel, kernel),
            crash_kernel=_identity(plan.crash_kernel, crash),
            environment={
                "rig": rig.__version__,
                "qemu": qemu_version(),
                "accel": chosen.name,
                "accel_reason": chosen.reason,
                "cmdline": first,
                "initramfs": {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()},
            },
            machine=MachineSpec(
                memory=guest.memory,
                cpus=guest.cpus,
                machine=guest.machine,
                cpu=guest.cpu,
                accel=chosen.name,
                kernel=kernel.bzimage,
                initrd=Path(f"/proc/{os.getpid()}/fd/{fd}"),
                cmdline=first,
                run_dir=run_dir,
                firmware=cache.firmware() if guest.firmware is Firmware.UEFI else None,
            ),
            crash_cmdline=second,
            control=control is not None,
            vmlinux=kernel.vmlinux,
            cache=cache.cache,
        )
    finally:
        os.close(fd)


def _accelerator(plan: RunPlan, options: Options, cache: Cache) -> accel.Accel:
    if loads.kind(plan.scenario.load) is not LoadKind.PLAIN:
        return accel.choose(options.accel, memo=cache.root / "kvm.json")
    if options.accel == "kvm":
        raise RequestError("plain kexec can't be recorded under KVM", hint="leave out --accel kvm")
    return accel.Accel("tcg", "stepping through the copying of a plain kexec's image would take hours under KVM")


def _initramfs(
    cache: PackageCache,
    plan: RunPlan,
    kernels: tuple[KernelFiles, KernelFiles],
    keys: RunKeys,
    added: tuple[Path | None, Path | None],
) -> bytes:
    """The first kernel's initramfs, which holds the crash kernel's. Each gets only the programs it runs.

    With hops it holds that kernel itself once more, with such an initramfs for it.
    """
    kernel, crash = kernels
    dump = plan.scenario.dump
    init = (catalog.roots()[0] / "guests" / "init" / "init").read_bytes()
    userland = cache.userland(plan.guest.arch, dump)
    other = userland if plan.into is None else cache.userland(plan.into.arch, dump)
    filters = (MAKEDUMPFILE,) if dump is Dump.MAKEDUMPFILE else ()
    if loads.kind(plan.scenario.load) is LoadKind.PLAIN:
        second = initramfs.base(other.only("/bin/busybox"), (), init)
    else:
        second = initramfs.base(other.only("/bin/busybox", "/usr/sbin/dropbear", *filters), crash.modules, init)
    blob = initramfs.first(
        # No modules: the first kernel must not set up a device that writes to memory by DMA.
        initramfs.base(userland.only("/bin/busybox", "/sbin/kexec"), (), init),
        crash.bzimage,
        second,
        initramfs.run_segment(keys.authorized_keys, keys.dropbear_host_key),
        *added,
    )
    for _ in range(plan.scenario.hops):
        blob += initramfs.hop(kernel.bzimage, blob)
    return blob


def _identity(kernel: Kernel, files: KernelFiles) -> KernelIdentity:
    return KernelIdentity(kernel.name, files.release, files.sha256)
