"""`struct kimage` (include/linux/kexec.h), as far as the rig reads it: where the new image is entered.

Every assumption about its layout is here. The struct begins

    kimage_entry_t head;  kimage_entry_t *entry;  kimage_entry_t *last_entry;
    [unsigned long destination;]     in 2.6.18, still there in 3.4, gone since
    unsigned long start;             entry point of the new image
    struct page *control_code_page;

so `start` is word 3 or, in old kernels, word 4. Which one it is follows from the values: for kdump the entry lies in
the crash region, and `destination` (0: nothing is copied) and struct page pointers don't. Further on there is, at a
place that differs,

    unsigned long nr_segments;
    struct { void *buf; size_t bufsz; unsigned long mem; size_t memsz; } segment[KEXEC_SEGMENT_MAX];

It is found by plausibility, too. For a plain kexec there is no crash region to go by: there the list of segments must
be in RAM, and the entry in one of them.

Near its end, with `arch`, are pointers to the page tables that were allocated with the image (ages.TABLES_ALLOCATED).

machine_kexec gets the struct's address in the first argument's register or, on i386 without CONFIG_REGPARM (an option
up to 2.6.19, always on since), on the stack above the return address. Which one follows from what is there.

A Xen hypervisor has a struct of its own instead (xen/include/xen/kimage.h):

    struct kexec_image { uint8_t type; uint16_t arch; uint64_t entry_maddr; uint32_t nr_segments;
                         struct { void *buf; uint64_t buf_size, dest_maddr, dest_size; } *segments;
                         kimage_entry_t head; ... }   head: where the list begins, without a flag
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from rig.errors import EvidenceError
from rig.facts import Kimage
from rig.kernel import pagelist, symbols
from rig.kernel.pagelist import PageList
from rig.kernel.table import SymbolTable
from rig.memory import paging
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, Arch, CpuState, PagingMode, Range

WORDS = 6
# How much of the struct is searched for pointers to whole pages: `arch`, with the image's page tables, is near its end.
SIZE = 1024
SEGMENT_MAX = 16  # KEXEC_SEGMENT_MAX
_LAYOUTS = (
    (3, "start is word 3"),
    (4, "start is word 4, behind destination"),
)
_XEN_SEGMENTS = ((16, 4), (24, 8))  # (offset, bytes) of nr_segments and segments
_XEN_HEAD = 32
_XEN_LAYOUTS = ((1, "entry_maddr of Xen's struct kexec_image"),)


def arguments(memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch) -> dict[str, int]:
    """What may be the first argument at a function's first instruction, by where it is: the register's first."""
    if arch is Arch.AMD64:
        return {"RDI": cpu.general["rdi"]}
    found = {"EAX": cpu.general["rax"] & 0xFFFFFFFF}
    with contextlib.suppress(paging.NotMapped, OutsideMemory):
        at = paging.translate(memory, mode, cpu.cr3, cpu.general["rsp"] + arch.word).physical
        found["the stack"] = int.from_bytes(memory.read(at, arch.word), "little")
    return found


def read(
    memory: Memory,
    mode: PagingMode,
    cpu: CpuState,
    arch: Arch,
    crash_region: Range,
    *,
    own_tables: bool = True,
    xen: bool = False,
) -> Kimage:
    """The struct that machine_kexec was given; cpu: at its first instruction. EvidenceError when it makes no sense.

    own_tables: whether one with `destination` points to page tables, by the kernel's age (ages.allocates_tables()):
    what lies behind one that doesn't is others'.

    Of two places that may hold the argument, the one counts whose struct bears out what it is: nothing is moved for
    kdump, so that `entry` still points to `head` (do_kimage_alloc_init(), kernel/kexec_core.c); or `start` lies in one
    of the image's own segments. xen: the struct is a hypervisor's.
    """
    if xen:
        return _read_xen(memory, mode, cpu, arch, crash_region)
    found: list[Kimage] = []
    problems = []
    for place, address in arguments(memory, mode, cpu, arch).items():
        try:
            blob, image, sure = _read_at(memory, mode, cpu, arch, (address, place), crash_region)
        except EvidenceError as problem:
            problems.append(f"in {place}: {problem.message}")
            continue
        if own_tables or not _has_destination(image):
            image = replace(image, pages=_pages(memory, mode, cpu, page_pointers(blob, arch)))
        if sure:
            return image
        found.append(image)
    if not found:
        raise EvidenceError(f"the argument of {symbols.MACHINE_KEXEC} can't be read; {'; '.join(problems)}")
    return found[0]


def _read_at(
    memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch, argument: tuple[int, str], crash_region: Range
) -> tuple[bytes, Kimage, bool]:
    """The struct at a virtual address, and whether it bears out that it is one. argument: the address, where it was."""
    address, place = argument
    blob = _struct(memory, mode, cpu, address)
    image = parse(blob, arch, address, crash_region)
    places = segments(blob, arch, crash_region)
    entry = int.from_bytes(blob[arch.word : 2 * arch.word], "little")
    sure = entry == address or any(start <= image.start < start + size for start, size in places)
    return blob, replace(_placed(image, place), segments=places), sure


def _has_destination(image: Kimage) -> bool:
    return image.layout.startswith(_LAYOUTS[1][1])


def _placed(image: Kimage, place: str) -> Kimage:
    return replace(image, layout=f"{image.layout}; its address in {place}", place=place)


def read_plain(
    memory: Memory,
    mode: PagingMode,
    cpu: CpuState,
    arch: Arch,
    ram: Sequence[Range],
    *,
    own_tables: bool = True,
    xen: bool = False,
) -> tuple[Kimage, PageList]:
    """The same of a plain kexec, and what is copied where. ram: what an image may be copied to."""
    first = _first_plain_xen if xen else _first_plain
    blob, image, place = first(memory, mode, cpu, arch, ram)
    if xen:
        head = int.from_bytes(blob[_XEN_HEAD : _XEN_HEAD + arch.word], "little") | pagelist.INDIRECTION
    else:
        head = int.from_bytes(blob[: arch.word], "little")
    copied = pagelist.read(memory, head, arch.word)
    inside = np.zeros(len(copied.destinations), np.bool_)
    for mem, size in image.segments:
        inside |= (copied.destinations >= mem) & (copied.destinations < mem + size)
    if not inside.all():
        stray = int(copied.destinations[~inside][0])
        raise EvidenceError(f"struct kimage contradicts itself: {stray:#x} is copied to, but lies in no segment")
    # A hypervisor's struct leads to struct page_info, never to a page.
    tables = not xen and (own_tables or not _has_destination(image))
    pages = _pages(memory, mode, cpu, page_pointers(blob, arch)) if tables else ()
    return replace(_placed(image, place), pages=pages, lists=copied.lists), copied


def _first_plain(
    memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch, ram: Sequence[Range]
) -> tuple[bytes, Kimage, str]:
    """The first of the places that may hold the argument whose struct makes sense."""
    problems = []
    for place, address in arguments(memory, mode, cpu, arch).items():
        try:
            blob = _struct(memory, mode, cpu, address)
            return blob, parse_plain(blob, arch, address, ram), place
        except EvidenceError as problem:
            problems.append(f"in {place}: {problem.message}")
    raise EvidenceError(f"the argument of {symbols.MACHINE_KEXEC} can't be read; {'; '.join(problems)}")


def _first_plain_xen(
    memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch, ram: Sequence[Range]
) -> tuple[bytes, Kimage, str]:
    ((place, address),) = arguments(memory, mode, cpu, arch).items()
    blob = _struct(memory, mode, cpu, address)
    copied = [segment for segment, size in _xen_list(memory, mode, cpu, address, blob) if size]
    entry = int.from_bytes(blob[arch.word : 2 * arch.word], "little")
    if not _in_ram(copied, ram) or not any(mem <= entry < mem + size for mem, size in copied):
        raise EvidenceError(
            f"struct kexec_image at {address:#x} makes no sense: entry {entry:#x}, "
            f"segments at {', '.join(f'{mem:#x}' for mem, _ in copied) or 'none'}"
        )
    return blob, Kimage(address, entry, _XEN_LAYOUTS[0][1], segments=tuple(copied)), place


def _struct(memory: Memory, mode: PagingMode, cpu: CpuState, address: int) -> bytes:
    """Up to SIZE bytes at a virtual address."""
    try:
        where = paging.translate(memory, mode, cpu.cr3, address).physical
        # never into the next page: that one may lie elsewhere, or nowhere
        return memory.read(where, min(SIZE, PAGE_SIZE - where % PAGE_SIZE))
    except (paging.NotMapped, OutsideMemory) as problem:
        raise EvidenceError(f"{address:#x} is no pointer: {problem}") from problem


def _pages(memory: Memory, mode: PagingMode, cpu: CpuState, pointers: Iterable[int]) -> tuple[int, ...]:
    pages = []
    for virtual in pointers:
        with contextlib.suppress(paging.NotMapped):
            pages.append(paging.translate(memory, mode, cpu.cr3, virtual).physical)
    return tuple(pages)


def _read_xen(memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch, crash_region: Range) -> Kimage:
    ((place, address),) = arguments(memory, mode, cpu, arch).items()
    blob = _struct(memory, mode, cpu, address)
    image = parse(blob, arch, address, crash_region, _XEN_LAYOUTS)
    found = _xen_list(memory, mode, cpu, address, blob)
    copied = tuple(segment for segment, size in found if size)
    # As for Linux, none unless all are plausible; what is only mapped may lie anywhere.
    believed = tuple(segment for segment, _ in found) if copied and _plausible(copied, crash_region) else ()
    return replace(_placed(image, place), segments=believed)


def _xen_list(
    memory: Memory, mode: PagingMode, cpu: CpuState, address: int, blob: bytes
) -> list[tuple[tuple[int, int], int]]:
    """The segments of the struct kexec_image `blob`, each with how many bytes of it are copied there.

    One without any is only to be mapped: kexec-tools asks for the first MiB so (kexec-xen.c, xen_kexec_load()).
    """
    count, listed = (int.from_bytes(blob[at : at + size], "little") for at, size in _XEN_SEGMENTS)
    if not 1 <= count <= SEGMENT_MAX:
        raise EvidenceError(f"struct kexec_image at {address:#x} can't have {count} segments")
    fields = _struct(memory, mode, cpu, listed)[: 4 * 8 * count]
    words = [int.from_bytes(fields[i : i + 8], "little") for i in range(0, len(fields), 8)]
    return list(zip(_segments_at(words, count), words[1::4], strict=False))


def page_pointers(blob: bytes, arch: Arch) -> list[int]:
    """Words in the struct that may be virtual addresses of whole pages: page-aligned, in the kernel's half."""
    lowest = 1 << 63 if arch is Arch.AMD64 else 0x40000000  # 1G/3G is the lowest split there is
    words = (int.from_bytes(blob[i : i + arch.word], "little") for i in range(0, len(blob), arch.word))
    return [word for word in words if word >= lowest and word % PAGE_SIZE == 0]


