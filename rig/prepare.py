"""What a run needs before anything boots: kernels, initramfs, control module, and the machine to start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import rig
from rig import armed, catalog, ingredients, loads
from rig.errors import RequestError
from rig.facts import Manifest
from rig.guest import initramfs, makedumpfile
from rig.guest.cache import Cache
from rig.guest.initramfs import Pieces
from rig.guest.keys import RunKeys
from rig.guest.packages import PackageCache
from rig.kernel import ages
from rig.late import late
from rig.model import (
    Arch,
    Dump,
    DumpTo,
    Firmware,
    Guest,
    HypervisorFiles,
    Ingredients,
    Kernel,
    KernelFiles,
    KernelIdentity,
    LoadKind,
    Options,
    RunPlan,
    Scenario,
    Until,
    Userland,
)
from rig.pool import cores
from rig.triggers import MODULE, TRIGGERS
from rig.vm import accel
from rig.vm.installed import confinement, qemu_version, sandboxes
from rig.vm.machine import OPEN_FILES, MachineSpec
from rig.vm.template import Template, Templates

if TYPE_CHECKING:
    from rig.guest import disk, hypervisor, legacy, program
    from rig.kernel import build, linked
    from rig.kernel.modules import build_module
else:  # what few runs need
    disk, hypervisor, program = late("rig.guest.disk"), late("rig.guest.hypervisor"), late("rig.guest.program")
    legacy, build, linked = late("rig.guest.legacy"), late("rig.kernel.build"), late("rig.kernel.linked")
    build_module = late("rig.kernel.modules:build_module")

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
    manifest: Manifest
    environment: Mapping[str, Any]
    machine: MachineSpec
    crash_cmdline: str
    second_hypervisor_cmdline: str  # of the one that kexec starts; empty when it starts none
    control: bool
    crash_linked_at: tuple[int, int] | None  # where the crash kernel runs, if that is fixed: physical, [start, end)
    vmlinux: Path | None
    cache: Cache
    disk: IO[bytes] | None  # that the machine has for the dump
    hypervisor: HypervisorFiles | None
    keys: RunKeys  # with which the guest was booted, or is to be
    template: Template | None  # of a guest to go on with, instead of booting one
    template_key: str  # of such a template; empty: this run has none, and makes none
    templates: Templates


def cmdlines(guest: Guest, scenario: Scenario, release: str, into: Guest | None = None) -> tuple[str, str]:
    """The command lines of the first and of the crash kernel (kexec-tools adds elfcorehdr= and memory maps).

    For a plain kexec nothing is reserved unless the scenario says so, and the second is no crash kernel's. release: of
    the first kernel. One that can't place the crash region is told where, unless the scenario says more. into: what the
    second is for, if that is another guest.
    """
    plain = loads.kind(scenario.load) in (LoadKind.PLAIN, LoadKind.JUMP)
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


def _second_hypervisor_cmdline(plan: RunPlan) -> str:
    into = plan.into
    return hypervisor_cmdline(into, plan.scenario) if into and into.hypervisor else ""


def _reserving(crashkernel: str) -> str:
    """The parameter that reserves memory; empty for none."""
    return f"crashkernel={crashkernel}" if crashkernel != NOTHING else ""


@contextlib.contextmanager
def prepare(
    plan: RunPlan,
    options: Options,
    run_dir: Path,
    listener: Callable[[str], None],
    cancel: threading.Event,
) -> Iterator[Artefacts]:
    """Fetch, build (of a run done again, only take), put together; or find a template of all that.

    The initramfs lives in memory as long as the context: nothing to clean up on disk.

    :raise RequestError: what was asked for can't be booted, loaded or built
    """
    cache = PackageCache(progress=lambda text: listener(f"note: {text}"))
    made_of = options.repeat.ingredients if options.repeat else gather(plan, cache, cancel)
    if made_of.crash_kernel_note:
        listener(f"note: {made_of.crash_kernel_note}")
    brought = options.repeat.brought if options.repeat else None
    manifest = ingredients.record(made_of, cache.cache.root, keyless(plan, made_of), brought)
    chosen = accelerator(plan, options, cache.cache)
    first, second = cmdlines(plan.guest, plan.scenario, made_of.kernel.release, plan.into)
    below = made_of.hypervisor
    with contextlib.ExitStack() as stack:
        drive = None
        if plan.scenario.dump_to is DumpTo.DISK:
            drive = stack.enter_context(disk.create(run_dir, plan.guest.memory << 20))
        spec = machine(plan, made_of, chosen.name, run_dir, _open_file(drive) if drive else None)
        why = armed.unfit(plan, made_of, options, chosen.name)
        key = "" if why else armed.key(plan, made_of, spec, second, manifest.initramfs)
        template = None
        store = Templates(cache.cache.root / "templates")
        if key:
            template = stack.enter_context(store.find(key, lambda text: listener(f"note: {text}")))
        if template is not None:
            known = armed.unpack(template)
            keys, about = known.keys, known.initramfs
        else:
            keys = RunKeys.make()
            blob = initramfs_of(plan, made_of, initramfs.run_segment(keys.authorized_keys, keys.dropbear_host_key))
            about = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            spec = replace(spec, initrd=_open_file(stack.enter_context(_in_memory(blob))))
        yield Artefacts(
            kernel=_identity(made_of.kernel),
            crash_kernel=_identity(made_of.crash_kernel),
            manifest=manifest,
            environment={
                "rig": rig.__version__,
                "qemu": qemu_version(),
                "confinement": confinement(),
                "accel": chosen.name,
                "accel_reason": chosen.reason,
                "deadline": options.deadline,
                "cmdline": first,
                "crash_cmdline": second,
                "userland": "built with musl" if ages.needs_musl(made_of.kernel.release) else "packages",
                **({"crash_kernel_note": made_of.crash_kernel_note} if made_of.crash_kernel_note else {}),
                **(_told(below, hypervisor_cmdline(plan.guest, plan.scenario)) if below else {}),
                **({"until": plan.scenario.until} if plan.scenario.until is not Until.END else {}),
                "initramfs": about,
                "template": armed.told(template, why or "there was none"),
                **({"rerun": options.repeat.told} if options.repeat and options.repeat.told else {}),
            },
            machine=spec,
            crash_cmdline=second,
            second_hypervisor_cmdline=_second_hypervisor_cmdline(plan),
            crash_linked_at=made_of.crash_kernel.linked_at,
            control=made_of.control is not None,
            vmlinux=made_of.kernel.vmlinux,
            cache=cache.cache,
            disk=drive,
            hypervisor=below,
            keys=keys,
            template=template,
            template_key=key,
            templates=store,
        )


def _in_memory(content: bytes) -> IO[bytes]:
    file = os.fdopen(os.memfd_create("rig-initrd"), "wb")
    file.write(content)
    file.flush()
    return file


def gather(plan: RunPlan, cache: PackageCache, cancel: threading.Event) -> Ingredients:
    """Fetch and build what the plan names, as far as the cache hasn't got it.

    :raise RequestError: what was asked for can't be booted, loaded or built
    """
    guest = plan.guest
    kernel = obtain(plan.kernel, guest, cache, cancel)
    chosen_crash, stand_in = _crash_kernel(plan, kernel)
    same = chosen_crash == plan.kernel and plan.into is None
    crash = kernel if same else _obtain_crash(chosen_crash, plan.into or guest, cache, cancel)
    _require_loadable(plan, crash)
    sources = catalog.control(plan.scenario)
    wanted = TRIGGERS[plan.scenario.trigger].module
    own = catalog.roots()[0]
    dump = plan.scenario.dump
    jumps = loads.kind(plan.scenario.load) is LoadKind.JUMP
    above = plan.into.hypervisor if plan.into else ""
    return Ingredients(
        kernel=kernel,
        crash_kernel=crash,
        userlands=(_userland(cache, kernel, dump, cancel), _userland(cache, crash, dump, cancel)),
        init=own / "guests" / "init" / "init",
        control=build_module(sources, kernel, cache) if sources else None,
        program=program.build(own / "guests" / "jump" / "jump.c", kernel.arch, cache.cache) if jumps else None,
        trigger=build_module(own / "kernels" / "triggers" / MODULE, kernel, cache) if wanted else None,
        hypervisor=hypervisor.obtain(guest.hypervisor, cache) if guest.hypervisor else None,
        second_hypervisor=hypervisor.obtain(above, cache) if above else None,
        firmware=cache.firmware() if guest.firmware is Firmware.UEFI else None,
        crash_kernel_note=stand_in,
    )


def obtain(kernel: Kernel, guest: Guest, cache: PackageCache, cancel: threading.Event) -> KernelFiles:
    """A kernel ready to boot, however it is had: built from source where the catalogue says so, else by the cache."""
    if kernel.source:
        return build.build(kernel, guest, cache, cancel, cores()).files
    return cache.kernel(kernel, guest)


def machine(plan: RunPlan, made_of: Ingredients, accel: str, run_dir: Path, drive: Path | None) -> MachineSpec:
    """The machine to start, without its initramfs. accel: tcg or kvm. drive: for a dump that goes to disk."""
    guest, below = plan.guest, made_of.hypervisor
    return MachineSpec(
        memory=guest.memory,
        cpus=guest.cpus,
        machine=guest.machine,
        cpu=guest.cpu,
        accel=accel,
        kernel=made_of.kernel.bzimage,
        initrd=None,
        cmdline=cmdlines(guest, plan.scenario, made_of.kernel.release)[0],
        run_dir=run_dir,
        hypervisor=below.image if below else None,
        hypervisor_cmdline=hypervisor_cmdline(guest, plan.scenario) if below else "",
        firmware=made_of.firmware,
        disk=drive,
        sandbox=sandboxes(),
    )


def _open_file(file: IO[bytes]) -> Path:
    """A path by which QEMU, which inherits it, can open a file that has no other."""
    return OPEN_FILES / str(file.fileno())


def accelerator(plan: RunPlan, options: Options, cache: Cache) -> accel.Accel:
    """What the machine runs under. MachineError when KVM is asked for and can't be had."""
    if loads.kind(plan.scenario.load) not in (LoadKind.PLAIN, LoadKind.JUMP):
        return accel.choose(options.accel, memo=cache.root / "kvm.json")
    if options.accel == "kvm":
        raise RequestError("the copying of an image can't be recorded under KVM", hint="leave out --accel kvm")
    return accel.Accel("tcg", "stepping through the copying of an image would take hours under KVM")


