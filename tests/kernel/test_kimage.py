"""Where machine_kexec's argument is, and what is taken for a struct kimage, in the kernels of 2006 and today's."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from rig.errors import EvidenceError
from rig.facts import Kimage
from rig.kernel import kimage
from rig.kernel.kimage import parse_plain
from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE, Arch, PagingMode, Range
from tests.forge import PGD, cpu, pgd_page

REGION = Range(0x1000000, 0x4FFFFFF, "Crash kernel")  # 64M@16M
DIRECT = 0xC0000000  # the kernel's 4 MiB there are physical 0
IMAGE, DECOY, STACK = 0x200800, 0x210000, 0x220FF8  # physical
ENTRY = 0x1001080
SEGMENTS = (2, 0, 0x100, 0x1001000, 0x1000, 0, 0x2000, 0x1100000, 0x2000)  # count; buf, bufsz, mem, memsz of each
UNLISTED = (0, 0, 0, 0)  # segments that are not found
NEW = (0xE, DIRECT + IMAGE, DIRECT + IMAGE, ENTRY, 0xC1020000, *SEGMENTS)
OLD = (0xE, DIRECT + IMAGE, DIRECT + IMAGE, 0, ENTRY, 0xC1020000, *SEGMENTS)
POINTER = 0xC0300000  # a whole page's address, behind the segments


def read(
    image: tuple[int, ...], *, eax: int, on_stack: int, decoy: tuple[int, ...] = (), own_tables: bool = True
) -> Kimage:
    """machine_kexec's first instruction: the return address at ESP, above it what may be the argument."""
    pages = {PGD // PAGE_SIZE: bytearray(pgd_page())}
    for at, words in ((IMAGE, (*image, POINTER)), (DECOY, decoy), (STACK, (0xC0010000,))):
        blob = b"".join(word.to_bytes(4, "little") for word in words)
        page = pages.setdefault(at // PAGE_SIZE, bytearray(PAGE_SIZE))
        page[at % PAGE_SIZE : at % PAGE_SIZE + len(blob)] = blob
    pages[STACK // PAGE_SIZE][STACK % PAGE_SIZE + 4 : STACK % PAGE_SIZE + 8] = on_stack.to_bytes(4, "little")
    state = cpu(0, rsp=DIRECT + STACK)
    state = replace(state, general={**state.general, "rax": eax})
    memory = PagesMemory({pfn: bytes(page) for pfn, page in pages.items()})
    return kimage.read(memory, PagingMode.TWO_LEVEL, state, Arch.I386, REGION, own_tables=own_tables)


def test_in_the_register_as_since_2_6_20() -> None:
    found = read(NEW, eax=DIRECT + IMAGE, on_stack=0)
    assert (found.address, found.start) == (DIRECT + IMAGE, ENTRY)
    assert found.segments == ((0x1001000, 0x1000), (0x1100000, 0x2000))
    assert found.pages == (POINTER - DIRECT,)
    assert found.place == "EAX"


@pytest.mark.parametrize("eax", [0, 0xDEADBEE0, DIRECT + DECOY])
@pytest.mark.parametrize(
    "image",
    [
        OLD,
        (*OLD[:6], *UNLISTED),  # entry points to head
        (OLD[0], DIRECT, DIRECT, *OLD[3:]),  # start lies in a segment
    ],
)
def test_on_the_stack_whatever_the_register_holds(image: tuple[int, ...], eax: int) -> None:
    """A decoy's fifth word may look like an entry: nothing else of it fits."""
    found = read(image, eax=eax, on_stack=DIRECT + IMAGE, decoy=(1, 2, 3, 4, 0x2000000, 6, 7))
    assert (found.address, found.start) == (DIRECT + IMAGE, ENTRY)
    assert found.place == "the stack"


def test_the_tables_that_it_points_to() -> None:
    """Of 3.2, which still has `destination`, and of 2.6.18, behind whose struct another slab object has a page."""
    assert read(OLD, eax=DIRECT + IMAGE, on_stack=0).pages == (POINTER - DIRECT,)
    assert read(OLD, eax=DIRECT + IMAGE, on_stack=0, own_tables=False).pages == ()
    assert read(NEW, eax=DIRECT + IMAGE, on_stack=0, own_tables=False).pages == (POINTER - DIRECT,)


def test_neither_is_one() -> None:
    with pytest.raises(EvidenceError, match=r"in EAX: .*not mapped.*in the stack: .*makes no sense"):
        read((1, 2, 3, 4, 5, 6), eax=0x90000000, on_stack=DIRECT + IMAGE)


def test_a_struct_at_a_pages_very_end_is_no_struct() -> None:
    with pytest.raises(EvidenceError, match="another page"):
        read(NEW, eax=DIRECT + IMAGE // PAGE_SIZE * PAGE_SIZE + PAGE_SIZE - 8, on_stack=0)


# ---------------------------------------------------------------- of a plain kexec

RAM = (Range(0x1000, 0x9FBFF, "System RAM"), Range(0x100000, 0x1FFFFFFF, "System RAM"))
KERNEL, PURGATORY = (0x1000000, 0x800000), (0x1FFD7000, 0x5000)


def struct_kimage(start: int, *segments: tuple[int, int], destination: tuple[int, ...] = ()) -> bytes:
    """x86_64: head, entry, last_entry, [destination], start, control_code_page, two words between, the segments."""
    virtual = 0xFFFF888001000000
    words = [0x5002, virtual, virtual + 8, *destination, start, 0xFFFFEA0000123440, 0, 0x1234, len(segments)]
    for mem, size in segments:
        words += [0x7F0000001000, size - 0x10, mem, size]
    return struct.pack(f"<{len(words)}Q", *words).ljust(1024, b"\0")


# kexec_file_load has the segments in the order in which they were added
@pytest.mark.parametrize("segments", [(KERNEL, PURGATORY), (PURGATORY, KERNEL)])
@pytest.mark.parametrize("destination", [(), (0x1000000,)])
def test_the_entry_is_in_one_of_the_segments(
    segments: tuple[tuple[int, int], ...], destination: tuple[int, ...]
) -> None:
    # a `destination` of old kernels may itself look like an entry, so it must lie outside
    blob = struct_kimage(0x1FFD7760, *segments, destination=tuple(d - 0x800000 for d in destination))
    image = parse_plain(blob, Arch.AMD64, 0xFFFF888003000000, RAM)
    assert (image.start, image.segments) == (0x1FFD7760, segments)


@pytest.mark.parametrize(
    "blob",
    [
        struct_kimage(0x1FFD7760, KERNEL),  # the entry is in none
        struct_kimage(0x1FFD7760, PURGATORY, PURGATORY),  # one over the other
        struct_kimage(0xA0010, (0xA0000, 0x1000)),  # no RAM there
        bytes(1024),
    ],
)
def test_what_makes_no_sense_is_not_judged(blob: bytes) -> None:
    with pytest.raises(EvidenceError, match="makes no sense"):
        parse_plain(blob, Arch.AMD64, 0xFFFF888003000000, RAM)
