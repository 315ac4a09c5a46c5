"""The machine to start, and QEMU's command line for it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rig.errors import MachineError
from rig.vm.logs import ThreadLogs

QEMU = "qemu-system-x86_64"  # runs the 32-bit guests, too
MONITOR = ("socket,id=monitor,", "chardev=monitor,")  # how the options of a second monitor begin
# seccomp: QEMU starts no program and gets no privileges, nor does it make system calls that no QEMU needs.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
QEMU_LOGS = ".qemu-log"  # directory: the log as QEMU writes it
LOG_ALWAYS = "cpu_reset"  # says "Triple fault", which QMP calls a reset like any other
OPEN_FILES = Path("/proc/self/fd")
DISK = "dump"  # the node that the disk is to QEMU
_MIB = 1 << 20


@dataclass(frozen=True)
class MachineSpec:
    """A machine to start. memory: MiB. accel: tcg or kvm. nic: QEMU device model.

    run_dir: existing directory for console.log, control.log, qmp.jsonl, qemu.log and qemu.stderr. firmware: an image
    instead of QEMU's own BIOS. disk: a file that the guest has as a virtio disk. hypervisor: boots first, with
    hypervisor_cmdline, and gets kernel (with cmdline) and initrd as its modules. monitor: where a second QMP monitor is
    to listen, a Unix socket that QEMU makes. sandbox: whether this QEMU has one (sandboxes()).

    initrd and disk may be open files of the rig's, /proc/self/fd/N: QEMU inherits them.
    """

    memory: int
    cpus: int
    machine: str
    cpu: str
    accel: str
    kernel: Path
    initrd: Path | None
    cmdline: str
    run_dir: Path
    nic: str = "rtl8139"
    firmware: Path | None = None
    disk: Path | None = None
    hypervisor: Path | None = None
    hypervisor_cmdline: str = ""
    monitor: Path | None = None
    sandbox: bool = True

    @property
    def ram_size(self) -> int:
        """Bytes."""
        return self.memory * _MIB

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors of the files that QEMU has open from its start."""
        return tuple(int(path.name) for path in (self.initrd, self.disk) if path and path.parent == OPEN_FILES)

    @property
    def writable(self) -> tuple[Path, ...]:
        """The directories that QEMU may write to."""
        return (self.run_dir, *((self.monitor.parent,) if self.monitor else ()))


@dataclass(frozen=True)
class Wiring:
    """File descriptor numbers that QEMU inherits: the RAM's memfd, and one end of a socket pair each."""

    ram: int
    console: int
    control: int
    qmp: int
    gdb: int

    @property
    def fds(self) -> tuple[int, ...]:
        return self.ram, self.console, self.control, self.qmp, self.gdb


def boot_options(spec: MachineSpec) -> list[tuple[str, str]]:
    """What is booted. A hypervisor is a multiboot image: -initrd then lists its modules, each a file and its command
    line, separated by commas; one within them is doubled (load_multiboot() in QEMU's hw/i386/multiboot.c)."""
    if spec.hypervisor is None:
        initrd = [("-initrd", str(spec.initrd))] if spec.initrd else []
        return [("-kernel", str(spec.kernel)), *initrd, ("-append", spec.cmdline)]
    modules = [module.replace(",", ",,") for module in (f"{spec.kernel} {spec.cmdline}", str(spec.initrd))]
    return [("-kernel", str(spec.hypervisor)), ("-initrd", ",".join(modules)), ("-append", spec.hypervisor_cmdline)]