def parse(
    blob: bytes, arch: Arch, address: int, crash_region: Range, layouts: Iterable[tuple[int, str]] = _LAYOUTS
) -> Kimage:
    """Read WORDS words of a struct kimage. EvidenceError when no known layout puts the entry into the crash region."""
    word = arch.word
    if len(blob) < WORDS * word:
        raise EvidenceError(f"struct kimage at {address:#x} goes on in another page, which is not looked at")
    words = [int.from_bytes(blob[i : i + word], "little") for i in range(0, WORDS * word, word)]
    for index, layout in layouts:
        if words[index] in crash_region:
            return Kimage(address, words[index], layout)
    raise EvidenceError(
        f"struct kimage at {address:#x} makes no sense: no entry point inside the crash region "
        f"{crash_region.start:#x}-{crash_region.last:#x} (words: {', '.join(f'{w:#x}' for w in words)})"
    )


def parse_plain(blob: bytes, arch: Arch, address: int, ram: Sequence[Range]) -> Kimage:
    """Entry and segments of a plain kexec's image. EvidenceError when no known layout has its entry in a segment."""
    words = [int.from_bytes(blob[i : i + arch.word], "little") for i in range(0, len(blob), arch.word)]
    fitting = [found for found in _segment_lists(words) if _in_ram(found, ram)]
    if len(fitting) == 1:
        for index, layout in _LAYOUTS:
            if any(mem <= words[index] < mem + size for mem, size in fitting[0]):
                return Kimage(address, words[index], layout, segments=fitting[0])
    raise EvidenceError(
        f"struct kimage at {address:#x} makes no sense: {len(fitting)} lists of segments in RAM, and no entry point in "
        f"one of them (words: {', '.join(f'{w:#x}' for w in words[:WORDS])})"
    )


