"""Single translations, from small tables written as hex with what they must translate to beside them."""

from __future__ import annotations

import struct

import pytest

from rig.memory.image import PagesMemory
from rig.memory.levels import levels
from rig.memory.paging import (
    EntryChange,
    Flags,
    NotMapped,
    entries,
    entry_changes,
    root,
    root_size,
    translate,
)
from rig.model import PagingMode
from tests.memory.hexmemory import hex_memory

TWO, PAE, FOUR, FIVE = PagingMode

# 32-bit paging. CR3 = 0x1000.
TWO_LEVEL = hex_memory("""
    1000: 00002067  # PDE [0]: PT at 0x2000, writable, user
    1004: 004000e3  # PDE [1]: 4 MiB page at 0x400000, writable, supervisor, A D
    1008: 00c060e1  # PDE [2]: 4 MiB page at 0x3_00c00000 (PSE-36: bits 20:13 = 3), read-only
    100c: 00a00081  # PDE [3]: 4 MiB page with reserved bit 21
    1010: 00009001  # PDE [4]: PT at 0x9000, which is outside memory
    1014: 00002065  # PDE [5]: the same PT, read-only
    1018: 00801083  # PDE [6]: 4 MiB page at 0x800000, bit 12 is PAT
    1ffc: 00002063  # PDE [1023]: the same PT, supervisor
    2000: 00005125  # PTE [0]: 0x5000, read-only, user, A, global
    2004: 00006063  # PTE [1]: 0x6000, writable, supervisor, A D
    2008: 00007066  # PTE [2]: not present, though the rest looks well
    2ffc: fffff0e7  # PTE [1023]: 0xfffff000 (bit 7 is PAT here), writable, user, A D
""")

# PAE. CR3 = 0x1020: the PDPT is 32-byte aligned, here in the middle of a page.
PAE_TABLES = hex_memory("""
    1000: 0000000000009001  # not ours: would be the PDPT if CR3 were page-aligned
    1020: 0000000000002001  # PDPTE [0]: PD at 0x2000; R/W and U/S do not exist here
    1028: 0000000000002021  # PDPTE [1]: the same, with bit 5 as QEMU's TCG leaves it
    1030: 0000000000002003  # PDPTE [2]: reserved bit 1
    2000: 0000000000003067  # PDE [0]: PT at 0x3000
    2008: 80000001402000e7  # PDE [1]: 2 MiB page at 0x1_40200000, XD
    2010: 0000000000402087  # PDE [2]: 2 MiB page with reserved bit 13
    2ff8: 0010000000003067  # PDE [511]: bit 52 is reserved in PAE
    3000: 0000000012345067  # PTE [0]: 0x12345000
    3008: 8000000012346067  # PTE [1]: 0x12346000, XD
    3010: 0000010000000067  # PTE [2]: 0x100_00000000, needs MAXPHYADDR > 40
""")

# 4-level paging. CR3 = 0x1000.
FOUR_LEVEL = hex_memory("""
    1000: 0000000000002067  # PML4E [0]: PDPT at 0x2000
    1008: 00000000000020e7  # PML4E [1]: reserved bit 7
    1800: 0000000000002063  # PML4E [256]: the same PDPT, supervisor
    1ff8: 8000000000002067  # PML4E [511]: the same PDPT, XD
    2000: 0000000000003067  # PDPTE [0]: PD at 0x3000
    2008: 00000001400001e3  # PDPTE [1]: 1 GiB page at 0x1_40000000, global, supervisor
    2010: 0000000020000083  # PDPTE [2]: 1 GiB page with reserved bit 29
    2ff8: 0000000000003067  # PDPTE [511]: PD at 0x3000
    3000: 0000000000004067  # PDE [0]: PT at 0x4000
    3008: 00000000002010e5  # PDE [1]: 2 MiB page at 0x200000, bit 12 is PAT, read-only
    3010: 0000000000100083  # PDE [2]: 2 MiB page with reserved bit 20
    3018: 0000000000009067  # PDE [3]: PT at 0x9000, which is outside memory
    4000: 0000000000005025  # PTE [0]: 0x5000, read-only, user, A
    4008: 8000000000006063  # PTE [1]: 0x6000, writable, supervisor, A D, XD
    4010: 7ff0000000007067  # PTE [2]: 0x7000; bits 62:52 are ignored or a protection key
    4018: 0008000000008067  # PTE [3]: bit 51 of the address
""")

