"""Physical memory written down as hex, one table entry a line."""

from __future__ import annotations

from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE


def hex_memory(text: str) -> PagesMemory:
    """`ADDRESS: VALUE  # comment` lines. 8 digits are a 4-byte entry, 16 an 8-byte one, little-endian.

    Pages named by an address exist (`ADDRESS:` alone makes an empty one), all others are outside memory.
    """
    pages: dict[int, bytearray] = {}
    for line in text.splitlines():
        where, _, value = line.partition("#")[0].strip().partition(":")
        if not where:
            continue
        pfn, offset = divmod(int(where, 16), PAGE_SIZE)
        page = pages.setdefault(pfn, bytearray(PAGE_SIZE))
        raw = bytes.fromhex(value.strip())[::-1]
        page[offset : offset + len(raw)] = raw
    return PagesMemory({pfn: bytes(page) for pfn, page in pages.items()})
