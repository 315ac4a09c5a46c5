"""From a pfn to its struct page, in a forged kernel."""

from __future__ import annotations

import pytest

from rig.memory.pagetypes import PageTypes, parse_vmcoreinfo

COMMON = {"SIZE(page)": "64", "OFFSET(page.flags)": "0", "OFFSET(page.compound_head)": "8", "NUMBER(PG_slab)": "9"}
SLAB, TAIL_OF_4 = 1 << 9, 0x9000 + 4 * 64 + 1


def types(words: dict[int, int], info: dict[str, str], word: int = 8) -> PageTypes:
    """words: virtual address -> value; everything else is unmapped."""

    def read(address: int, size: int) -> bytes:
        return words[address].to_bytes(size, "little")

    return PageTypes(read, COMMON | info, word)


def test_flatmem() -> None:
    struct_pages = {0x9000 + 4 * 64: SLAB, 0x9008 + 4 * 64: 0, 0x9000 + 5 * 64: 0, 0x9008 + 5 * 64: TAIL_OF_4}
    struct_pages |= {0x9000 + 6 * 64: ~SLAB & 0xFFFF, 0x9008 + 6 * 64: 0}
    found = types({0x1000: 0x9000} | struct_pages, {"SYMBOL(mem_map)": "1000"})
    assert found.is_slab(4)
    assert found.is_slab(5)  # a tail page of the same compound page
    assert not found.is_slab(6)


def test_sparsemem_extreme() -> None:
    """Sections of 1 MiB (256 pages), two mem_sections to a root: pfn 0x300 is in section 3, that is root 1, [1]."""
    info = {
        "SYMBOL(mem_section)": "2000",
        "SIZE(mem_section)": "2048",
        "OFFSET(mem_section.section_mem_map)": "0",
        "NUMBER(SECTION_SIZE_BITS)": "20",
    }
    coded = 0x100000 | 0x7  # three flags
    page = 0x100000 + 0x300 * 64
    found = types({0x2008: 0x5000, 0x5000 + 2048: coded, page: SLAB, page + 8: 0}, info)
    assert found.is_slab(0x300)


SLAB_TYPE = "-184549376"  # NUMBER() of PGTY_slab << 24, as 6.12 and 7.2 print it: 0xf5000000


def test_the_mark_in_page_type() -> None:
    """And the word of a tail page: the head's address, or what the tail's own address is masked with."""
    info = {
        "SYMBOL(mem_map)": "1000",
        "OFFSET(page._mapcount)": "48",
        "OFFSET(page.compound_info)": "8",
        "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": SLAB_TYPE,
    }
    head, tail, other = (0x9000 + n * 64 for n in (4, 5, 6))
    fields = {head + 8: 0, head + 48: 0xF5000001, tail + 8: head + 1, other + 8: 0, other + 48: 0xF2000000}
    found = types({0x1000: 0x9000} | fields, info)
    assert [found.is_slab(pfn) for pfn in (4, 5, 6)] == [True, True, False]
    mask_of_4 = (1 << 64) - 4 * 64 | 1
    assert types({0x1000: 0x9000} | fields | {tail + 8: mask_of_4}, info).is_slab(5)
    with pytest.raises(LookupError, match="no type in the top byte"):
        types({0x1000: 0x9000} | fields, info | {"NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": "-2097"}).is_slab(4)


@pytest.mark.parametrize("lacking", ["NUMBER(PG_slab)", "SIZE(page)", "OFFSET(page.compound_head)"])
def test_a_kernel_that_does_not_say(lacking: str) -> None:
    info = {key: value for key, value in COMMON.items() if key != lacking} | {"SYMBOL(mem_map)": "1000"}
    found = PageTypes(lambda _, size: bytes(size), info, 8)
    with pytest.raises(LookupError):
        found.is_slab(1)


def test_vmcoreinfo_behind_its_note_header() -> None:
    note = b"\x0b\0\0\0\x2c\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6.1.0\nSIZE(page)=64\nKERNELOFFSET=22800000\n\0\0\0"
    assert parse_vmcoreinfo(note) == {"OSRELEASE": "6.1.0", "SIZE(page)": "64", "KERNELOFFSET": "22800000"}


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"SIZE(page)": "many"}, "is 'many', no number"),
        ({"NUMBER(SECTION_SIZE_BITS)": "1" + "0" * 18}, "SECTION_SIZE_BITS.* which can't be"),
        ({"SIZE(mem_section)": "0"}, "SIZE.mem_section. is 0x0, which can't be"),
        ({"SIZE(mem_section)": "9" * 5000}, "no number"),
    ],
)
def test_a_kernel_that_lies(lie: dict[str, str], told: str) -> None:
    info = {"SYMBOL(mem_section)": "2000", "SIZE(mem_section)": "2048", "NUMBER(SECTION_SIZE_BITS)": "20"}
    with pytest.raises(LookupError, match=told):
        types({}, info | lie).is_slab(1)
