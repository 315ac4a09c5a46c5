"""What flows between the rooms: frozen dataclasses and enums. Imports nothing of rig.

Guest, Kernel, Scenario (TOML)  ->  RunPlan  ->  Evidence (directory)  ->  CheckResult  ->  RunResult
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PAGE_SIZE = 4096  # bytes; the unit of captures, on every x86 mode
MOST_MEMORY = 1 << 20  # MiB that a guest may have
# Bytes of a recording of the hand-over. A crash path takes 10,000 instructions, 12 MB; a guest that loops would fill
# the disk.
RECORDING_LIMIT = 256 << 20
CRASH_KERNEL = "Crash kernel"  # what crashkernel= reserved, in /proc/iomem
MACHINE_KEXEC = "machine_kexec"  # the kernel function that the checkpoint of that name is the first instruction of


class Verdict(enum.StrEnum):
    """Outcome of a check or a run. There is no default: each must be earned."""

    PASS = "pass"
    SKIP = "skip"
    ERROR = "error"
    FAIL = "fail"

    @classmethod
    def worst(cls, verdicts: Iterable[Verdict]) -> Verdict:
        """The worst of the given: fail > error > skip > pass. Raises ValueError when there are none."""
        order = list(cls)
        try:
            return max(verdicts, key=order.index)
        except ValueError:
            raise ValueError("no verdicts: nothing was judged") from None


class Arch(enum.StrEnum):
    """Guest architecture, by its Debian name."""

    I386 = "i386"
    AMD64 = "amd64"

    @property
    def word(self) -> int:
        """Bytes of a machine word (and of a pointer) in the guest kernel."""
        return 8 if self is Arch.AMD64 else 4


class PagingMode(enum.StrEnum):
    """How CR3 is read (Intel SDM vol. 3, 4.1.1)."""

    TWO_LEVEL = "2-level"
    PAE = "pae"
    FOUR_LEVEL = "4-level"
    FIVE_LEVEL = "5-level"


class Firmware(enum.StrEnum):
    """What the machine starts with, and who tells the kernel where memory is."""

    BIOS = "bios"  # QEMU's own, SeaBIOS
    UEFI = "uefi"  # OVMF, 64-bit, from the distribution's package


class Checkpoint(enum.StrEnum):
    """The instants at which the machine is held and looked at (DESIGN: contract)."""

    ARMED = "armed"
    PANIC = "panic"
    MACHINE_KEXEC = "machine-kexec"
    HANDOVER = "handover"
    RETURNED = "returned"  # kexec jump: machine_kexec has returned, its caller goes on
    CRASH_KERNEL = "crash-kernel"
    SECOND_KERNEL = "second-kernel"  # plain kexec's crash-kernel


# ---------------------------------------------------------------- the catalogue (from TOML)


@dataclass(frozen=True)
class Guest:
    """One kind of machine. memory: MiB. crashkernel: the kernel parameter's value."""

    name: str
    description: str
    arch: Arch
    paging: PagingMode
    flavour: str  # the distribution's kernel flavour: 686, 686-pae, amd64
    kernel: str  # name of the Kernel used unless --kernel says otherwise
    memory: int
    cpus: int
    machine: str  # QEMU -machine type
    cpu: str  # QEMU -cpu model under TCG
    crashkernel: str
    firmware: Firmware = Firmware.BIOS
    cmdline: str = ""  # added to the first kernel's command line
    crash_cmdline: str = ""  # added to the crash kernel's command line
    hypervisor: str = ""  # package of a Xen hypervisor, which then runs below the first kernel; empty: none
    hypervisor_cmdline: str = ""  # added to the hypervisor's command line


@dataclass(frozen=True)
class Kernel:
    """A kernel by name: from packages, built from a distribution's source, or the user's own image.

    In package, headers and config, {flavour} is replaced by the guest's.
    """

    name: str
    description: str
    package: str = ""  # regular expression for image package names
    suite: str = ""  # the suite that packages come from; empty: whatever the machine's own sources carry
    flavours: tuple[str, ...] = ()  # those that it exists for; empty: any
    headers: str = ""  # the headers package for a given {release}, for building modules
    source: str = ""  # the package with the source, to build it from: linux-source-6.1
    config: tuple[str, ...] = ()  # names of fragments in kernels/config/, put on top of tinyconfig
    patch: str = ""  # name of a patch in kernels/controls/, applied to the source before it is built
    image: Path | None = None  # a bzImage of the user's
    vmlinux: Path | None = None
    home: Path | None = None  # no key: the catalogue directory that it is from, where its fragments and patch may be


