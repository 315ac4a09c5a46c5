"""A kernel as the linker left it: an ELF vmlinux, which kexec enters where it was linked to. Pure but for reading it.

Before CONFIG_RELOCATABLE a crash kernel was a kernel of its own, built for the place that is reserved for it
(CONFIG_PHYSICAL_START; Documentation/kdump/kdump.txt of 2.6.18), and kexec took its vmlinux: a bzImage that isn't
relocatable runs at 1 MiB only. What the boot code of a bzImage finds out, kexec has to pass on: --args-linux.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from rig import elf
from rig.elf import ElfError
from rig.errors import UnsuitableKernel
from rig.kernel.image import release_of
from rig.model import Arch, Guest, Kernel, KernelFiles

# How kexec is told; kexec(8). An old kernel reads no memory map but that on its command line.
OPTIONS = "--args-linux --pass-memmap-cmdline"
_ARCHS = {"EM_386": Arch.I386, "EM_X86_64": Arch.AMD64}
_BANNER = re.compile(rb"Linux version (\d\S*) ")  # init/version.c, linux_banner


@dataclass(frozen=True)
class Linked:
    """place: physical addresses [start, end) of all that is loaded. sha256: of the whole file, in hex."""

    release: str
    arch: Arch
    place: tuple[int, int]
    sha256: str


def is_elf(path: Path) -> bool:
    """Whether a file is an ELF file; one that can't be read is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(elf.MAGIC)) == elf.MAGIC
    except OSError:
        return False


def parse(data: bytes) -> Linked:
    """:raise UnsuitableKernel: not the vmlinux of an x86 kernel. The message reads on from the file's name."""
    try:
        file = elf.of_bytes(data)
        loads = [segment for segment in file.segments if segment.type == elf.PT_LOAD]
    except ElfError as error:
        raise UnsuitableKernel(f"is a broken ELF file: {error}") from error
    banner = _BANNER.search(data)
    if file.type != "ET_EXEC" or file.machine not in _ARCHS or not loads or banner is None:
        raise UnsuitableKernel("is an ELF file, but not the vmlinux of an x86 kernel")
    place = min(load.physical for load in loads), max(load.physical + load.memory_size for load in loads)
    release = release_of(banner[1].decode(errors="replace"))
    return Linked(release, _ARCHS[file.machine], place, hashlib.sha256(data).hexdigest())


def obtain(kernel: Kernel, path: Path, guest: Guest) -> KernelFiles:
    """A user's own vmlinux, to be entered by kexec in this guest.

    :raise UnsuitableKernel: not the vmlinux of an x86 kernel, or of another architecture
    """
    try:
        found = parse(path.read_bytes())
    except OSError as error:
        raise UnsuitableKernel(f"{path} can't be read: {error.strerror}") from error
    except UnsuitableKernel as error:
        raise UnsuitableKernel(f"{path} {error.message}", hint=error.hint) from error
    if found.arch is not guest.arch:
        raise UnsuitableKernel(
            f"{path} is a kernel for {found.arch}, the guest {guest.name} is {guest.arch}",
            hint=f"build it for {guest.arch}, or choose another --guest",
        )
    return KernelFiles(
        kernel.name, found.release, found.arch, path, found.sha256, relocatable=False, linked_at=found.place
    )