# 5-level paging: CR3 = 0x8000, one level above the tables of FOUR_LEVEL.
FIVE_LEVEL = PagesMemory(
    {
        8: hex_memory("""
    8000: 0000000000001067  # PML5E [0]: PML4 at 0x1000
    8008: 0000000000001067  # PML5E [1]: the same
    8010: 00000000000010e7  # PML5E [2]: reserved bit 7
    8ff8: 0000000000001067  # PML5E [511]: the same PML4
""").read(0x8000, 4096)
    },
    FOUR_LEVEL,
)

W, U, X, G, A, D = Flags
MEMORY = {
    TWO: (TWO_LEVEL, 0x1000),
    PAE: (PAE_TABLES, 0x1020),
    FOUR: (FOUR_LEVEL, 0x1000),
    FIVE: (FIVE_LEVEL, 0x8000),
}


@pytest.mark.parametrize(
    ("mode", "virtual", "physical", "size", "flags"),
    [
        (TWO, 0x00000123, 0x5123, 4 << 10, U | X | G | A),
        (TWO, 0x00001FFF, 0x6FFF, 4 << 10, W | X | A | D),
        (TWO, 0x003FF000, 0xFFFFF000, 4 << 10, W | U | X | A | D),
        (TWO, 0x00400000, 0x400000, 4 << 20, W | X | A | D),
        (TWO, 0x00ABCDEF, 0x3_00EBCDEF, 4 << 20, X | A | D),
        (TWO, 0x01801234, 0x801234, 4 << 20, W | X),
        (TWO, 0x017FF000, 0xFFFFF000, 4 << 10, U | X | A | D),  # the PDE takes writing away
        (TWO, 0xFFFFF008, 0xFFFFF008, 4 << 10, W | X | A | D),  # the PDE takes user away
        (PAE, 0x00000FFF, 0x12345FFF, 4 << 10, W | U | X | A | D),
        (PAE, 0x00001000, 0x12346000, 4 << 10, W | U | A | D),
        (PAE, 0x00002000, 0x100_00000000, 4 << 10, W | U | X | A | D),
        (PAE, 0x003FFFFF, 0x1_403FFFFF, 2 << 20, W | U | A | D),
        (PAE, 0x40000010, 0x12345010, 4 << 10, W | U | X | A | D),  # through the PDPTE with bit 5
        (FOUR, 0x0000000000000010, 0x5010, 4 << 10, U | X | A),
        (FOUR, 0x0000000000001000, 0x6000, 4 << 10, W | A | D),
        (FOUR, 0x0000000000002000, 0x7000, 4 << 10, W | U | X | A | D),
        (FOUR, 0x0000000000003000, 0x8_0000_0000_8000, 4 << 10, W | U | X | A | D),
        (FOUR, 0x0000000000212345, 0x212345, 2 << 20, U | X | A | D),
        (FOUR, 0x000000007FFFFFFF, 0x1_7FFFFFFF, 1 << 30, W | X | G | A | D),
        (FOUR, 0xFFFF800000000000, 0x5000, 4 << 10, X | A),
        (FOUR, 0xFFFFFFFFC0000000, 0x5000, 4 << 10, U | A),  # XD in the PML4E
        (FIVE, 0x0000000000000010, 0x5010, 4 << 10, U | X | A),
        (FIVE, 0x0001000000212345, 0x212345, 2 << 20, U | X | A | D),  # non-canonical with 4 levels
        (FIVE, 0xFFFFFFFFC0002000, 0x7000, 4 << 10, W | U | A | D),
    ],
)
def test_translates(mode: PagingMode, virtual: int, physical: int, size: int, flags: Flags) -> None:
    memory, cr3 = MEMORY[mode]
    found = translate(memory, mode, cr3, virtual)
    assert (found.virtual, found.physical, found.page_size, found.flags) == (virtual, physical, size, flags)
    assert (found.writable, found.user, found.executable) == (W in flags, U in flags, X in flags)
    assert (found.global_, found.accessed, found.dirty) == (G in flags, A in flags, D in flags)


