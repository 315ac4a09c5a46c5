"""Addresses of kernel symbols: from the guest's own /proc/kallsyms, or from a vmlinux moved by KASLR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rig.errors import UnsuitableKernel

# The instant `panic` (DESIGN), best first. Kernels before 4.7 (7bbee5ca3896) have no __crash_kexec.
PANIC_SYMBOLS = ("__crash_kexec", "crash_kexec")
MACHINE_KEXEC = "machine_kexec"
# A shell line that prints their lines of /proc/kallsyms. Emulated, reading all 170,000 lines takes 0.3 s for one fixed
# string and 1.5 s for a pattern; these are in the kernel's first few thousand functions, so each grep ends early.
COMMAND = f"for s in {MACHINE_KEXEC} {' '.join(PANIC_SYMBOLS)}; do grep -m 1 -wF $s /proc/kallsyms; done"

_LINE = re.compile(r"^([0-9a-f]{8,16}) [A-Za-z] (\S+)$")


def parse_kallsyms(text: str) -> dict[str, int]:
    """Name -> address. Lines of modules and anything malformed are left out, as are hidden (zero) addresses.

    Percpu symbols may legitimately be 0: they are left out with them.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        if (match := _LINE.match(line.strip())) and (address := int(match[1], 16)):
            found.setdefault(match[2], address)
    return found


def from_vmlinux(vmlinux: Path, running: Mapping[str, int]) -> dict[str, int]:
    """All symbols of a vmlinux, moved to where the running kernel has its own.

    running: what kallsyms gave. Raises UnsuitableKernel when the file is not an ELF with a symbol table, or when the
    two can't be the same kernel (no symbol in common, or they moved by different amounts).
    """
    try:
        with vmlinux.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise UnsuitableKernel(f"{vmlinux} has no symbol table", hint="give the unstripped vmlinux")
            linked = {s.name: int(s["st_value"]) for s in table.iter_symbols() if s.name and s["st_value"]}
    except (OSError, ELFError) as problem:
        raise UnsuitableKernel(f"{vmlinux} is not a vmlinux: {problem}") from problem
    common = [n for n in (MACHINE_KEXEC, *PANIC_SYMBOLS) if n in linked and n in running]
    moves = {running[n] - linked[n] for n in common}
    if len(moves) != 1:
        raise UnsuitableKernel(
            f"{vmlinux} is not the kernel that runs: "
            + (f"{', '.join(common)} lie at different distances" if moves else "no symbol in common"),
            hint="give the vmlinux of the very same build",
        )
    (move,) = moves
    return {name: address + move for name, address in linked.items()}
