"""The first kernel's side: what it says about itself, and the crash kernel loaded into it.

Everything is asked over the guest's shell. What a kernel lacks is told by its CONFIG name, from how it behaves.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.errors import GuestCommandFailed, GuestError, NotOffered, UnsuitableKernel
from rig.facts import PerCpu
from rig.guest.cache import Cache
from rig.kernel import efi, symbols
from rig.kernel.payload import Undecodable, decompress
from rig.late import late
from rig.loads import LOADS, NOTHING, Load
from rig.model import CRASH_KERNEL, LoadKind, Range, Scenario
from rig.triggers import MODULE, Setting, Trigger
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

if TYPE_CHECKING:
    from rig.kernel import linked
    from rig.kernel import table as tables
    from rig.kernel.table import SymbolTable
else:
    linked, tables = late("rig.kernel.linked"), late("rig.kernel.table")

CONTROL = "/rig/control.ko"
TRIGGER = "/rig/trigger.ko"
# Bytes of a CPU's crash notes in 2.6.18 (MAX_NOTE_BYTES, include/linux/kexec.h). Kernels without crash_notes_size don't
# tell, and this is the most that it ever was.
NOTE_BYTES = 1024
_MOST_KALLSYMS = 128 << 20  # bytes of /proc/kallsyms; a distribution's kernel has 10 MB
FLAGS = {LoadKind.CRASH: "-p", LoadKind.PLAIN: "-l", LoadKind.JUMP: "", LoadKind.NONE: ""}

# "percpu: Embedded 62 pages/cpu s217088 r8192 d28672 u1048576" (mm/percpu.c, pcpu_embed_first_chunk)
_PER_CPU = re.compile(r"percpu: Embedded \d+ pages/cpu s(\d+) r(\d+) d(\d+) u(\d+)")
_IOMEM = re.compile(r"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$")
# What must be there, and the option that brings it. In the order of asking.
_NEEDED = (
    ("/proc/kallsyms", "CONFIG_KALLSYMS"),
    ("/proc/iomem", "CONFIG_PROC_FS"),
    ("/proc/sysrq-trigger", "CONFIG_MAGIC_SYSRQ"),
)


@dataclass(frozen=True)
class Self:
    """What an armed kernel says about itself."""

    iomem: tuple[Range, ...]
    symbols: Mapping[str, int]
    crash_notes: tuple[tuple[int, int], ...]  # per CPU: physical address, size
    vmcoreinfo: tuple[int, int] | None  # physical address, size
    crash_region: Range | None  # None: no memory is reserved, and none has to be
    per_cpu: PerCpu | None
    efi: tuple[int, int] | None  # physical: system table, configuration tables


def parse_iomem(text: str) -> tuple[Range, ...]:
    """/proc/iomem -> ranges in its own order; two spaces of indentation are one level of depth."""
    matches = (_IOMEM.match(line) for line in text.splitlines())
    return tuple(Range(int(m[2], 16), int(m[3], 16), m[4], len(m[1]) // 2) for m in matches if m)


def parse_vmcoreinfo(text: str) -> tuple[int, int] | None:
    """/sys/kernel/vmcoreinfo: "physical-address size", both hexadecimal, the first with or without 0x."""
    words = text.split()
    return (int(words[0], 16), int(words[1], 16)) if len(words) == 2 else None


def parse_crash_notes(text: str) -> tuple[tuple[int, int], ...]:
    """Lines of a CPU's number, and its crash_notes (hexadecimal) and crash_notes_size (decimal), in any order."""
    rows = sorted((int(n), int(a, 16), int(s)) for n, a, s in (row.split() for row in text.splitlines()))
    return tuple((address, size) for _, address, size in rows)


def parse_per_cpu(text: str) -> PerCpu | None:
    """The kernel's line about its first per-CPU chunk, in its log. None when it isn't there any more."""
    match = _PER_CPU.search(text)
    if not match:
        return None
    static, reserved, dynamic, unit = map(int, match.groups())
    return PerCpu(static, static + reserved + dynamic, unit)


