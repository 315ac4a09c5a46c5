"""What a run says besides memory, registers and recordings: run.json. Frozen; kept by rig.evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from rig import loads
from rig.model import (
    Checkpoint,
    DumpTo,
    Failure,
    Ingredients,
    KernelIdentity,
    LoadKind,
    PackageId,
    PagingMode,
    Phase,
    Range,
    RunPlan,
    Until,
)


@dataclass(frozen=True)
class Kimage:
    """What the rig reads from `struct kimage` (include/linux/kexec.h), and by which layout."""

    address: int  # virtual
    start: int  # entry point of the new image
    layout: str
    pages: tuple[int, ...] = ()  # physical: pages that the struct points to, its page tables among them
    segments: tuple[tuple[int, int], ...] = ()  # where the image goes: physical address, bytes; () when not found
    lists: tuple[int, ...] = ()  # physical: pages of the list of what is copied where, in a plain kexec
    place: str = ""  # where machine_kexec had the struct's address: RDI, EAX or "the stack"


@dataclass(frozen=True)
class PerCpu:
    """The first chunk of the per-CPU allocator, by the kernel's own words. Bytes.

    static: of one CPU, at the start of its unit. used: static, reserved and dynamic part. unit: from CPU to CPU.
    """

    static: int
    used: int
    unit: int


@dataclass(frozen=True)
class Pattern:
    """The known bytes in the crashing task's own memory, as found through its page tables at `panic`."""

    token: str  # ASCII, repeated
    virtual: int
    physical: int
    bytes: int


@dataclass(frozen=True)
class Hypervisor:
    """The Xen hypervisor that ran the machine. Physical addresses are machine addresses.

    symbols: those that the rig looks for, virtual. allocated (its own, by name), vmcoreinfo (dom0's): address, bytes.
    """

    package: str
    version: str
    symbols: Mapping[str, int]
    allocated: Mapping[str, tuple[int, int]]
    vmcoreinfo: tuple[int, int] | None


@dataclass(frozen=True)
class PgdOwner:
    """Whose page CR3 points to, of a machine that a hypervisor runs. Addresses of Facts are machine addresses then.

    name: "hypervisor", or "dom0". idle: machine address of the root of the hypervisor's own tables.
    pseudo_physical: what dom0 itself takes for the page's physical address; None for the hypervisor's page.
    """

    name: str
    idle: int
    pseudo_physical: int | None


@dataclass(frozen=True)
class Transfer:
    """How the whole dump came from the guest."""

    command: str  # run in the crash kernel
    bytes: int  # of its output
    seconds: float  # of wall time
    protection: str = ""  # cipher, MAC and compression of the SSH session
    via: DumpTo = DumpTo.SSH


@dataclass(frozen=True)
class DumpInfo:
    """How the headers and the pgd page of /proc/vmcore were fetched. via: "ssh" or "console"."""

    via: str
    physical: int  # of vmcore/pgd.bin
    note: str = ""  # why not over SSH
    transfer: Transfer | None = None  # of the whole dump, when that was asked for and came


@dataclass(frozen=True)
class Damage:
    """Bytes that a sabotage says it changed. address: physical. before, after: `size` bytes, as numbers."""

    address: int
    size: int
    before: int
    after: int


@dataclass(frozen=True)
class RegisterDamage:
    """A register of the crashing CPU, set at `handover`. register: its name in CpuState (cr4) or in its `general`."""

    register: str
    before: int
    after: int


@dataclass(frozen=True)
class PlainPanic:
    """How a panic without a crash kernel went. said: the kernel's line on the console. ending: as in rig.vm.deadline.

    started: "Linux version ..." of a kernel that came up although none was loaded; empty when none did.
    """

    said: str
    ending: str
    started: str = ""


@dataclass(frozen=True)
class Manifest:
    """Ingredients as evidence keeps them. Their paths begin with `cache/` or `rig/`, or are absolute.

    sha256: of each file, by such a path. packages: those that come from one. initramfs: SHA-256 of the first kernel's
    with no keys in it, which are all that differs from run to run.
    """

    ingredients: Ingredients
    sha256: Mapping[str, str]
    packages: Mapping[str, PackageId]
    initramfs: str


def files(part: object) -> Iterator[Path]:
    """Every file that a part of the ingredients names, or all of them; some more than once."""
    if isinstance(part, Path):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from files(item)
    elif isinstance(part, Mapping):
        yield from files(tuple(part.values()))
    elif is_dataclass(part):
        yield from files(tuple(getattr(part, own.name) for own in fields(part)))


@dataclass(frozen=True)
class Jump:
    """How a kexec jump went, by user space's own word. status: what reboot(2) came to, 0 or the errno.

    again: the same of entering the image once more, where it asked to be entered; None when that was not tried.
    boot_id: /proc/sys/kernel/random/boot_id, which a kernel makes once, when the guest was armed and afterwards.
    """

    status: int
    again: int | None
    boot_id: tuple[str, str]


UNKNOWN = KernelIdentity(name="", release="", sha256="")  # until the artefacts are there