def _crash_kernel(plan: RunPlan, kernel: KernelFiles) -> tuple[Kernel, str]:
    """The crash kernel, and why it isn't the first one again; empty when it is as planned."""
    itself = ages.crashes_into_itself(kernel.release, relocatable=kernel.relocatable)
    if loads.kind(plan.scenario.load) is not LoadKind.CRASH:
        return plan.crash_kernel, ""
    if plan.crash_kernel != plan.kernel or itself:
        return plan.crash_kernel, ""
    stock = catalog.find(catalog.load().kernels, plan.guest.kernel, "kernel")
    why = "too old to be relied on as" if kernel.relocatable else "not relocatable, so it can't be"
    return stock, f"{kernel.release} is {why} its own crash kernel: {stock.name} is taken"


def _obtain_crash(kernel: Kernel, guest: Guest, cache: PackageCache, cancel: threading.Event) -> KernelFiles:
    """What is only to be entered by kexec may be a vmlinux."""
    if kernel.image is not None and linked.is_elf(kernel.image):
        return linked.obtain(kernel, kernel.image, guest)
    return obtain(kernel, guest, cache, cancel)


def _require_loadable(plan: RunPlan, crash: KernelFiles) -> None:
    loadable = crash.relocatable or crash.linked_at is not None
    if loads.kind(plan.scenario.load) is LoadKind.CRASH and not loadable:
        raise RequestError(
            f"{plan.crash_kernel.name} ({crash.release}) can't be a crash kernel: its bzImage is not relocatable",
            hint="name another with --crash-kernel, build it with CONFIG_RELOCATABLE=y, or give the vmlinux of one that"
            " is linked to a place (CONFIG_PHYSICAL_START) within crashkernel=",
        )


