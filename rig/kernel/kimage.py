"""`struct kimage` (include/linux/kexec.h), as far as the rig reads it: where the new image is entered.

Every assumption about its layout is here. The struct begins

    kimage_entry_t head;  kimage_entry_t *entry;  kimage_entry_t *last_entry;
    [unsigned long destination;]     only up to 2.6.19
    unsigned long start;             entry point of the new image
    struct page *control_code_page;

so `start` is word 3 or, in old kernels, word 4. Which one it is follows from the values: for kdump the entry lies in
the crash region, and `destination` and struct page pointers don't.
"""

from __future__ import annotations

from rig.errors import EvidenceError
from rig.evidence import Kimage
from rig.model import PAGE_SIZE, Arch, CpuState, Range

WORDS = 6
# How much of the struct is searched for pointers to whole pages: `arch`, with the image's page tables, is near its end.
SIZE = 1024
_LAYOUTS = (
    (3, "start is word 3 (2.6.20 and newer)"),
    (4, "start is word 4 (with destination, up to 2.6.19)"),
)


def argument(arch: Arch, cpu: CpuState) -> int:
    """The first argument at a function's first instruction: RDI; EAX on i386 (-mregparm=3, all since 2.6.20)."""
    return cpu.general["rdi"] if arch is Arch.AMD64 else cpu.general["rax"] & 0xFFFFFFFF


def page_pointers(blob: bytes, arch: Arch) -> list[int]:
    """Words in the struct that may be virtual addresses of whole pages: page-aligned, in the kernel's half."""
    lowest = 1 << 63 if arch is Arch.AMD64 else 0x40000000  # 1G/3G is the lowest split there is
    words = (int.from_bytes(blob[i : i + arch.word], "little") for i in range(0, len(blob), arch.word))
    return [word for word in words if word >= lowest and word % PAGE_SIZE == 0]


def parse(blob: bytes, arch: Arch, address: int, crash_region: Range) -> Kimage:
    """Read WORDS words of a struct kimage. EvidenceError when no known layout puts the entry into the crash region."""
    word = arch.word
    words = [int.from_bytes(blob[i : i + word], "little") for i in range(0, WORDS * word, word)]
    for index, layout in _LAYOUTS:
        if words[index] in crash_region:
            return Kimage(address, words[index], layout)
    raise EvidenceError(
        f"struct kimage at {address:#x} makes no sense: no entry point inside the crash region "
        f"{crash_region.start:#x}-{crash_region.last:#x} (words: {', '.join(f'{w:#x}' for w in words)})"
    )