def argv(spec: MachineSpec, wiring: Wiring, *, waiting: bool = False) -> list[str]:
    """The QEMU command line. Pure. Option and value on one line. waiting: for a guest's state, instead of booting."""
    share = "off" if waiting else "on"  # off: what is written is this QEMU's own
    ram = f"memory-backend-file,id=ram,size={spec.memory}M,mem-path=/proc/self/fd/{wiring.ram},share={share}"
    options: list[tuple[str, ...]] = [
        *([("-sandbox", SANDBOX)] if spec.sandbox else []),
        ("-nodefaults",),
        ("-no-user-config",),
        ("-display", "none"),
        ("-accel", spec.accel),
        ("-cpu", spec.cpu if spec.accel == "tcg" else "host"),
        ("-smp", str(spec.cpus)),
        ("-m", f"{spec.memory}M"),
        ("-object", ram),
        ("-machine", f"{spec.machine},memory-backend=ram"),
        *boot_options(spec),
        # The legacy text window at 0xb8000 must exist: kernels write to it during the hand-over.
        ("-device", "VGA"),
        # ttyS0: the kernel's console. ttyS1: the control channel.
        ("-chardev", f"socket,id=console,fd={wiring.console}"),
        ("-serial", "chardev:console"),
        ("-chardev", f"socket,id=control,fd={wiring.control}"),
        ("-serial", "chardev:control"),
        ("-chardev", f"socket,id=qmp,fd={wiring.qmp}"),
        ("-mon", "chardev=qmp,mode=control"),
        ("-chardev", f"socket,id=gdb,fd={wiring.gdb}"),
        ("-gdb", "chardev:gdb"),
        # Port 0: the system chooses, so there is no race for it. restrict: the guest reaches nothing outside.
        ("-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
        # No boot ROM: nothing boots from the network, and the ROMs are a package of their own.
        ("-device", f"{spec.nic},netdev=net,romfile="),
        # A reset or triple fault leaves the machine paused, its CPUs as they were.
        ("-action", "reboot=shutdown,shutdown=pause"),
        # The guest's clock stands still while it is held.
        ("-rtc", "base=utc,clock=vm"),
        # A file a thread: it must be said at the start, and the name can't be changed later.
        ("-D", ThreadLogs(spec.run_dir / QEMU_LOGS).pattern),
        ("-d", f"{LOG_ALWAYS},tid"),
    ]
    if spec.firmware:
        # One image with code and variables: what the firmware writes into its variables lasts as long as the machine.
        options.append(("-bios", str(spec.firmware)))
    if waiting:
        options.append(("-incoming", "defer"))
    return [QEMU, *(word for option in (*options, *_disk(spec.disk), *_monitor(spec.monitor)) for word in option)]


def _disk(path: Path | None) -> list[tuple[str, str]]:
    """no-flush: the rig reads the file through the same page cache. werror=report: the guest is told of a full file
    system, and not held until there is room."""
    if path is None:
        return []
    return [
        ("-blockdev", f"driver=file,node-name={DISK},filename={path},locking=off,cache.no-flush=on"),
        ("-device", f"virtio-blk-pci,drive={DISK},werror=report,rerror=report"),
    ]


def _monitor(path: Path | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    where = str(path).replace(",", ",,")
    return [
        ("-chardev", f"{MONITOR[0]}path={where},server=on,wait=off"),
        ("-mon", f"{MONITOR[1]}mode=control"),
    ]


def ram_ranges(spec: MachineSpec) -> list[tuple[int, int, int]]:
    """Where the RAM's memfd appears in physical memory: (physical start, size, file offset), in bytes.

    The VGA window 0xa0000-0xbffff hides the RAM behind it and is left out. Above, RAM is split below 4 GiB:
    on pc at 3 GiB once it reaches 3.5 GiB (pc_init1() in QEMU's hw/i386/pc_piix.c), on q35 at 2 GiB once it
    reaches 2.75 GiB (pc_q35_init() in hw/i386/pc_q35.c). Raises MachineError for other machine types.
    """
    match = re.fullmatch(r"(?:pc-)?(q35|pc|i440fx)(?:-\d+\.\d+)?", spec.machine.split(",")[0])
    if not match:
        raise MachineError(f"where RAM lies on the machine type {spec.machine!r} is not known", hint="use pc or q35")
    limit, split = (0xB0000000, 0x80000000) if match[1] == "q35" else (0xE0000000, 0xC0000000)
    size = spec.ram_size
    below = split if size >= limit else size
    ranges = [(0, 0xA0000, 0), (0xC0000, below - 0xC0000, 0xC0000)]
    return ranges + ([(1 << 32, size - below, below)] if size > below else [])