def _told(below: HypervisorFiles, cmdline: str) -> dict[str, Any]:
    """What the environment says of the hypervisor."""
    told = {"package": below.package, "version": below.version, "sha256": below.sha256}
    return {"hypervisor": {**told, "cmdline": cmdline}}


def _userland(cache: PackageCache, kernel: KernelFiles, dump: Dump, cancel: threading.Event) -> Userland:
    """What runs on this kernel."""
    if ages.needs_musl(kernel.release):
        return legacy.userland(cache, kernel.arch, cancel)
    return cache.userland(kernel.arch, dump)


def keyless(plan: RunPlan, made_of: Ingredients) -> str:
    """SHA-256 of the first kernel's initramfs with no keys in it: the same for the same run."""
    digest = hashlib.sha256()
    for piece in _initramfs(plan, made_of, initramfs.run_segment("", b"")):
        digest.update(piece)
    return digest.hexdigest()


def initramfs_of(plan: RunPlan, made_of: Ingredients, keys: Pieces) -> bytes:
    """The first kernel's initramfs. keys: the segment with this run's."""
    return b"".join(_initramfs(plan, made_of, keys))


def _initramfs(plan: RunPlan, made_of: Ingredients, keys: Pieces) -> Pieces:
    """The first kernel's initramfs, which holds the crash kernel's. Each gets only the programs it runs.

    With hops it holds that kernel itself once more, with such an initramfs for it. keys: the segment with this run's.
    """
    kernel, crash = made_of.kernel, made_of.crash_kernel
    first, second = made_of.userlands
    init = made_of.init.read_bytes()
    # No device drivers: the first kernel must not set up a device that writes to memory by DMA.
    base = initramfs.base(first.only("/bin/busybox", "/sbin/kexec"), kernel.dom0_modules, init)
    if made_of.program:
        return initramfs.jumping(base, made_of.program.read_bytes())
    filters = (makedumpfile.PROGRAM,) if plan.scenario.dump is Dump.MAKEDUMPFILE else ()
    plain = loads.kind(plan.scenario.load) is LoadKind.PLAIN
    served = () if plain else tuple(path for path in ("/usr/sbin/dropbear", *filters) if path in second.files)
    modules = crash.modules + (crash.disk_modules if plan.scenario.dump_to is DumpTo.DISK else ())
    blob = initramfs.first(
        base,
        crash.bzimage,
        initramfs.base(second.only("/bin/busybox", *served), crash.dom0_modules if plain else modules, init),
        keys,
        made_of.control,
        made_of.trigger,
    )
    if made_of.second_hypervisor:
        blob += initramfs.hypervisor(made_of.second_hypervisor.image)
    for _ in range(plan.scenario.hops):
        blob += initramfs.hop(kernel.bzimage, blob)
    return blob


def _identity(files: KernelFiles) -> KernelIdentity:
    return KernelIdentity(files.name, files.release, files.sha256)