class LoadKind(enum.StrEnum):
    """What a loaded image is for: it decides how the run goes on, and what can be judged."""

    CRASH = "crash"  # kexec -p: entered when the kernel panics
    PLAIN = "plain"  # kexec -l: entered when asked for
    JUMP = "jump"  # KEXEC_PRESERVE_CONTEXT: entered when asked for, and comes back
    NONE = "none"  # nothing is loaded


class Until(enum.StrEnum):
    """How far a run goes."""

    HANDOVER = "handover"  # the new image is entered and not run: only what can be seen by then is judged
    END = "end"


class Dump(enum.StrEnum):
    """How much of /proc/vmcore is fetched, and how."""

    HEADERS = "headers"  # ELF header, program headers, notes, and the pgd's page
    RAW = "raw"  # all of it, as it is
    MAKEDUMPFILE = "makedumpfile"  # what makedumpfile leaves of it in the guest


class DumpTo(enum.StrEnum):
    """The way that a whole dump leaves the crash kernel."""

    SSH = "ssh"
    DISK = "disk"  # a disk of the guest's, which the rig then reads


@dataclass(frozen=True)
class Scenario:
    """What is done to a guest and what must come of it."""

    name: str
    description: str
    trigger: str
    guests: tuple[str, ...]
    checks: tuple[str, ...] = ()  # when the file names none: all that can be judged with this dump
    kernel: str = ""  # name of the Kernel used unless --kernel says otherwise; empty: the guest's
    crash_kernel: str = ""  # name of the Kernel that kexec starts; empty: the first one again
    load: str = "kexec_load"  # how the image is loaded: a name of rig/loads.py
    cmdline: str = ""  # added to the first kernel's command line, after the guest's
    crash_cmdline: str = ""  # the same of the kernel that kexec starts
    into: str = ""  # name of the Guest whose architecture the kernel that kexec starts is of; empty: the same
    hops: int = 0  # so often the first kernel is entered again by a plain kexec, unwatched, before it is armed
    crashkernel: str = ""  # instead of the guest's; "none": no memory is reserved
    until: Until = Until.END
    dump: Dump = Dump.HEADERS
    dump_options: str = ""  # of makedumpfile: its format and filter level (rig/guest/makedumpfile.py)
    dump_to: DumpTo = DumpTo.SSH
    # A control in kernels/controls, loaded before the trigger, with its module parameters ("damage what=pte"), or an
    # injection: damage that the rig does through the debugger. {pattern} and so on: see rig/sabotage.py.
    sabotage: str = ""
    expect: Verdict = Verdict.PASS
    expect_failed: tuple[str, ...] = ()  # with expect = "fail": exactly these checks fail
    home: Path | None = None  # no key: the catalogue directory that it is from, where its control may be

    @property
    def control(self) -> str:
        """The sabotage without its parameters: the name of a control module or of an injection; empty without one."""
        return self.sabotage.partition(" ")[0]

    @property
    def parameters(self) -> str:
        """The control's module parameters, as the scenario gives them."""
        return self.sabotage.partition(" ")[2].strip()


@dataclass(frozen=True)
class Cells:
    """Cells of the matrix: each scenario on each guest with each kernel. Names, or patterns of them (fnmatch)."""

    scenarios: tuple[str, ...]
    guests: tuple[str, ...] = ()  # empty: those that each scenario lists
    kernels: tuple[str, ...] = ()  # empty: the scenario's or, when it names none, the guest's


@dataclass(frozen=True)
class Selection:
    """Part of the matrix, under a name."""

    name: str
    description: str
    cells: tuple[Cells, ...]


