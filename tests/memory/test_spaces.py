from __future__ import annotations

import struct

from rig.memory.image import PagesMemory
from rig.memory.spaces import Difference, Moved, compare, worst
from rig.memory.walk import AddressSpace, walk
from rig.model import PagingMode


def space(pde: int, **ptes: int) -> AddressSpace:
    """2-level: PDE [1], and the page table at 0x2000; p0=... is its entry 0."""
    entries = [0] * 1024
    for name, value in ptes.items():
        entries[int(name[1:])] = value
    memory = PagesMemory({1: struct.pack("<1024I", 0, pde, *[0] * 1022), 2: struct.pack("<1024I", *entries)})
    return walk(memory, PagingMode.TWO_LEVEL, 0x1000)


def test_each_kind_of_difference_is_counted_and_shown() -> None:
    before = space(0x2007, p0=0x5007, p1=0x6007, p2=0x7007)
    after = space(0x2007, p0=0x9007, p2=0x7005, p3=0x8067)  # moved, gone, read-only, new
    assert compare(before, after) == Difference(
        lost=1,
        redirected=1,
        permissions=1,
        added=1,
        examples=(Moved(0x400000, 0x5000, 0x9000), Moved(0x401000, 0x6000, None), Moved(0x403000, None, 0x8000)),
    )


def test_accessed_and_dirty_bits_are_no_difference() -> None:
    assert compare(space(0x2007, p0=0x5007), space(0x2027, p0=0x5067)) == Difference()


def test_a_large_page_that_was_split_is_compared_piece_by_piece() -> None:
    """4 MiB at 0x800000 before; after it 4 KiB pages, all where they were but one, and the last three are gone."""
    ptes = {f"p{i}": 0x800000 + i * 4096 + 7 for i in range(1021)}
    large = space(0x800087)
    assert compare(large, space(0x2007, **ptes)) == Difference(lost=1, examples=(Moved(0x7FD000, 0xBFD000, None),))
    found = compare(large, space(0x2007, **{**ptes, "p5": 0x5007}))
    assert (found.lost, found.redirected) == (1, 1)
    assert found.examples[0] == Moved(0x405000, 0x805000, 0x5000)


def test_the_worst_of_several() -> None:
    moved = (Moved(1, 2, 3),)
    assert worst([Difference(lost=3), Difference(lost=1, added=2, examples=moved)]) == Difference(3, 0, 0, 2, moved)
    assert worst([]) == Difference()
