"""Page tables out of any bytes: most lead somewhere, to each other too; some are broken in each known way."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from rig.memory.image import PagesMemory
from rig.memory.levels import MODES, canonical
from rig.memory.paging import NotMapped, Translation, translate
from rig.model import PAGE_SIZE, PagingMode

PAGES = 8  # pfns 1 to 8 are there; entries point to 0 to 15
_WIDTHS = (32, 36, 40, 52)  # MAXPHYADDR
_LIMITS = (1 << 14, 64)
# Bits that an entry may have besides: none, NX, reserved ones high and low in it, a large page's address.
_HIGH = (0, 1 << 63, 1 << 51, 1 << 52, 1 << 36, 1 << 13, 1 << 21, 1 << 30)
_FORM = struct.Struct("<BHBBB")  # table, index and how often, page pointed to, bits 7:0, which of _HIGH
OPERATION = _FORM.size  # bytes of the input for an entry


class Options(TypedDict):
    pse: bool
    nx: bool
    maxphyaddr: int


@dataclass(frozen=True)
class Tables:
    """addresses: virtual, canonical; those that the entries lie on the way to."""

    memory: PagesMemory
    mode: PagingMode
    cr3: int
    options: Options
    limit: int
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, data: bytes) -> Tables:
        """Two bytes of options and the root, then entries."""
        what, where = data.ljust(2, b"\0")[:2]
        mode = list(PagingMode)[what & 3]
        size = MODES[mode].entry_size
        count = PAGE_SIZE // size
        pages = np.zeros((PAGES, count), f"<u{size}")
        indices = [0, 1, count - 1]
        if what & 0x80:  # tables that lead on to the next one, here and there
            for number in range(PAGES):
                pages[number, indices] = number + 2 << 12 | 0x67
        for at in range(2, len(data) - OPERATION + 1, OPERATION):
            table, index, target, low, high = _FORM.unpack_from(data, at)
            present = low & 9 != 8  # most of them
            value = (target % 16 << 12 | low & ~1 | present | _HIGH[high % len(_HIGH)]) & ((1 << 8 * size) - 1)
            step = {0: count, 1: 1, 2: 2}.get(index >> 14, count)  # once, or in all entries behind, or every other
            pages[table % PAGES, index % count :: step] = value
            indices.append(index % count)
        return cls(
            PagesMemory({pfn: page.tobytes() for pfn, page in enumerate(pages, 1)}),
            mode,
            (1 + where % PAGES) << 12 | where >> 3 & ~7,
            {"pse": bool(what & 4), "nx": bool(what & 8), "maxphyaddr": _WIDTHS[what >> 4 & 3]},
            _LIMITS[what >> 6 & 1],
            _addresses(mode, indices[:24]),
        )

    def translate(self, virtual: int) -> Translation | None:
        """As the CPU would; None for a fault."""
        try:
            return translate(self.memory, self.mode, self.cr3, virtual, **self.options)
        except NotMapped:
            return None


def _addresses(mode: PagingMode, indices: list[int]) -> tuple[int, ...]:
    """Some of those whose indices are two of these, by turns."""
    shape, found = MODES[mode], []
    ways = list(itertools.product(indices, repeat=2))
    for way in ways[:: max(1, len(ways) // 16)]:
        virtual = 0
        for level, index in zip(shape.levels, itertools.cycle(way), strict=False):
            virtual |= (index & (1 << level.bits) - 1) << level.shift
        found.append(canonical(shape, virtual))
    return tuple(found)


# ---------------------------------------------------------------- what campaigns begin with

_LINK, _LARGE = 0x67, 0xE7  # present, writable, user, accessed, dirty; and with PS
_BARE = 0x21  # of that what a PAE PDPTE may have


def seeds() -> list[bytes]:
    """In each mode, at each level: a page or table, a large page, and each way in which an entry can go wrong."""
    found = []
    for number, mode in enumerate(PagingMode):
        bits = [_BARE if mode is PagingMode.PAE and not table else _LINK for table in range(len(MODES[mode].levels))]
        for last, link in enumerate(bits):
            way = [(table, table + 2, bits[table], 0) for table in range(last)]
            # a page or a table, a loop to the root, one to the table itself, where there is no memory, a large page
            entries = [(last, page, link, 0) for page in (5, 1, last + 1, 12)] + [(last, 0, _LARGE, 0)]
            entries += [
                (last, page, low, high) for page, low in ((5, link), (0, _LARGE)) for high in range(1, len(_HIGH))
            ]
            found += [_input(number, [*way, entry]) for entry in entries]
    return found


def _input(mode: int, entries: list[tuple[int, int, int, int]]) -> bytes:
    """Tables of (table, page pointed to, bits 7:0, which of _HIGH), each at index 1; CR4.PSE, EFER.NXE, all bits."""
    rows = (_FORM.pack(table, 1, page, low, high) for table, page, low, high in entries)
    return bytes([mode | 0x3C, 0]) + b"".join(rows)
