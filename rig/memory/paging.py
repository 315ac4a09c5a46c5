"""Page tables: single translations, whole address spaces (`walk`), and what changed between two versions.

Pure: memory is whatever can read bytes. What a mode looks like: rig.memory.levels. Source: Intel SDM, vol. 3,
chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rig.memory.levels import (
    ACCESSED,
    DIRTY,
    MODES,
    PERMISSIONS,
    PRESENT,
    Flags,
    Level,
    Words,
    allowed,
    canonical,
    entries,
    flags,
    levels,
    page_address,
    root,
    root_size,
)
from rig.memory.physical import Memory, OutsideMemory
from rig.memory.walk import AddressSpace, Problem, ProblemKind, TablePage, walk
from rig.model import PAGE_SIZE, PagingMode

__all__ = [
    "AddressSpace",
    "EntryChange",
    "EntryChanges",
    "Flags",
    "Memory",
    "NotMapped",
    "OutsideMemory",
    "Problem",
    "ProblemKind",
    "TablePage",
    "Translation",
    "entries",
    "entry_changes",
    "root",
    "root_size",
    "translate",
    "walk",
]


class NotMapped(LookupError):
    """A virtual address has no translation; `reason` says at which entry and why."""

    def __init__(self, virtual: int, reason: str) -> None:
        super().__init__(f"{virtual:#x} is not mapped: {reason}")
        self.virtual = virtual
        self.reason = reason


@dataclass(frozen=True)
class Translation:
    """One virtual address translated. page_size in bytes; physical includes the offset into the page.

    writable, user, executable: what all entries on the way allow together (SDM 4.6), CR0.WP, SMEP, SMAP and
    protection keys aside. global_, accessed, dirty: bits of the entry that maps the page.
    path: (level, physical address of the entry, its value), the root's first.
    """

    virtual: int
    physical: int
    page_size: int
    flags: Flags
    path: tuple[tuple[str, int, int], ...]

    @property
    def writable(self) -> bool:
        return Flags.WRITABLE in self.flags

    @property
    def user(self) -> bool:
        return Flags.USER in self.flags

    @property
    def executable(self) -> bool:
        return Flags.EXECUTABLE in self.flags

    @property
    def global_(self) -> bool:
        return Flags.GLOBAL in self.flags

    @property
    def accessed(self) -> bool:
        return Flags.ACCESSED in self.flags

    @property
    def dirty(self) -> bool:
        return Flags.DIRTY in self.flags


def translate(
    memory: Memory,
    mode: PagingMode,
    cr3: int,
    virtual: int,
    *,
    pse: bool = True,
    nx: bool = True,
    maxphyaddr: int = 52,
) -> Translation:
    """Translate one virtual address. Raises NotMapped, saying why, for whatever the CPU would fault on.

    pse: CR4.PSE; nx: EFER.NXE; maxphyaddr: see `rig.memory.levels.levels`. 1 GiB pages count as supported.
    """
    shape = MODES[mode]
    if not 0 <= virtual < 1 << 64 or canonical(shape, virtual & ((1 << shape.virtual_bits) - 1)) != virtual:
        kind = "wider than 32 bits" if shape.virtual_bits == 32 else "non-canonical"
        raise NotMapped(virtual, f"the address is {kind}")
    table, permitted = root(mode, cr3), PERMISSIONS
    path: list[tuple[str, int, int]] = []
    for level in levels(mode, pse=pse, nx=nx, maxphyaddr=maxphyaddr):
        index = virtual >> level.shift & ((1 << level.bits) - 1)
        address = table + index * shape.entry_size
        try:
            value = int.from_bytes(memory.read(address, shape.entry_size), "little")
        except OutsideMemory as error:
            raise NotMapped(virtual, f"the {level.table} at {table:#x} is outside memory") from error
        path.append((level.name, address, value))
        is_page = _checked_leaf(level, index, value, virtual)
        permitted &= allowed(level, value)
        if is_page:
            physical = page_address(level, value) + virtual % level.span
            return Translation(virtual, physical, level.span, Flags(flags(permitted, value)), tuple(path))
        table = value & level.frame
    raise AssertionError("the last level of every mode maps pages")


def read(memory: Memory, mode: PagingMode, cr3: int, virtual: int, size: int) -> bytes:
    """Bytes at a virtual address, through as many pages as they lie in.

    Raises NotMapped, and OutsideMemory when there is no memory where the tables lead to.
    """
    blob = b""
    while len(blob) < size:
        at = virtual + len(blob)
        part = min(size - len(blob), PAGE_SIZE - at % PAGE_SIZE)
        blob += memory.read(translate(memory, mode, cr3, at).physical, part)
    return blob


def _checked_leaf(level: Level, index: int, value: int, virtual: int) -> bool:
    """Whether an entry maps a page. Raises NotMapped when it is not present or sets a reserved bit."""
    if not value & PRESENT:
        raise NotMapped(virtual, f"not present at {level.name} [{index}] ({value:#x})")
    mask, expected = level.leaf.value
    is_page = value & mask == expected
    wrong = value & (level.page_reserved if is_page else level.reserved)
    if wrong:
        raise NotMapped(virtual, f"reserved bits {wrong:#x} set at {level.name} [{index}] ({value:#x})")
    return is_page


@dataclass(frozen=True)
class EntryChange:
    index: int
    before: int
    after: int


@dataclass(frozen=True)
class EntryChanges:
    """How two versions of a table differ.

    changed: entries that differ in more than the CPU itself sets; bytes_changed: differing bytes in them.
    ad_only: the other entries that differ; ad_bits: how many accessed/dirty bits went from 0 to 1 in them.
    """

    changed: tuple[EntryChange, ...]
    ad_only: tuple[EntryChange, ...]
    bytes_changed: int
    ad_bits: int


def entry_changes(mode: PagingMode, before: bytes, after: bytes, *, level: int = 0, pse: bool = True) -> EntryChanges:
    """Compare two versions of a table (of its page, or of any run of entries) of a level, 0 being the root.

    The CPU sets A in any present entry that it uses, and D where the entry maps a page (SDM 4.8); it clears
    neither. A in a PAE PDPTE, which no real CPU sets, is counted with them: QEMU's TCG does set it.
    Raises ValueError when the lengths differ or are no whole number of entries.
    """
    if len(before) != len(after):
        raise ValueError(f"the table had {len(before)} bytes before and has {len(after)} after")
    old, new = entries(mode, before), entries(mode, after)
    mask, expected = levels(mode, pse=pse)[level].leaf.value
    settable = np.where(old & mask == expected, np.uint64(ACCESSED | DIRTY), np.uint64(ACCESSED))
    differs = old != new
    by_cpu = differs & ((old & PRESENT) != 0) & ((old ^ new) & ~settable == 0) & (old & ~new == 0)
    ours = differs & ~by_cpu
    raw = (old ^ new)[ours].view(np.uint8)
    return EntryChanges(
        changed=_listed(old, new, ours),
        ad_only=_listed(old, new, by_cpu),
        bytes_changed=int(np.count_nonzero(raw)),
        ad_bits=sum((int(value)).bit_count() for value in (old ^ new)[by_cpu]),
    )


def _listed(old: Words, new: Words, where: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[EntryChange, ...]:
    return tuple(EntryChange(int(i), int(old[i]), int(new[i])) for i in np.flatnonzero(where))
