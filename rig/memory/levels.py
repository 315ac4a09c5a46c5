"""The x86 paging modes as data: levels, index bits, masks and reserved bits.

Sources are sections of the Intel SDM, vol. 3, chapter 4 ("Paging"): 4.3 for 32-bit paging, 4.4 for PAE,
4.5 for 4-level and 5-level paging. "M" there is MAXPHYADDR, here `maxphyaddr`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rig.model import PagingMode

Words = NDArray[np.uint64]
Entry = TypeVar("Entry", int, NDArray[Any])  # one entry, or an array of them: the same arithmetic does both

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
PAGE_SIZE_BIT = 1 << 7
GLOBAL = 1 << 8
NX = 1 << 63
PERMISSIONS = WRITABLE | USER | NX

_FRAME_64 = 0x000F_FFFF_FFFF_F000  # bits 51:12
_WIDEST_PSE36 = 40  # 4 MiB pages have no more physical address bits, whatever MAXPHYADDR is (4.3)


class Leaf(enum.Enum):
    """Whether entries map a page: (mask, value), entry & mask == value means that it does."""

    NEVER = (0, 1)
    WITH_PS = (PAGE_SIZE_BIT, PAGE_SIZE_BIT)
    ALWAYS = (0, 0)


class Flags(enum.IntFlag):
    """What a translation allows (by all entries on its way), and the bits of its last entry."""

    WRITABLE = 1
    USER = 2
    EXECUTABLE = 4
    GLOBAL = 8
    ACCESSED = 16
    DIRTY = 32


@dataclass(frozen=True)
class Level:
    """One level of tables. Masks are over an entry's value; `reserved` bits must be 0 in a present entry."""

    name: str  # of the level's entries, as the SDM writes it
    shift: int  # lowest virtual address bit that selects an entry
    bits: int  # log2 of the number of entries in a table
    leaf: Leaf
    frame: int  # bits that are the address of the next table
    page_frame: int = 0  # bits that are the page's address
    page_high: int = 0  # bits 20:13 of a 4 MiB page's entry: address bits 39:32 (PSE-36)
    reserved: int = 0  # in entries that point to a table
    page_reserved: int = 0  # in entries that map a page
    permissions: bool = True  # False: R/W, U/S and XD have no meaning here (PAE PDPTEs)

    @property
    def table(self) -> str:
        """The table's name: PML4 for a level of PML4Es."""
        return self.name[:-1]

    @property
    def span(self) -> int:
        """Bytes of virtual address space that one entry covers."""
        return 1 << self.shift


@dataclass(frozen=True)
class Mode:
    """One paging mode: its levels from the root down, sizes in bytes, and the address bits of CR3."""

    levels: tuple[Level, ...]
    entry_size: int
    root_mask: int
    virtual_bits: int

    def table_size(self, level: Level) -> int:
        """Bytes of one table of a level."""
        return self.entry_size << level.bits


def _bits(high: int, low: int) -> int:
    """The mask of bits high:low, both included; 0 when there are none."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


def _large(name: str, shift: int, bits: int = 9) -> Level:
    """A 64-bit level whose entries map a page when PS is set. Bit 12 is PAT, the others up to the page's
    first address bit are reserved (4.4.2, 4.5.4)."""
    return Level(
        name,
        shift,
        bits,
        Leaf.WITH_PS,
        _FRAME_64,
        page_frame=_bits(51, shift),
        page_reserved=_bits(shift - 1, 13),
    )


_PTE_64 = Level("PTE", 12, 9, Leaf.ALWAYS, 0, page_frame=_FRAME_64)
_PDE_64 = _large("PDE", 21)
_FOUR = (
    Level("PML4E", 39, 9, Leaf.NEVER, _FRAME_64, reserved=PAGE_SIZE_BIT),
    _large("PDPTE", 30),
    _PDE_64,
    _PTE_64,
)

MODES: Mapping[PagingMode, Mode] = {
    PagingMode.TWO_LEVEL: Mode(  # 4.3
        (
            Level(
                "PDE",
                22,
                10,
                Leaf.WITH_PS,
                0xFFFF_F000,
                page_frame=0xFFC0_0000,
                page_high=_bits(20, 13),
            ),
            Level("PTE", 12, 10, Leaf.ALWAYS, 0, page_frame=0xFFFF_F000),
        ),
        entry_size=4,
        root_mask=0xFFFF_F000,
        virtual_bits=32,
    ),
    PagingMode.PAE: Mode(  # 4.4
        (
            # SDM: bits 2:1 and 8:5 are reserved. QEMU's TCG treats the PDPT as one more level and sets bit 5
            # (accessed) in it: every PAE guest that runs under TCG has it, so it must not count as a fault.
            Level(
                "PDPTE",
                30,
                2,
                Leaf.NEVER,
                _FRAME_64,
                reserved=_bits(2, 1) | _bits(8, 6) | NX,
                permissions=False,
            ),
            _PDE_64,
            _PTE_64,
        ),
        entry_size=8,
        root_mask=0xFFFF_FFE0,
        virtual_bits=32,
    ),
    PagingMode.FOUR_LEVEL: Mode(_FOUR, entry_size=8, root_mask=_FRAME_64, virtual_bits=48),  # 4.5
    PagingMode.FIVE_LEVEL: Mode(
        (Level("PML5E", 48, 9, Leaf.NEVER, _FRAME_64, reserved=PAGE_SIZE_BIT), *_FOUR),
        entry_size=8,
        root_mask=_FRAME_64,
        virtual_bits=57,
    ),
}


def root(mode: PagingMode, cr3: int) -> int:
    """Physical address of the root table: CR3 without PCID, PWT, PCD, LAM bits and bit 63.

    Page-aligned, but for PAE, whose PDPT is 32-byte aligned (SDM 4.3, 4.4.1, 4.5: the use of CR3).
    """
    return cr3 & MODES[mode].root_mask


def root_size(mode: PagingMode) -> int:
    """Bytes of the root table: 32 for PAE's PDPT, else 4096."""
    return MODES[mode].table_size(MODES[mode].levels[0])


