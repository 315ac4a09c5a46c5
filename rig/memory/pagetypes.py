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

        LookupError when the kernel doesn't say where its struct pages are, or since 6.10 (46df8e73a4a3) keeps the mark
        elsewhere than in page->flags.
        """
        flag = 1 << int(self._info["NUMBER(PG_slab)"])
        page = self._head(self._struct_page(pfn))
        return bool(self._pointer(page + int(self._info["OFFSET(page.flags)"])) & flag)

    def _struct_page(self, pfn: int) -> int:
        size = int(self._info["SIZE(page)"])
        if "SYMBOL(mem_map)" in self._info:
            return self._pointer(int(self._info["SYMBOL(mem_map)"], 16)) + pfn * size
        per_section = 1 << int(self._info["NUMBER(SECTION_SIZE_BITS)"])
        section_size = int(self._info["SIZE(mem_section)"])
        root, index = divmod(pfn * PAGE_SIZE // per_section, PAGE_SIZE // section_size)
        section = self._pointer(int(self._info["SYMBOL(mem_section)"], 16) + root * self._word) + index * section_size
        coded = self._pointer(section + int(self._info["OFFSET(mem_section.section_mem_map)"]))
        return (coded & ~_SECTION_FLAGS) + pfn * size

    def _head(self, page: int) -> int:
        """The first page of a compound one: bit 0 of compound_head marks the others."""
        head = self._pointer(page + int(self._info["OFFSET(page.compound_head)"]))
        return head - 1 if head & 1 else page

    def _pointer(self, address: int) -> int:
        return int.from_bytes(self._read(address, self._word), "little")
