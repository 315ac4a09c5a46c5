"""Addresses of kernel symbols: from the guest's own /proc/kallsyms, or from a vmlinux moved by KASLR."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rig.errors import UnsuitableKernel
from rig.late import late
from rig.model import MACHINE_KEXEC as MACHINE_KEXEC
from rig.model import PAGE_SIZE, Range, Symbol

if TYPE_CHECKING:
    from rig import elf
    from rig.kernel import table as tables
    from rig.kernel.table import SymbolTable
else:
    elf, tables = late("rig.elf"), late("rig.kernel.table")

# The instant `panic` (DESIGN), best first. Kernels before 4.7 (7bbee5ca3896) have no __crash_kexec.
PANIC_SYMBOLS = ("__crash_kexec", "crash_kexec")
# The same of a Xen hypervisor (xen/common/kexec.c), whether dom0 panicked or it crashed itself: the other CPUs are shut
# down from here. Its machine_kexec has the kernel's name.
HYPERVISOR_PANIC = "kexec_crash"
HYPERVISOR_TEXT = "_stext"
TEXT = "_text"  # where the image begins; startup_64, _stext and others are at the same address
# The kernel's own copy of the control code: relocate_kernel_{32,64}.S, and the section around it since 6.14.
CODE_START = ("__relocate_kernel_start", "relocate_kernel", "relocate_new_kernel")
CODE_END = "__relocate_kernel_end"
# Parts of the image that the kernel gives to the page allocator when it is up (arch/x86/mm/init.c, free_initmem();
# arch/x86/mm/mem_encrypt_amd.c, mem_encrypt_free_decrypted_mem()): first symbol, first symbol behind. i386's kallsyms
# has no second one for the first pair.
GIVEN_BACK = (("__init_begin", "__init_end"), ("__start_bss_decrypted_unused", "__end_bss_decrypted"))
_KEPT = frozenset((TEXT, *(name for pair in GIVEN_BACK for name in pair)))  # where others share their address
_MARKED = (MACHINE_KEXEC, *CODE_START, CODE_END, *sorted(_KEPT))  # what is looked for by its name
MARKS = f"{zlib.crc32(' '.join(_MARKED).encode()):08x}"  # which those are: a table that is kept knows no others
# A shell line that prints their lines of /proc/kallsyms. Emulated, reading all 170,000 lines takes 0.3 s for one fixed
# string and 1.5 s for a pattern; these are in the kernel's first few thousand functions, so each grep ends early.
COMMAND = f"for s in {MACHINE_KEXEC} {' '.join(PANIC_SYMBOLS)}; do grep -m 1 -wF $s /proc/kallsyms; done"

# All of them, those of modules at the end of their line in brackets. Packed, since each byte passes a UART.
COMMAND_ALL = "gzip -1 </proc/kallsyms"
COMMAND_MODULES = "grep -F '[' /proc/kallsyms || true"
LOWEST = 0x40000000  # of a kernel's addresses: with a 1G/3G split on i386. Below lie per-CPU offsets.

_LINE = re.compile(r"^([0-9a-f]{8,16}) [A-Za-z] (\S+)$")
_ANY_LINE = re.compile(r"^([0-9a-f]{8,16}) [A-Za-z] ([^\t\n]+)(?:\t\[(.+)\])?$", re.MULTILINE)


def parse_kallsyms(text: str) -> dict[str, int]:
    """Name -> address. Lines of modules and anything malformed are left out, as are hidden (zero) addresses.

    Percpu symbols may legitimately be 0: they are left out with them.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        if (match := _LINE.match(line.strip())) and (address := int(match[1], 16)):
            found.setdefault(match[2], address)
    return found


def parse_all(text: str, *, modules: bool) -> dict[int, str]:
    """Address -> name: of the kernel, or of modules ("name [module]").

    Of several names at one address the first, but for the few that mark where parts of the image begin and end.
    """
    found: dict[int, str] = {}
    for digits, name, module in _ANY_LINE.findall(text):
        address = int(digits, 16)
        if address >= LOWEST and bool(module) == modules and (name in _KEPT or address not in found):
            found[address] = f"{name} [{module}]" if module else name
    return found


def table(found: Mapping[int, str]) -> SymbolTable:
    """All symbols of a kernel, address -> name."""
    return tables.SymbolTable.of(found, _MARKED)


def text_start(symbols: SymbolTable) -> int | None:
    """Where the kernel's image begins, virtual; None without _text."""
    return symbols.marked.get(TEXT)


def text_from(address: int, physical: int, iomem: Iterable[Range]) -> int | None:
    """The same from where one function of the image is, virtual and physical: the image is mapped in one piece.

    For old kernels: in 2.6.18 _text is an absolute symbol before _stext (vmlinux.lds.S, head.S), and those are not in
    kallsyms (scripts/kallsyms.c). None when the function is not in "Kernel code" of /proc/iomem.
    """
    code = next((r for r in iomem if r.name == "Kernel code" and physical in r), None)
    return address - physical + code.start if code is not None else None


