"""Whole address spaces: the tables of test_paging, loops, repeats and garbage."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from rig.errors import EvidenceError
from rig.memory.image import PagesMemory
from rig.memory.paging import (
    AddressSpace,
    Flags,
    NotMapped,
    Problem,
    ProblemKind,
    TablePage,
    translate,
    walk,
)
from rig.memory.walk import require_all_read
from rig.model import PagingMode
from tests.memory.hexmemory import hex_memory
from tests.memory.test_paging import FOUR_LEVEL, MEMORY, PAE_TABLES, TWO_LEVEL

TWO, PAE, FOUR, FIVE = PagingMode
W, U, X, G, A, D = Flags


def _rows(space: AddressSpace) -> list[tuple[int, int, int, Flags]]:
    return [
        (int(v), int(p), int(s), Flags(int(f)))
        for v, p, s, f in zip(space.virtual, space.physical, space.size, space.flags, strict=True)
    ]


def test_two_level_in_full() -> None:
    space = walk(TWO_LEVEL, TWO, 0x1000)
    assert _rows(space) == [
        (0x00000000, 0x00005000, 4 << 10, U | X | G | A),
        (0x00001000, 0x00006000, 4 << 10, W | X | A | D),
        (0x003FF000, 0xFFFFF000, 4 << 10, W | U | X | A | D),
        (0x00400000, 0x00400000, 4 << 20, W | X | A | D),
        (0x00800000, 0x3_00C00000, 4 << 20, X | A | D),
        (0x01400000, 0x00005000, 4 << 10, U | X | G | A),
        (0x01401000, 0x00006000, 4 << 10, X | A | D),
        (0x017FF000, 0xFFFFF000, 4 << 10, U | X | A | D),
        (0x01800000, 0x00800000, 4 << 20, W | X),
        (0xFFC00000, 0x00005000, 4 << 10, X | G | A),
        (0xFFC01000, 0x00006000, 4 << 10, W | X | A | D),
        (0xFFFFF000, 0xFFFFF000, 4 << 10, W | X | A | D),
    ]
    assert (space.mode, space.root, space.count, len(space.aliases)) == (TWO, 0x1000, 12, 0)
    assert space.tables == (TablePage(0x1000, "PD", 0), TablePage(0x2000, "PT", 0))
    assert space.problems == (
        Problem(
            ProblemKind.RESERVED_BITS,
            "PD",
            0x1000,
            0xC00000,
            1,
            "reserved bits set at PDE [3] (0xa00081)",
        ),
        Problem(
            ProblemKind.OUTSIDE_MEMORY,
            "PT",
            0x9000,
            0x1000000,
            1,
            "the PT at 0x9000 is outside memory",
        ),
    )


def test_upper_half_addresses_are_sign_extended_everywhere() -> None:
    memory = hex_memory("""
        1800: 0000000000002067  # PML4E [256]
        2000: 0000000000003067  # PDPTE [0]
        2008: 0000000000009067  # PDPTE [1]: a PD outside memory
        2010: 0000000020000083  # PDPTE [2]: reserved bit 29
        3008: 00000000002000e3  # PDE [1]
    """)
    space = walk(memory, FOUR, 0x1000)
    assert _rows(space) == [(0xFFFF800000200000, 0x200000, 2 << 20, W | X | A | D)]
    assert space.tables[1:] == (
        TablePage(0x2000, "PDPT", 0xFFFF800000000000),
        TablePage(0x3000, "PD", 0xFFFF800000000000),
    )
    assert {(each.kind, each.virtual) for each in space.problems} == {
        (ProblemKind.OUTSIDE_MEMORY, 0xFFFF800040000000),
        (ProblemKind.RESERVED_BITS, 0xFFFF800080000000),
    }


@pytest.mark.parametrize("mode", PagingMode)
@pytest.mark.parametrize("maxphyaddr", [32, 40, 52])
@pytest.mark.parametrize("pse", [True, False])
@pytest.mark.parametrize("nx", [True, False])
def test_the_walk_and_single_translations_agree(mode: PagingMode, maxphyaddr: int, pse: bool, nx: bool) -> None:
    memory, cr3 = MEMORY[mode]
    space = walk(memory, mode, cr3, pse=pse, nx=nx, maxphyaddr=maxphyaddr)
    for virtual, physical, size, flags in _rows(space):
        for offset in (0, size - 1):
            found = translate(memory, mode, cr3, virtual + offset, pse=pse, nx=nx, maxphyaddr=maxphyaddr)
            assert (found.physical, found.page_size, found.flags) == (physical + offset, size, flags)
    assert np.all(space.virtual[:-1] + space.size[:-1] <= space.virtual[1:])
    for problem in space.problems:
        if problem.kind in (ProblemKind.RESERVED_BITS, ProblemKind.OUTSIDE_MEMORY):
            with pytest.raises(NotMapped):
                translate(memory, mode, cr3, problem.virtual, pse=pse, nx=nx, maxphyaddr=maxphyaddr)


def test_pae_root_in_the_middle_of_a_page() -> None:
    space = walk(PAE_TABLES, PAE, 0x1020)
    assert [(each.address, each.level) for each in space.tables] == [
        (0x1020, "PDPT"),
        (0x2000, "PD"),
        (0x3000, "PT"),
    ]
    assert space.count == 8  # 4 translations, below PDPTE [0] and [1]
    assert {each.kind for each in space.problems} == {ProblemKind.RESERVED_BITS}


@pytest.mark.parametrize("mode", PagingMode)
def test_a_root_outside_memory_is_a_problem(mode: PagingMode) -> None:
    space = walk(PagesMemory({}), mode, 0xABCD000)
    assert (len(space.virtual), space.tables, space.count) == (0, (), 0)
    assert [(each.kind, each.table) for each in space.problems] == [(ProblemKind.OUTSIDE_MEMORY, 0xABCD000)]


def test_empty_tables_map_nothing() -> None:
    space = walk(hex_memory("1000:"), FOUR, 0x1000)
    assert (space.count, space.problems, len(space.tables)) == (0, (), 1)


def test_a_table_outside_memory_costs_only_what_it_maps() -> None:
    space = walk(
        hex_memory("""
            4000: 00003067  # PDE [0]: outside
            4004: 00009067  # PDE [1]
            4008: 00003067  # PDE [2]: outside, the same
            9000: 00005067
        """),
        TWO,
        0x4000,
    )
    assert _rows(space) == [(0x400000, 0x5000, 4096, W | U | X | A | D)]
    assert [(each.table, each.virtual, each.count) for each in space.problems] == [(0x3000, 0, 2)]


def test_tables_read_in_several_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.memory.walk._TABLES_AT_ONCE", 1)
    memory = hex_memory("""
        1000: 0000000000002067  # PML4E [0]
        2000: 0000000000003067  # PDPTE [0]
        3000: 0000000000004067  # PDE [0]
        3008: 0000000000005067  # PDE [1]
        4000: 000000000000a067  # PTE [0]
        5008: 000000000000b067  # PTE [1] of the second table
    """)
    assert _rows(walk(memory, FOUR, 0x1000)) == [
        (0x000000, 0xA000, 4096, W | U | X | A | D),
        (0x201000, 0xB000, 4096, W | U | X | A | D),
    ]


def test_a_table_that_points_to_itself() -> None:
    memory = hex_memory("""
        1000: 0000000000002067  # PML4E [0]
        1ff8: 0000000000001067  # PML4E [511]: this PML4
        2000: 0000000000003067  # PDPTE [0]
        3000: 00000000000000e7  # PDE [0]: 2 MiB page at 0
    """)
    space = walk(memory, FOUR, 0x1000)
    rows = {virtual: physical for virtual, physical, _, _ in _rows(space)}
    # The window at the top shows the tables themselves: each by its own address.
    assert rows[0xFFFFFFFFFFFFF000] == 0x1000  # the PML4
    assert rows[0xFFFFFFFFFFE00000] == 0x2000  # the PDPT
    assert rows[0xFFFFFFFFC0000000] == 0x3000  # the PD
    assert rows[0] == 0
    for virtual, physical in rows.items():
        assert translate(memory, FOUR, 0x1000, virtual).physical == physical
    loops = [each for each in space.problems if each.kind is ProblemKind.SEVERAL_LEVELS]
    assert (loops[0].table, loops[0].level, loops[0].count) == (0x1000, "PML4", 4)
    assert loops[0].detail == "the page at 0x1000 is a table of several levels: PML4, PDPT, PD, PT"


def test_two_tables_in_a_loop() -> None:
    memory = hex_memory("""
        1000: 0000000000002067  # PML4E [0]: 0x2000, which as a PDPT ...
        2008: 0000000000001067  # PDPTE [1]: ... points back to 0x1000 as a PD, and that to 0x2000 as a PT
    """)
    space = walk(memory, FOUR, 0x1000)
    assert _rows(space) == [(0x40001000, 0x1000, 4096, W | U | X | A | D)]
    assert {(each.kind, each.table, each.count) for each in space.problems} == {
        (ProblemKind.SEVERAL_LEVELS, 0x1000, 2),
        (ProblemKind.SEVERAL_LEVELS, 0x2000, 2),
    }


@pytest.mark.timeout(5)
@pytest.mark.parametrize("mode", [FOUR, FIVE])
def test_every_entry_points_to_its_own_table(mode: PagingMode) -> None:
    memory = PagesMemory({1: 512 * (0x1067).to_bytes(8, "little")})
    space = walk(memory, mode, 0x1000)
    depth = 4 if mode is FOUR else 5
    assert space.count == 512**depth
    assert len(space.virtual) == 512  # the PT's translations, at the lowest address
    assert space.virtual.tolist() == [index << 12 for index in range(512)]
    assert [(each.kind, each.count) for each in space.problems] == [
        (ProblemKind.TOO_MANY, 512**depth),
        (ProblemKind.SEVERAL_LEVELS, depth),
    ]


@pytest.mark.timeout(5)
def test_empty_tables_at_very_many_places_cost_nothing() -> None:
    # PML4, PDPT and PD have 511 or 512 entries to the next table: the empty PT appears at nearly 2^27 places.
    pages = {pfn: 512 * (pfn + 1 << 12 | 0x67).to_bytes(8, "little") for pfn in (1, 2, 3)}
    pages[1] = pages[1][:-8] + (0x5067).to_bytes(8, "little")  # PML4E [511]: a PDPT with a 1 GiB page
    pages[5] = (0xE7).to_bytes(8, "little").ljust(4096, b"\0")
    space = walk(PagesMemory({**pages, 4: bytes(4096)}), FOUR, 0x1000)
    assert _rows(space) == [(0xFFFFFF8000000000, 0, 1 << 30, W | U | X | A | D)]
    assert (space.count, len(space.tables), space.problems) == (1, 5, ())


def test_over_the_limit_repeated_tables_are_listed_once() -> None:
    full = walk(FOUR_LEVEL, FOUR, 0x1000)
    once = walk(FOUR_LEVEL, FOUR, 0x1000, limit=full.count - 1)
    assert walk(FOUR_LEVEL, FOUR, 0x1000, limit=full.count).count == len(full.virtual) == once.count
    assert len(once.virtual) == 6  # 4 PTEs, the 2 MiB and the 1 GiB page
    assert set(_rows(once)) <= set(_rows(full))
    assert once.tables == full.tables
    # PDPTE [511] repeats the PD of [0]; PML4E [256] and [511] repeat the PDPT of [0].
    assert sorted(once.aliases.tolist()) == [
        [0x7FC0000000, 0, 1 << 30],
        [0xFFFF800000000000, 0, 1 << 39],
        [0xFFFFFF8000000000, 0, 1 << 39],
    ]
    # Listed places and aliases together are the whole.
    places = {virtual: physical for virtual, physical, _, _ in _rows(once)}
    for target, source, size in sorted(once.aliases.tolist()):
        places |= {
            virtual - source + target: physical
            for virtual, physical in list(places.items())
            if source <= virtual < source + size
        }
    assert places == {virtual: physical for virtual, physical, _, _ in _rows(full)}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("mode", PagingMode)
def test_garbage_ends_and_what_it_maps_is_what_the_cpu_would(mode: PagingMode) -> None:
    pages = 256
    words = np.random.default_rng(2006).integers(0, 1 << 63, (pages, 512), np.uint64)
    # Addresses within the pages that exist, so that the walk goes deep; a quarter of the entries has bit 7.
    words = (words & np.uint64(0xFFFE1 | 0x80)) % np.uint64(pages << 12) | np.uint64(1)
    memory = PagesMemory({pfn: words[pfn].tobytes() for pfn in range(pages)})
    space = walk(memory, mode, 0x3000, limit=10_000)
    assert space.count > 0
    assert ProblemKind.SEVERAL_LEVELS in {each.kind for each in space.problems}
    for i in range(0, len(space.virtual), max(1, len(space.virtual) // 50)):
        found = translate(memory, mode, 0x3000, int(space.virtual[i]))
        assert (found.physical, found.page_size) == (int(space.physical[i]), int(space.size[i]))


def test_many_tables_outside_memory_are_told_together() -> None:
    entries = [(0x100 + i) << 12 | 0x67 for i in range(1023)]
    memory = PagesMemory({4: struct.pack("<1024I", 0x5067, *entries), 5: struct.pack("<I", 0x6067).ljust(4096, b"\0")})
    space = walk(memory, TWO, 0x4000)
    assert _rows(space) == [(0, 0x6000, 4096, W | U | X | A | D)]
    assert {each.kind for each in space.problems} == {ProblemKind.OUTSIDE_MEMORY}
    assert len(space.problems) < 300
    assert sum(each.count for each in space.problems) == 1023
    assert space.problems[-1].detail == "the PT at 0x200000 and 766 others are outside memory"


def test_more_tables_than_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.memory.walk.MOST_TABLES", 2)
    pages = {5 + i: struct.pack("<I", (0x10 + i) << 12 | 0x67).ljust(4096, b"\0") for i in range(3)}
    memory = PagesMemory({4: struct.pack("<4I", 0x7067, 0x6067, 0x5067, 0x7067).ljust(4096, b"\0"), **pages})
    space = walk(memory, TWO, 0x4000)
    assert [row[1] for row in _rows(space)] == [0x11000, 0x10000]  # the tables at 0x6000 and 0x5000
    assert [(each.kind, each.table, each.virtual, each.count) for each in space.problems] == [
        (ProblemKind.TOO_MANY_TABLES, 0x7000, 0, 1)
    ]
    with pytest.raises(EvidenceError, match="3 tables PT, of which 2 were read: this is garbage"):
        require_all_read(space)