@pytest.mark.parametrize(
    ("mode", "virtual", "reason"),
    [
        (TWO, 0x15400000, r"not present at PDE \[85\] \(0x0\)"),
        (TWO, 0x00002000, r"not present at PTE \[2\] \(0x7066\)"),
        (TWO, 0x00C00000, r"reserved bits 0x200000 set at PDE \[3\]"),
        (TWO, 0x01000000, r"the PT at 0x9000 is outside memory"),
        (TWO, 0x1_00000000, r"wider than 32 bits"),
        (TWO, -1, r"wider than 32 bits"),
        (PAE, 0x80000000, r"reserved bits 0x2 set at PDPTE \[2\]"),
        (PAE, 0xC0000000, r"not present at PDPTE \[3\]"),
        (PAE, 0x00400000, r"reserved bits 0x2000 set at PDE \[2\]"),
        (PAE, 0x3FE00000, r"reserved bits 0x10000000000000 set at PDE \[511\]"),
        (FOUR, 0x0000008000000000, r"reserved bits 0x80 set at PML4E \[1\]"),
        (FOUR, 0x0000000080000000, r"reserved bits 0x20000000 set at PDPTE \[2\]"),
        (FOUR, 0x0000000000400000, r"reserved bits 0x100000 set at PDE \[2\]"),
        (FOUR, 0x0000000000600000, r"the PT at 0x9000 is outside memory"),
        (FOUR, 0x0000800000000000, r"non-canonical"),
        (FOUR, 0xFFFF7FFFFFFFFFFF, r"non-canonical"),
        (FOUR, 0x0001000000000000, r"non-canonical"),
        (FOUR, 1 << 64, r"non-canonical"),
        (FIVE, 0x0100000000000000, r"non-canonical"),
        (FIVE, 0xFEFFFFFFFFFFFFFF, r"non-canonical"),
        (FIVE, 0x0002000000000000, r"reserved bits 0x80 set at PML5E \[2\]"),
        (FIVE, 0x0003000000000000, r"not present at PML5E \[3\]"),
    ],
)
def test_does_not_translate(mode: PagingMode, virtual: int, reason: str) -> None:
    memory, cr3 = MEMORY[mode]
    with pytest.raises(NotMapped, match=reason) as caught:
        translate(memory, mode, cr3, virtual)
    assert caught.value.virtual == virtual


@pytest.mark.parametrize("mode", PagingMode)
def test_a_root_outside_memory_maps_nothing(mode: PagingMode) -> None:
    with pytest.raises(NotMapped, match=r"at 0xabcd000 is outside memory"):
        translate(PagesMemory({}), mode, 0xABCD000, 0)


def test_the_path_gives_each_entry_with_its_address() -> None:
    assert translate(FOUR_LEVEL, FOUR, 0x1000, 0xFFFFFFFFC0001008).path == (
        ("PML4E", 0x1FF8, 0x8000000000002067),
        ("PDPTE", 0x2FF8, 0x3067),
        ("PDE", 0x3000, 0x4067),
        ("PTE", 0x4008, 0x8000000000006063),
    )
    assert translate(PAE_TABLES, PAE, 0x1020, 0x200000).path == (
        ("PDPTE", 0x1020, 0x2001),
        ("PDE", 0x2008, 0x80000001402000E7),
    )


