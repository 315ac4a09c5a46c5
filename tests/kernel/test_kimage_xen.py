"""A Xen hypervisor's struct kexec_image, at the physical page that its virtual address leads to."""

from __future__ import annotations

import struct

import pytest

from rig.errors import EvidenceError
from rig.facts import Kimage
from rig.kernel import kimage
from rig.kernel.pagelist import PageList
from rig.memory.image import PagesMemory
from rig.model import Arch, CpuState, PagingMode, Range
from tests.forge import cpu

REGION = Range(0x800000, 0xBFFFFF, "Crash kernel")
IMAGE, LIST, PAGE_LIST = 0x5100, 0x5800, 0x6000  # identity-mapped
SEGMENTS = [
    (0x1000, 0x30, 0x800000, 0x1000),
    (0x2000, 0x1FFF, 0x900000, 0x2000),
    (0, 0, 0, 0x100000),  # nothing to copy: the first MiB is only to be mapped
]


def forged(
    entry: int, segments: list[tuple[int, int, int, int]], count: int | None = None
) -> tuple[PagesMemory, CpuState]:
    """A struct with that entry point and these segments: buffer, bytes of it, destination, bytes. And a list of pages:
    one to be copied to 0x800000."""
    page = bytearray(4096)
    count = len(segments) if count is None else count
    struct.pack_into("<BxH4xQI4xQ", page, IMAGE % 4096, 1, 0x3E, entry, count, LIST)
    struct.pack_into("<Q", page, IMAGE % 4096 + 32, PAGE_LIST)
    for number, segment in enumerate(segments):
        struct.pack_into("<4Q", page, LIST % 4096 + number * 32, *segment)
    # PML4, PDPT, page directory whose first entry is a 2 MiB page
    tables = {1: struct.pack("<Q", 0x2003), 2: struct.pack("<Q", 0x3003), 3: struct.pack("<Q", 0x83)}
    pages = {pfn: blob.ljust(4096, b"\0") for pfn, blob in tables.items()} | {5: bytes(page)}
    pages[6] = struct.pack("<3Q", 0x800000 | 1, 0x700000 | 8, 4).ljust(4096, b"\0")
    state = cpu(0)
    at_entry = type(state)(**{**vars(state), "cr3": 0x1000, "general": {"rdi": IMAGE}})
    return PagesMemory(pages), at_entry


def image(entry: int, segments: list[tuple[int, int, int, int]], count: int | None = None) -> Kimage:
    memory, at_entry = forged(entry, segments, count)
    return kimage.read(memory, PagingMode.FOUR_LEVEL, at_entry, Arch.AMD64, REGION, xen=True)


def plain(entry: int, ram: Range) -> tuple[Kimage, PageList]:
    memory, at_entry = forged(entry, SEGMENTS)
    return kimage.read_plain(memory, PagingMode.FOUR_LEVEL, at_entry, Arch.AMD64, [ram], xen=True)


def test_the_entry_and_the_segments_are_found() -> None:
    found = image(0xA00760, SEGMENTS)
    assert (found.address, found.start) == (IMAGE, 0xA00760)
    assert found.segments == ((0x800000, 0x1000), (0x900000, 0x2000), (0, 0x100000))


def test_segments_that_would_be_copied_elsewhere_are_not_believed() -> None:
    assert image(0xA00760, [*SEGMENTS, (0x3000, 0x10, 0x400000, 0x1000)]).segments == ()


def test_no_entry_in_the_crash_region_or_no_segments_make_no_sense() -> None:
    with pytest.raises(EvidenceError, match="no entry point inside the crash region"):
        image(0x400000, SEGMENTS)
    with pytest.raises(EvidenceError, match="can't have 0 segments"):
        image(0xA00760, [], count=0)


def test_a_plain_kexecs_image_is_what_is_copied() -> None:
    found, copied = plain(0x900010, Range(0x100000, 0xFFFFFF, "System RAM"))
    assert (found.start, found.segments) == (0x900010, ((0x800000, 0x1000), (0x900000, 0x2000)))
    assert (copied.destinations.tolist(), copied.sources.tolist()) == ([0x800000], [0x700000])
    assert found.lists == (PAGE_LIST,)


@pytest.mark.parametrize(
    ("entry", "ram"),
    [
        (0x902000, Range(0x100000, 0xFFFFFF, "System RAM")),  # behind the last segment
        (0x900010, Range(0x100000, 0x8FFFFF, "System RAM")),  # of which one is not in RAM
    ],
)
def test_a_plain_image_that_makes_no_sense_is_not_believed(entry: int, ram: Range) -> None:
    with pytest.raises(EvidenceError, match="makes no sense"):
        plain(entry, ram)