def entries(mode: PagingMode, table_bytes: bytes) -> Words:
    """A table's entries as uint64, whatever their width. Raises ValueError when a part of one is missing."""
    size = MODES[mode].entry_size
    if len(table_bytes) % size:
        raise ValueError(f"{len(table_bytes)} bytes are no whole number of {size}-byte entries")
    return np.frombuffer(table_bytes, dtype=f"<u{size}").astype(np.uint64)


@functools.cache
def levels(mode: PagingMode, *, pse: bool = True, nx: bool = True, maxphyaddr: int = 52) -> tuple[Level, ...]:
    """The levels of a mode as CR4.PSE, EFER.NXE and MAXPHYADDR (32..52) make them, the root's first.

    CR4.PSE has a meaning in 2-level paging only, EFER.NXE in all others (4.1.3, 4.1.4).
    Without PSE-36 pass maxphyaddr=32: then bits 21:13 of a 4 MiB page's entry are reserved (4.3).
    """
    if not 32 <= maxphyaddr <= 52:
        raise ValueError(f"MAXPHYADDR is {maxphyaddr}, not in 32..52")
    found = MODES[mode].levels
    if mode is PagingMode.TWO_LEVEL:
        pde, pte = found
        beyond = _bits(21, min(maxphyaddr, _WIDEST_PSE36) - 19)
        return (replace(pde, leaf=Leaf.WITH_PS if pse else Leaf.NEVER, page_reserved=beyond), pte)
    # PAE reserves 62:M; in the longer modes bits 62:52 are ignored or a protection key (4.4.2, 4.5.4).
    beyond = _bits(62 if mode is PagingMode.PAE else 51, maxphyaddr) | (0 if nx else NX)
    return tuple(
        replace(level, reserved=level.reserved | beyond, page_reserved=level.page_reserved | beyond) for level in found
    )


def page_address(level: Level, entry: Entry) -> Entry:
    """Physical address of the page that an entry maps, bytes."""
    return (entry & level.page_frame) | ((entry & level.page_high) << 19)


def allowed(level: Level, entry: Entry) -> Entry:
    """What one entry allows: R/W, U/S, and bit 63 set when it does *not* forbid execution.

    AND them along the way for what a translation allows (4.6).
    """
    return (entry ^ NX) & PERMISSIONS if level.permissions else (entry & 0) | PERMISSIONS


def flags(permitted: Entry, entry: Entry) -> Entry:
    """`Flags` from what the way allows (see `allowed`) and the entry that maps the page."""
    return (
        ((permitted & (WRITABLE | USER)) >> 1)
        | ((permitted & NX) >> 61)
        | ((entry & GLOBAL) >> 5)
        | ((entry & (ACCESSED | DIRTY)) >> 1)
    )


def canonical(mode: Mode, virtual: Entry) -> Entry:
    """Sign-extend a virtual address of the mode's width to 64 bits (32-bit modes: unchanged) (4.5.1)."""
    if mode.virtual_bits == 32:
        return virtual
    sign: Entry = (virtual >> (mode.virtual_bits - 1)) & 1
    extended: Entry = virtual | (sign * _bits(63, mode.virtual_bits))
    return extended