@dataclass(frozen=True)
class Options:
    """How runs are done, as opposed to what is run."""

    results: Path = Path("results")
    jobs: int = 0  # CPUs that guests have at a time; 0: as many as this process may use
    accel: str = "auto"  # auto | tcg | kvm
    keep_memory: bool = False
    keep_dump: bool = False  # the whole dump stays in the evidence directory, for crash or drgn
    deadline: float = 180.0  # seconds a single phase may take under TCG
    refused_is_error: bool = False  # a wrong request of one run among many: could not judge, instead of ending them all
    seed: int | None = None  # of what a sabotage chooses at random; None: choose one and record it
    remarks: Mapping[str, Any] = field(default_factory=dict)  # more of what the result's `environment` says
    template: bool = True  # go on from a guest that was booted and armed before, where that can't change the verdict
    repeat: Repeat | None = None  # of one run: made of these, not of what the catalogue and the packages say today


@dataclass(frozen=True)
class RunPlan:
    """One cell of the matrix, resolved: nothing in it is looked up by name any more."""

    scenario: Scenario
    guest: Guest
    kernel: Kernel
    crash_kernel: Kernel
    into: Guest | None = None  # what crash_kernel is for, when that is not `guest`
    skip: str = ""  # why it can't be run at all; empty when it can

    @property
    def id(self) -> str:
        """SCENARIO@GUEST/KERNEL (DESIGN: contract)."""
        return f"{self.scenario.name}@{self.guest.name}/{self.kernel.name}"

    @property
    def slug(self) -> str:
        """The id as a directory name: [A-Za-z0-9._-] only."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.id)


# ---------------------------------------------------------------- what a live run hands on


@dataclass(frozen=True)
class KernelFiles:
    """A kernel on disk, ready to boot. modules: .ko files for the crash kernel's initramfs, in load order.

    dom0_modules: what the kernel takes to load a crash kernel into the hypervisor that it runs on; else empty.
    """

    name: str
    release: str  # `uname -r`, as the image's own header says
    arch: Arch
    bzimage: Path
    sha256: str
    modules: tuple[Path, ...] = ()
    disk_modules: tuple[Path, ...] = ()  # those for a disk, after `modules`
    vmlinux: Path | None = None
    suite: str = ""  # of its packages, as in Kernel
    relocatable: bool = True  # runs where it is loaded; one that isn't can't be its own crash kernel
    dom0_modules: tuple[Path, ...] = ()
    linked_at: tuple[int, int] | None = None  # `bzimage` is an ELF vmlinux, which runs there: physical, [start, end)
    package: PackageId | None = None  # that it came in; its modules may have come in others


@dataclass(frozen=True)
class PackageId:
    """A distribution package. sha256: of the .deb, empty when that is not in the cache any more."""

    name: str
    version: str
    arch: str  # as the package says it; may be `all`
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"


@dataclass(frozen=True)
class HypervisorFiles:
    """A hypervisor on disk, ready to boot. symbols: the ELF file with its symbol table, of the same build."""

    package: str
    version: str  # of the package
    image: Path  # unpacked
    sha256: str  # of the image
    symbols: Path


@dataclass(frozen=True)
class Userland:
    """Files of a guest. files: guest path -> host file, all to be installed 0755.

    loads: guest path -> the guest paths that it loads itself (interpreter, libraries).
    """

    arch: Arch
    files: Mapping[str, Path]
    loads: Mapping[str, tuple[str, ...]]

    def only(self, *programs: str) -> Userland:
        """The part that these programs (guest paths) need. KeyError on a path that isn't in it."""
        todo, kept = list(programs), set[str]()
        while todo:
            path = todo.pop()
            if path not in kept:
                kept.add(path)
                todo.extend(self.loads[path])
        return Userland(
            arch=self.arch,
            files={path: file for path, file in self.files.items() if path in kept},
            loads={path: needs for path, needs in self.loads.items() if path in kept},
        )