def test_without_pse_bit_7_of_a_pde_is_ignored() -> None:
    memory = hex_memory("""
        1000: 000020e7  # PDE [0]: PT at 0x2000 without PSE, else a 4 MiB page at 0x1_00000000 (bit 13)
        2004: 00006067  # PTE [1]
    """)
    assert translate(memory, TWO, 0x1000, 0x1000, pse=False).physical == 0x6000
    assert translate(memory, TWO, 0x1000, 0x1000).physical == 0x1_00001000


@pytest.mark.parametrize("mode", [PAE, FOUR, FIVE])
def test_pse_changes_nothing_in_the_other_modes(mode: PagingMode) -> None:
    memory, cr3 = MEMORY[mode]
    assert translate(memory, mode, cr3, 0x200000, pse=False).page_size == 2 << 20


@pytest.mark.parametrize(
    ("maxphyaddr", "reserved"),
    [(32, "0x6000"), (33, "0x4000"), (34, None), (40, None), (52, None)],
)
def test_pse36_bits_above_maxphyaddr_are_reserved(maxphyaddr: int, reserved: str | None) -> None:
    # PDE [2] has bits 14:13 set: address bits 33:32.
    if reserved is None:
        assert translate(TWO_LEVEL, TWO, 0x1000, 0x800000, maxphyaddr=maxphyaddr).physical == 0x3_00C00000
    else:
        with pytest.raises(NotMapped, match=rf"reserved bits {reserved} set at PDE \[2\]"):
            translate(TWO_LEVEL, TWO, 0x1000, 0x800000, maxphyaddr=maxphyaddr)


@pytest.mark.parametrize(("mode", "virtual"), [(PAE, 0x1000), (PAE, 0x200000), (FOUR, 0x1000), (FIVE, 0x1000)])
def test_without_nx_bit_63_is_reserved(mode: PagingMode, virtual: int) -> None:
    memory, cr3 = MEMORY[mode]
    assert not translate(memory, mode, cr3, virtual).executable
    with pytest.raises(NotMapped, match=r"reserved bits 0x8000000000000000 set at P[DT]E"):
        translate(memory, mode, cr3, virtual, nx=False)


@pytest.mark.parametrize(("mode", "virtual", "needs"), [(PAE, 0x2000, 41), (FOUR, 0x3000, 52)])
def test_address_bits_above_maxphyaddr_are_reserved(mode: PagingMode, virtual: int, needs: int) -> None:
    memory, cr3 = MEMORY[mode]
    assert translate(memory, mode, cr3, virtual, maxphyaddr=needs).virtual == virtual
    with pytest.raises(NotMapped, match="reserved bits"):
        translate(memory, mode, cr3, virtual, maxphyaddr=needs - 1)


@pytest.mark.parametrize("maxphyaddr", [31, 53])
def test_maxphyaddr_that_no_cpu_has(maxphyaddr: int) -> None:
    with pytest.raises(ValueError, match=r"not in 32\.\.52"):
        levels(FOUR, maxphyaddr=maxphyaddr)


def test_a_table_that_points_to_itself_is_followed_as_the_cpu_does() -> None:
    memory = hex_memory("1ff8: 0000000000001067  # PML4E [511]: this PML4")
    found = translate(memory, FOUR, 0x1000, 0xFFFFFFFFFFFFFFF8)
    assert (found.physical, [address for _, address, _ in found.path]) == (0x1FF8, [0x1FF8] * 4)


@pytest.mark.parametrize(
    ("mode", "cr3", "address", "size"),
    [
        (TWO, 0xFFFFF01F, 0xFFFFF000, 4096),
        (PAE, 0x011DD63F, 0x011DD620, 32),
        (FOUR, 0x8000_0000_1FDA_C801, 0x1FDAC000, 4096),  # bit 63 and a PCID
        (FOUR, 0x6000_0000_1FDA_C018, 0x1FDAC000, 4096),  # LAM, PWT, PCD
        (FIVE, 0x000F_FFFF_FFFF_FFFF, 0x000F_FFFF_FFFF_F000, 4096),
    ],
)
def test_root(mode: PagingMode, cr3: int, address: int, size: int) -> None:
    assert (root(mode, cr3), root_size(mode)) == (address, size)


