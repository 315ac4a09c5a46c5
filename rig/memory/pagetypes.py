"""What the kernel uses a page for, by its struct page. Found as makedumpfile finds it: through vmcoreinfo. Pure.

Sizes, offsets and flag numbers are the kernel's own (kernel/crash_core.c, crash_save_vmcoreinfo_init()); only the way
from a pfn to its struct page is known here: `mem_map[pfn]` with FLATMEM, and with SPARSEMEM_EXTREME
`mem_section[root]->section_mem_map + pfn` (include/linux/mmzone.h).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rig.model import PAGE_SIZE

ReadVirtual = Callable[[int, int], bytes]  # kernel virtual address, size; raises LookupError

# Low bits of section_mem_map are flags (SECTION_MAP_MASK); struct page arrays are aligned to far more.
_SECTION_FLAGS = 0x3F


def parse_vmcoreinfo(note: bytes) -> dict[str, str]:
    """The KEY=VALUE lines of the vmcoreinfo note, wherever they begin in it."""
    pairs = re.findall(rb"^([A-Za-z][\w().]*)=([^\n\0]*)$", note.replace(b"\0", b"\n"), flags=re.MULTILINE)
    return {key.decode(): value.decode(errors="replace") for key, value in pairs}


class PageTypes:
    """Asks the struct pages of one kernel. word: bytes of a pointer."""

    def __init__(self, read: ReadVirtual, info: Mapping[str, str], word: int) -> None:
        self._read = read
        self._info = info
        self._word = word

    def is_slab(self, pfn: int) -> bool:
        """Whether the page holds slab objects.

        The mark is a flag up to 6.9; since 6.11 it is the top byte of _mapcount's word (page_type, PGTY_slab in
        include/linux/page-flags.h). LookupError when the kernel doesn't say where its struct pages are, or marks them
        in another way (6.10).
        """
        page = self._head(self._struct_page(pfn))
        if "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)" in self._info:
            mark = self._number("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)") & 0xFFFFFFFF  # printed as a signed number
            if mark & 0xFFFFFF:
                raise LookupError(f"PAGE_SLAB_MAPCOUNT_VALUE {mark:#x} is no type in the top byte")
            word = self._read(page + self._number("OFFSET(page._mapcount)"), 4)
            return int.from_bytes(word, "little") >> 24 == mark >> 24
        flag = 1 << self._number("NUMBER(PG_slab)", most=63)
        return bool(self._pointer(page + self._number("OFFSET(page.flags)")) & flag)

    def _struct_page(self, pfn: int) -> int:
        size = self._number("SIZE(page)")
        if "SYMBOL(mem_map)" in self._info:
            return self._pointer(self._number("SYMBOL(mem_map)", 16)) + pfn * size
        per_section = 1 << self._number("NUMBER(SECTION_SIZE_BITS)", most=63)
        section_size = self._number("SIZE(mem_section)", least=1, most=PAGE_SIZE)
        root, index = divmod(pfn * PAGE_SIZE // per_section, PAGE_SIZE // section_size)
        section = self._pointer(self._number("SYMBOL(mem_section)", 16) + root * self._word) + index * section_size
        coded = self._pointer(section + self._number("OFFSET(mem_section.section_mem_map)"))
        return (coded & ~_SECTION_FLAGS) + pfn * size

    def _head(self, page: int) -> int:
        """The first page of a compound one. Bit 0 of this word marks the others; the rest leads to the first one.

        It is that one's address or, where kernels of 2026 say compound_info (compound_info_has_mask() in
        include/linux/page-flags.h), possibly what to mask the page's own address with: no struct page lies in the
        highest 4 GiB, and a mask has all those bits.
        """
        key = (
            "OFFSET(page.compound_info)" if "OFFSET(page.compound_info)" in self._info else "OFFSET(page.compound_head)"
        )
        head = self._pointer(page + self._number(key))
        if not head & 1:
            return page
        if self._word == 8 and head >> 32 == 0xFFFFFFFF:
            return page & (head - 1)
        return head - 1

    def _number(self, key: str, base: int = 10, *, least: int = -(1 << 63), most: int = (1 << 64) - 1) -> int:
        """A number that the kernel tells. LookupError when it doesn't, or when it is none that fits."""
        try:
            number = int(self._info[key], base)
        except ValueError:
            raise LookupError(f"{key} is {self._info[key]!r}, no number") from None
        if not least <= number <= most:
            raise LookupError(f"{key} is {number:#x}, which can't be")
        return number

    def _pointer(self, address: int) -> int:
        return int.from_bytes(self._read(address, self._word), "little")