def parse_sections(text: str) -> dict[str, str]:
    """The script's output: name -> the lines between `@name` and the next one."""
    pieces = re.split(r"^@(\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def script(load: Load, cmdline: str, options: str = "") -> str:
    """What the first kernel's shell is asked to do, in one go: commands cost 50 ms each under emulation.

    options: kexec's, for the kind of image that it is. kexec has a CPU to itself while the rest is asked: it hashes the
    whole crash kernel. Every section is printed even if what it asks for is missing.
    """
    needed = " ".join(path for path, _ in _NEEDED)
    quoted = shlex.quote(cmdline)
    return f"""
printf '%s\\n' {quoted} >/tmp/rig-cmdline
load() {{
  kexec {FLAGS[load.kind]} "$@" {options} /rig/crash-kernel --initrd=/rig/crash-initrd \\
    --command-line={quoted}"${{word:+ $word}}"
}}
({load.command}) >/tmp/kexec.log 2>&1 &
echo @missing; for f in {needed}; do [ -e $f ] || echo $f; done
echo @iomem; cat /proc/iomem
echo @kallsyms; {symbols.COMMAND}
echo @notes; for c in /sys/devices/system/cpu/cpu[0-9]*; do
  [ -e $c/crash_notes ] && read a <$c/crash_notes || continue
  s={NOTE_BYTES}; [ -e $c/crash_notes_size ] && read s <$c/crash_notes_size; echo ${{c##*/cpu}} $a $s
done
echo @vmcoreinfo; [ -e /sys/kernel/vmcoreinfo ] && cat /sys/kernel/vmcoreinfo
echo @efi; {efi.COMMAND}
echo @log; dmesg | grep -i -e percpu: -e crashkernel
wait $!; status=$?; echo @status; echo $status
echo @kexec; cat /tmp/kexec.log
echo @loaded; [ -e {_loaded(load)} ] && cat {_loaded(load)}
true
"""


def hop(shell: Shell, cmdline: str, deadline: Deadline) -> None:
    """Enter the first kernel again, with its own command line, by a plain kexec. Does not wait for it to come up."""
    image = f"/rig/hop-kernel --initrd=/rig/hop-initrd --command-line={shlex.quote(cmdline)}"
    shell.run(f"kexec -l -c {image}", deadline)
    shell.send("kexec -e")


def _loaded(load: Load) -> str:
    """The file that says whether an image of that kind is loaded: 0 or 1. Since 2.6.18 (c330dda908b5)."""
    asked_for = load.kind in (LoadKind.PLAIN, LoadKind.JUMP)
    return "/sys/kernel/kexec_loaded" if asked_for else "/sys/kernel/kexec_crash_loaded"


def arm(shell: Shell, load: Load, cmdline: str, deadline: Deadline, linked_at: tuple[int, int] | None = None) -> Self:
    """Ask the first kernel about itself and load the crash kernel, with the kernel's own word that it is loaded, if it
    has a file for that; else by kexec's.

    cmdline: the crash kernel's. linked_at: where it runs, when it is a vmlinux: physical, [start, end).

    Raises NotOffered for a system call that the kernel hasn't got, UnsuitableKernel, by CONFIG name, for what else it
    lacks, and GuestCommandFailed with kexec's own words.
    """
    told = parse_sections(shell.run(script(load, cmdline, linked.OPTIONS if linked_at else ""), deadline))
    missing = told["missing"].split()
    for path, option in _NEEDED:
        if path in missing:
            raise UnsuitableKernel(f"the kernel has no {path}", hint=f"build it with {option}=y")
    found = symbols.parse_kallsyms(told["kallsyms"])
    if symbols.MACHINE_KEXEC not in found:
        raise UnsuitableKernel(
            f"/proc/kallsyms shows no {symbols.MACHINE_KEXEC}",
            hint="build the kernel with CONFIG_KEXEC=y, CONFIG_CRASH_DUMP=y and CONFIG_KALLSYMS=y",
        )
    iomem = parse_iomem(told["iomem"])
    region = _crash_region(iomem, told["log"]) if load.kind is LoadKind.CRASH else None
    if linked_at and region and not (linked_at[0] in region and linked_at[1] - 1 in region):
        raise UnsuitableKernel(
            f"the crash kernel is linked to {linked_at[0]:#x}-{linked_at[1] - 1:#x}, outside of what is reserved: "
            f"{region.start:#x}-{region.last:#x}",
            hint="give the scenario a crashkernel=SIZE@OFFSET around it, or link it elsewhere (CONFIG_PHYSICAL_START)",
        )
    if status := int(told["status"]):
        raise _explain(GuestCommandFailed(load.command, status, told["kexec"]), load, region)
    wanted = "0" if load.command == NOTHING else "1"
    if told["loaded"].strip() not in (wanted, ""):
        raise GuestCommandFailed(
            load.command, 0, f"kexec was content, but {_loaded(load)} is not {wanted}", hint="see console.log"
        )
    return Self(
        iomem=iomem,
        symbols=found,
        crash_notes=parse_crash_notes(told["notes"]),
        vmcoreinfo=parse_vmcoreinfo(told["vmcoreinfo"]),
        crash_region=region,
        per_cpu=parse_per_cpu(told["log"]),
        efi=efi.parse(told["efi"]),
    )


def _crash_region(iomem: tuple[Range, ...], log: str) -> Range:
    """The memory that crashkernel= reserved. With a high and a low reservation the high one: images go there only
    (crashk_res, kernel/kexec_core.c), the low one is memory for the crash kernel's DMA (crashk_low_res).
    """
    if regions := [r for r in iomem if r.name == CRASH_KERNEL]:
        return max(regions, key=lambda r: r.start)
    words = "\n".join(line for line in log.splitlines() if "crashkernel" in line.lower())
    raise UnsuitableKernel(
        f"the kernel reserved no memory for a crash kernel; it says:\n{words or '(nothing about crashkernel)'}",
        hint="give the guest a crashkernel= that fits into its memory; the kernel needs CONFIG_CRASH_DUMP",
    )


def _explain(problem: GuestCommandFailed, load: Load, region: Range | None) -> Exception:
    """What kexec's words mean for the person who gave the kernel."""
    words = problem.output
    if load.kind is LoadKind.JUMP and problem.status == errno.EINVAL:
        # KEXEC_FLAGS (include/uapi/linux/kexec.h) has KEXEC_PRESERVE_CONTEXT only with the option
        return NotOffered(f"the kernel has no {load.option}: kexec_load(2) does not take KEXEC_PRESERVE_CONTEXT")
    if "Function not implemented" in words:
        if load.option != LOADS[Scenario.load].option:
            return NotOffered(f"the kernel has no {load.option}; kexec says: {words.strip()}")
        return UnsuitableKernel(f"kexec says: {words.strip()}", hint=f"build the kernel with {load.option}=y")
    if "/proc/kcore" in words:
        return UnsuitableKernel(f"kexec says: {words.strip()}", hint="build the kernel with CONFIG_PROC_KCORE=y")
    if region is not None and any(
        sign in words for sign in ("Could not find a free area", "locate_hole", "Cannot allocate memory")
    ):
        return UnsuitableKernel(
            f"the crash kernel does not fit into the {region.size >> 20} MiB reserved; kexec says: {words.strip()}",
            hint="give the guest a larger crashkernel=",
        )
    return problem


def all_symbols(
    shell: Shell,
    store: tuple[Cache, str],
    running: Mapping[str, int],
    deadline: Deadline,
    listener: Callable[[str], None],
) -> SymbolTable:
    """The first kernel's symbols: from the guest once for each kernel, then from the cache.

    store: the cache, and the image's SHA256. running: what the kernel said in this boot.
    """
    cache, sha256 = store
    place = f"kallsyms/{sha256}.{symbols.MARKS}.table.zst"
    with contextlib.suppress(FileNotFoundError):
        kept = (cache.root / place).read_bytes()
        try:
            return symbols.of_another_boot(tables.SymbolTable.unpack(kept), running)
        except ValueError as problem:
            listener(f"note: {cache.root / place} is damaged ({problem})")
    listener("note: reading the kernel's symbols, once for each kernel")
    try:
        text = decompress(_read_kallsyms(shell, deadline), _MOST_KALLSYMS).decode(errors="replace")
    except Undecodable as problem:
        raise GuestError(f"/proc/kallsyms did not come whole out of the guest: {problem}") from problem
    table = symbols.table(symbols.parse_all(text, modules=False))
    found = symbols.of_another_boot(table, running)
    # the cache isn't locked meanwhile: others would wait for this guest, and this guest for their downloads
    cache.keep(place, table.pack())
    return found


def _read_kallsyms(shell: Shell, deadline: Deadline) -> bytes:
    """/proc/kallsyms as gzip packs it. A few seconds under emulation."""
    shell.run(f"{symbols.COMMAND_ALL} >/tmp/rig-symbols", deadline)
    size = int(shell.run("wc -c </tmp/rig-symbols", deadline))
    packed = shell.read_file("/tmp/rig-symbols", 0, size, deadline)
    shell.run("rm /tmp/rig-symbols", deadline)
    return packed


def load_control(shell: Shell, parameters: str, deadline: Deadline) -> int:
    """Load the control module into the first kernel. Returns the physical address of its record.

    parameters: NAME=VALUE words. Raises GuestCommandFailed when the module refuses them, with the kernel's last words.
    """
    try:
        shell.run(shlex.join(["insmod", CONTROL, *parameters.split()]), deadline)
    except GuestCommandFailed as problem:
        said = shell.run("dmesg | tail -n 15", deadline)
        raise GuestCommandFailed(
            problem.command, problem.status, problem.output + said, hint="see the module's sources in kernels/controls"
        ) from problem
    return int(shell.run("cat /sys/module/*/parameters/record", deadline), 16)


def prepare_trigger(shell: Shell, trigger: Trigger, deadline: Deadline) -> None:
    """Make the trigger's settings, and load its module.

    Raises NotOffered, by CONFIG option or what else is lacking, and GuestCommandFailed when the module can't be loaded.
    """
    for setting in trigger.settings:
        _make(shell, setting, deadline)
    if not trigger.module:
        return
    shell.run(f"insmod {TRIGGER}", deadline)
    listed = shell.run(f"cat /sys/module/{MODULE}/parameters/kinds", deadline)
    offered = {name: lacks for name, _, lacks in (line.partition(" ") for line in listed.splitlines())}
    kind = trigger.module
    if kind not in offered:
        raise GuestError(f"the module {MODULE} knows no {kind!r}", hint=f"it knows: {', '.join(offered)}")
    if offered[kind]:
        raise NotOffered(f"the kernel has no {offered[kind]}: {kind} does nothing in it")


def _make(shell: Shell, setting: Setting, deadline: Deadline) -> None:
    """A setting is made when what was written is read back."""
    path, value = setting.path, str(setting.value)
    try:
        told = shell.run(f"echo {value} > {path} && cat {path}", deadline).strip()
    except GuestCommandFailed as problem:
        raise NotOffered(f"no {setting.option}: {problem.output.strip()}") from problem
    if told != value:
        raise NotOffered(f"no {setting.option}: {path} stays {told!r} when {value} is written")