def test_entries_are_as_wide_as_the_mode_has_them() -> None:
    table = struct.pack("<IIII", 0x2067, 1, 0x80000000, 2)
    assert entries(TWO, table).tolist() == [0x2067, 1, 0x80000000, 2]
    assert entries(PAE, table).tolist() == [0x1_0000_2067, 0x2_8000_0000]
    with pytest.raises(ValueError, match="15 bytes are no whole number of 8-byte entries"):
        entries(FOUR, table[1:])


def _table(mode: PagingMode, values: dict[int, int]) -> bytes:
    code, count = ("I", 1024) if mode is TWO else ("Q", 4 if mode is PAE else 512)
    return struct.pack(f"<{count}{code}", *(values.get(i, 0) for i in range(count)))


def _changes(
    mode: PagingMode, before: int, after: int, *, level: int = 0, pse: bool = True
) -> tuple[int, int, int, int]:
    found = entry_changes(mode, _table(mode, {3: before}), _table(mode, {3: after}), level=level, pse=pse)
    return len(found.changed), len(found.ad_only), found.bytes_changed, found.ad_bits


def test_an_entry_overwritten_is_named() -> None:
    # What kernels before 2.6.19 did to a 2-level pgd: THREAD's table, seen on a 6.1 guest.
    found = entry_changes(TWO, _table(TWO, {85: 0, 768: 0x63}), _table(TWO, {85: 0x39E067, 768: 0x63}))
    assert found.changed == (EntryChange(85, 0, 0x39E067),)
    assert (found.ad_only, found.bytes_changed, found.ad_bits) == ((), 3, 0)


def test_equal_tables_have_no_changes() -> None:
    assert _changes(FOUR, 0x2067, 0x2067) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("mode", "before", "after", "by_cpu"),
    [
        (FOUR, 0x2007, 0x2027, True),  # A set
        (FOUR, 0x2027, 0x2007, False),  # A cleared: the CPU never does
        (FOUR, 0x2007, 0x2047, False),  # bit 6 of a PML4E is ignored by the CPU: not D
        (FOUR, 0x2006, 0x2026, False),  # A in an entry that isn't present
        (FOUR, 0x2007, 0x3027, False),  # A, and another table
        (FOUR, 0x2007, 0x2026, False),  # A, and no longer present
        (TWO, 0x4000A7, 0x4000E7, True),  # D of a 4 MiB page
        (TWO, 0x2027, 0x2067, False),  # the same bit of a PDE that points to a table
        (PAE, 0x2001, 0x2021, True),  # A of a PDPTE, as TCG sets it
        (PAE, 0x2021, 0x2061, False),
    ],
)
def test_accessed_and_dirty_are_counted_apart(mode: PagingMode, before: int, after: int, by_cpu: bool) -> None:
    changed, ad_only, bytes_changed, ad_bits = _changes(mode, before, after)
    assert (changed, ad_only) == ((0, 1) if by_cpu else (1, 0))
    assert (bytes_changed == 0, ad_bits) == (by_cpu, 1 if by_cpu else 0)


def test_dirty_depends_on_the_level_and_on_pse() -> None:
    assert _changes(FOUR, 0x2007, 0x2067, level=3) == (0, 1, 0, 2)
    assert _changes(FOUR, 0x2007, 0x2067, level=2) == (1, 0, 1, 0)
    assert _changes(TWO, 0x4000A7, 0x4000E7, pse=False) == (1, 0, 1, 0)


def test_tables_of_different_length() -> None:
    with pytest.raises(ValueError, match="had 4096 bytes before and has 32 after"):
        entry_changes(PAE, bytes(4096), bytes(32))