@dataclass(frozen=True)
class Ingredients:
    """The files that a run is made of: all that its guest executes and, with `vmlinux` and hypervisor symbols, what
    its judgement takes names from. init: of guests/, the rig's own.
    """

    kernel: KernelFiles
    crash_kernel: KernelFiles
    userlands: tuple[Userland, Userland]  # for the first and for the crash kernel
    init: Path
    control: Path | None = None  # the sabotage's module
    trigger: Path | None = None  # the trigger's module
    program: Path | None = None  # loads and enters the image of a kexec jump
    hypervisor: HypervisorFiles | None = None
    second_hypervisor: HypervisorFiles | None = None  # the one that kexec starts
    firmware: Path | None = None
    crash_kernel_note: str = ""  # why the crash kernel is not the planned one


@dataclass(frozen=True)
class Brought:
    """Ingredients that another machine chose. root: directory in which they lie by the paths that they have in a
    manifest. packages: those that they came in there, by these paths."""

    root: Path
    packages: Mapping[str, PackageId]


@dataclass(frozen=True)
class Repeat:
    """A run done again, or made of what another machine chose. told: what its result says of that, as `rerun` in the
    environment; JSON-able; nothing when empty.
    """

    ingredients: Ingredients
    told: Mapping[str, Any]
    brought: Brought | None = None  # None: they lie where this machine's own would


@dataclass(frozen=True)
class Segment:
    """A segment register. base and limit in bytes, flags as QEMU prints them (descriptor bits 8..23)."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True)
class CpuState:
    """One CPU at one instant. general: lower-case names as in the SDM (rax.., r8.., rip, rflags).

    In 32-bit guests the names are the same 64-bit ones (rax for EAX), zero-extended.
    """

    cpu: int
    general: Mapping[str, int]
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    segments: Mapping[str, Segment]  # cs ss ds es fs gs ldt tr

    def register(self, name: str) -> int:
        """A general or control register by its name. AttributeError when there is none."""
        value: int = self.general[name] if name in self.general else getattr(self, name)
        return value

    @property
    def paging(self) -> PagingMode | None:
        """The paging mode that the control registers select, None when CR0.PG=0 (SDM vol. 3, 4.1.1)."""
        if not self.cr0 & 1 << 31:
            return None
        if not self.cr4 & 1 << 5:
            return PagingMode.TWO_LEVEL
        if not self.efer & 1 << 10:
            return PagingMode.PAE
        return PagingMode.FIVE_LEVEL if self.cr4 & 1 << 12 else PagingMode.FOUR_LEVEL


@dataclass(frozen=True)
class Range:
    """A named range of physical addresses, as /proc/iomem prints it: `last` is inclusive."""

    start: int
    last: int
    name: str
    depth: int = 0  # nesting in /proc/iomem

    def __contains__(self, address: int) -> bool:
        return self.start <= address <= self.last

    @property
    def size(self) -> int:
        return self.last - self.start + 1


@dataclass(frozen=True)
class Symbol:
    """A function or variable of the kernel: [start, end), virtual addresses. end: where the next symbol begins."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Phase:
    name: str
    seconds: float
    console: int | None = None  # bytes that console.log had when it began; None in results of a rig that did not look


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class CheckResult:
    """What one check says. summary: one line for people. figures: JSON-able, as DESIGN lists them."""

    name: str
    verdict: Verdict
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelIdentity:
    name: str
    release: str
    sha256: str


@dataclass(frozen=True)
class Failure:
    """Why a run could not be judged."""

    kind: str  # the error's class name
    message: str
    phase: str
    hint: str = ""
    console: str = ""
    cpu_state: str = ""


@dataclass(frozen=True)
class RunResult:
    """result.json (DESIGN: contract, schema 1), and a few more keys that readers may ignore."""

    id: str
    scenario: str
    guest: str
    kernel: KernelIdentity
    crash_kernel: KernelIdentity
    expect: Verdict
    verdict: Verdict
    checks: tuple[CheckResult, ...]
    phases: tuple[Phase, ...]
    environment: Mapping[str, Any]
    expect_failed: tuple[str, ...] = ()
    surprise: str = ""  # why this is not what the scenario expects; empty when it is
    started: str = ""  # UTC, ISO 8601 to the second; empty in results of a rig that did not say
    error: Failure | None = None  # set when the run broke off: could not go on, or the guest died of its panic
    schema: Literal[1] = 1

    @property
    def as_expected(self) -> bool:
        return not self.surprise