def start_at(image: Kimage, arch: Arch) -> int:
    """Virtual address of the word `start` in Linux's struct. EvidenceError when its layout is none of the known."""
    for index, layout in _LAYOUTS:
        if image.layout.startswith(layout):
            return image.address + index * arch.word
    raise EvidenceError(f"where `start` lies in struct kimage is not known: {image.layout}")


def _in_ram(found: Iterable[tuple[int, int]], ram: Sequence[Range]) -> bool:
    """Whether all segments lie in RAM, apart from each other; kexec_file_load doesn't sort them."""
    apart = all(mem + size <= following for (mem, size), (following, _) in pairwise(sorted(found)))
    return apart and all(any(mem in r and mem + size - 1 in r for r in ram) for mem, size in found)


def _segment_lists(words: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    """Whatever in the struct looks like nr_segments with the segments behind it."""
    lists = [_segments_at(list(words[i + 1 :]), count) for i, count in enumerate(words) if 1 <= count <= SEGMENT_MAX]
    return [found for found in lists if found]


def segments(blob: bytes, arch: Arch, crash_region: Range) -> tuple[tuple[int, int], ...]:
    """Where the image's segments go: (physical address, bytes), as struct kimage has them.

    Empty when none or several places in the struct look like the list: whole pages inside the crash region, ascending.
    """
    words = [int.from_bytes(blob[i : i + arch.word], "little") for i in range(0, len(blob), arch.word)]
    fitting = [found for found in _segment_lists(words) if _plausible(found, crash_region)]
    return fitting[0] if len(fitting) == 1 else ()


def _segments_at(words: list[int], count: int) -> tuple[tuple[int, int], ...]:
    if len(words) < 4 * count:
        return ()
    fields = [words[i : i + 4] for i in range(0, 4 * count, 4)]
    if any(bufsz > memsz or memsz == 0 or (mem | memsz) % PAGE_SIZE for _, bufsz, mem, memsz in fields):
        return ()
    return tuple((mem, memsz) for _, _, mem, memsz in fields)


def _plausible(found: tuple[tuple[int, int], ...], crash_region: Range) -> bool:
    inside = all(mem in crash_region and mem + size - 1 in crash_region for mem, size in found)
    return inside and all(mem + size <= following for (mem, size), (following, _) in pairwise(found))


def code_pages(kallsyms: SymbolTable, text: int | None, iomem: Iterable[Range]) -> list[int]:
    """Physical addresses of the pages that the kernel's own copy of the control code is in; [] when not known.

    text: virtual address of _text.
    """
    code = next((r for r in iomem if r.name == "Kernel code"), None)
    if text is None or code is None:
        return []
    found = [address - text + code.start for address in symbols.control_code(kallsyms)]
    # no control code is larger than a page
    return sorted({(at & ~(PAGE_SIZE - 1)) + n * PAGE_SIZE for at in found for n in (0, 1)})