def given_back(symbols: SymbolTable) -> tuple[tuple[int, int], ...]:
    """The parts of the image that it no longer owns: [start, end), virtual. Without its end, a part is empty."""
    at = symbols.marked
    return tuple((at[start], at.get(end, at[start])) for start, end in GIVEN_BACK if start in at)


def of_another_boot(symbols: SymbolTable, running: Mapping[str, int]) -> SymbolTable:
    """The same kernel's, moved to where the running one has its own (KASLR).

    running: what kallsyms gave. LookupError when machine_kexec is not among both.
    """
    return symbols.moved(running[MACHINE_KEXEC] - symbols.marked[MACHINE_KEXEC])


def of_interest(
    symbols: SymbolTable, executed: Iterable[int], iomem: Sequence[Range], changed: Iterable[int]
) -> set[int]:
    """Virtual addresses whose symbols the evidence needs: of what was executed, of the kernel's own copy of the
    control code, and of all variables on pages that changed.

    iomem: the first kernel's. changed: pfns.
    """
    addresses = {*executed, *control_code(symbols), *filter(None, [symbols.marked.get(CODE_END)])}
    text = text_start(symbols)
    code = next((r for r in iomem if r.name == "Kernel code"), None)
    if text is None or code is None:
        return addresses
    image = [r for r in iomem if r.name in ("Kernel data", "Kernel bss")]
    for pfn in changed:
        if any(pfn * PAGE_SIZE in r for r in image):
            start = pfn * PAGE_SIZE - code.start + text
            addresses.update(symbols.between(start, start + PAGE_SIZE))
            addresses.add(start)
    return addresses


def control_code(symbols: SymbolTable) -> list[int]:
    """Where the kernel's own copy of the control code begins."""
    return [symbols.marked[name] for name in CODE_START if name in symbols.marked]


def placed(symbols: SymbolTable, addresses: Iterable[int]) -> tuple[Symbol, ...]:
    """The symbols that these addresses lie in, ascending.

    symbols: all that there are, since a symbol ends where the next one begins; the last one with its page.
    """
    found: list[Symbol] = []
    for start, following, first in symbols.around(addresses):
        end = following if following is not None else (start | PAGE_SIZE - 1) + 1
        if first < end:
            found.append(Symbol(symbols[start], start, end))
    return tuple(found)


def from_hypervisor(image: Path) -> dict[int, str]:
    """All symbols of a Xen hypervisor, address -> name. It runs where it was linked to. Errors as from_vmlinux().

    Where its image begins has the name that it has in a kernel, too.
    """
    found: dict[int, str] = {}
    for name, address in _symbol_table(image):
        if name == HYPERVISOR_TEXT:
            found[address] = TEXT
        elif address >= LOWEST:
            found.setdefault(address, name)
    return found


def named(image: Path, names: Collection[str]) -> dict[str, int]:
    """Name -> address of an ELF file's symbols of these names. UnsuitableKernel naming those that it lacks."""
    found = {name: address for name, address in _symbol_table(image) if name in names}
    if missing := [name for name in names if name not in found]:
        raise UnsuitableKernel(f"{image} has no symbol {', '.join(missing)}: not a hypervisor that the rig knows")
    return found


def _symbol_table(image: Path) -> list[tuple[str, int]]:
    """(name, address) of an ELF file's symbols. UnsuitableKernel when it is none, or has no symbol table."""
    try:
        with image.open("rb") as file:
            table = elf.of_file(file).symbols()
    except (OSError, elf.ElfError) as problem:
        raise UnsuitableKernel(f"{image} is not a vmlinux: {problem}") from problem
    if table is None:
        raise UnsuitableKernel(f"{image} has no symbol table", hint="give the unstripped vmlinux")
    return [(name, value) for name, value in table if value]


def from_vmlinux(vmlinux: Path, running: Mapping[str, int]) -> dict[int, str]:
    """All symbols of a vmlinux, address -> name, moved to where the running kernel has its own.

    running: what kallsyms gave. Raises UnsuitableKernel when the file is not an ELF with a symbol table, or when the
    two can't be the same kernel (no symbol in common, or they moved by different amounts).
    """
    entries = _symbol_table(vmlinux)
    linked = dict(entries)
    common = [n for n in (MACHINE_KEXEC, *PANIC_SYMBOLS) if n in linked and n in running]
    moves = {running[n] - linked[n] for n in common}
    if len(moves) != 1:
        raise UnsuitableKernel(
            f"{vmlinux} is not the kernel that runs: "
            + (f"{', '.join(common)} lie at different distances" if moves else "no symbol in common"),
            hint="give the vmlinux of the very same build",
        )
    (move,) = moves
    # of several names at one address the one set last stays: _text, or else the first of the table
    entries.sort(key=lambda entry: entry[0] not in _KEPT)
    return {address + move: name for name, address in reversed(entries) if address >= LOWEST}