@dataclass(frozen=True)
class Facts:
    """What was run and what was learned on the way. Everything a check needs besides memory and registers."""

    rig: str
    plan: RunPlan
    started: str = ""  # UTC, ISO 8601 to the second
    kernel: KernelIdentity = UNKNOWN
    crash_kernel: KernelIdentity = UNKNOWN
    manifest: Manifest | None = None  # until the artefacts are there
    environment: Mapping[str, Any] = field(default_factory=dict)
    ram: tuple[tuple[int, int, int], ...] = ()  # (physical start, size, offset in the RAM file)
    iomem: tuple[Range, ...] = ()  # /proc/iomem when armed
    crash_region: Range | None = None  # what crashkernel= reserved; None for a plain kexec
    symbols: Mapping[str, int] = field(default_factory=dict)
    text: int | None = None  # virtual address of _text: where the "Kernel code" of /proc/iomem begins
    given_back: tuple[tuple[int, int], ...] = ()  # parts of its image that the kernel freed: virtual, [start, end)
    crash_notes: tuple[tuple[int, int], ...] = ()  # per CPU: physical address, size
    vmcoreinfo: tuple[int, int] | None = None  # physical address, size
    per_cpu: PerCpu | None = None
    efi_tables: tuple[tuple[int, int], ...] = ()  # physical address, bytes: EFI's system table, configuration tables
    crash_cmdline: str = ""
    crashing_cpu: int | None = None  # the one that panics; in a plain kexec the one that executes machine_kexec
    panic_symbol: str = ""  # where `panic` was taken: __crash_kexec
    mode: PagingMode | None = None
    cr3: int | None = None  # at `panic`; in a plain kexec at `machine-kexec`
    hypervisor: Hypervisor | None = None  # `symbols` are the hypervisor's then, and so is what panicked
    pgd_owner: PgdOwner | None = None  # of a machine that a hypervisor runs
    kimage: Kimage | None = None
    tables: tuple[int, ...] = ()  # physical addresses of the crashed task's page-table pages, the root's first
    user_pgd: int | None = None  # physical: the user twin of the pgd, with page-table isolation (PTI)
    user_tables: tuple[int, ...] = ()  # its page-table pages that are not among `tables`, the root's first
    other_tables: tuple[int, ...] = ()  # of what the other CPUs had in CR3 at `panic`
    handover_tables: tuple[int, ...] = ()  # physical: pages of all tables that CR3 pointed to during the hand-over
    slab_pages: tuple[int, ...] = ()  # physical: pages of slab objects among those that changed up to `machine-kexec`
    pattern: Pattern | None = None
    exception: Mapping[str, int] = field(default_factory=dict)  # registers of the exception that led to `panic`, if any
    plain_panic: PlainPanic | None = None  # without a crash kernel
    jump_ended: Jump | None = None  # of a kexec jump
    crash_proc_cmdline: str | None = None  # of the crash kernel, by its own word
    crash_release: str = ""  # `uname -r` in the crash kernel, by its own word
    crash_seconds: float | None = None  # hand-over to its user space, seconds of wall time
    vmcore_present: bool | None = None
    second_is_dom0: bool = False  # a hypervisor runs the new kernel, by its own word
    dump: DumpInfo | None = None
    damage: tuple[Damage, ...] = ()  # what the sabotage says it did to memory, by ascending address
    register_damage: tuple[RegisterDamage, ...] = ()  # and to registers
    control_memory: tuple[int, int] | None = None  # the control module's own: physical address, size
    captured: tuple[Checkpoint, ...] = ()  # where memory was
    phases: tuple[Phase, ...] = ()
    skip: str = ""  # why nothing could be judged here by the nature of things: the kernel or CPU lacks it
    broke_off: Failure | None = None
    died: bool = False  # broke off because the panicking guest reset, triple-faulted or powered off
    post_mortem: bool = False  # it died in the hand-over, and registers and memory were taken then: DIED

    @property
    def plain(self) -> bool:
        """Whether the image is entered because it is asked for, not by a panic: a plain kexec, a kexec jump."""
        return loads.kind(self.plan.scenario.load) in (LoadKind.PLAIN, LoadKind.JUMP)

    @property
    def unlike_loaded(self) -> str:
        """What the new kernel says of itself, once its user space has spoken, by which it is not what was loaded, or
        not fit for what it was loaded for; empty when there is nothing of the kind."""
        wanted, command_line = self.crash_kernel.release, self.crash_proc_cmdline or ""
        into = self.plan.into
        as_dom0 = into is not None and bool(into.hypervisor)
        if self.crash_release != wanted:
            return f"{self.crash_release} came up, but {wanted} was loaded"
        if self.crash_cmdline not in command_line:
            return f"another image ran: its command line is {command_line!r}, without {self.crash_cmdline!r}"
        if self.second_is_dom0 != as_dom0:
            runs = "a hypervisor's dom0" if self.second_is_dom0 else "the bare machine's"
            return f"{self.crash_release} reached user space, but is {runs}, which is not what was loaded"
        if not self.plain and not self.vmcore_present:
            return f"{self.crash_release} reached user space, but there is no /proc/vmcore (CONFIG_PROC_VMCORE?)"
        return ""

    @property
    def ends_at_handover(self) -> bool:
        """Whether the new kernel is entered and not run."""
        return self.plan.scenario.until is Until.HANDOVER

    @property
    def jump(self) -> bool:
        """Whether the image is to return: a kexec jump."""
        return loads.kind(self.plan.scenario.load) is LoadKind.JUMP
