"""Twins of page directories that should have none. Pure over bytes.

With page-table isolation (PTI) on, every pgd of a process has a twin on the next page, which is live in user mode. The
kernel keeps the two in step by itself: an entry written to the user half of *any* pgd is written to the page after it
as well (arch/x86/include/asm/pgtable_64.h, native_set_pgd(); arch/x86/mm/pti.c, __pti_set_user_pgtbl()). The pgd that
kexec builds for its identity map is a single page, so until d0ceea662d45 ("x86/mm: Add _PAGE_NOPTISHADOW bit to avoid
updating userspace page tables", 6.13) those writes hit whatever lay there: another page of the image.

4-level and 5-level paging only: with PAE the image's pgd is allocated together with a twin (PGD_ALLOCATION_ORDER).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rig.memory.levels import ACCESSED, DIRTY, NX, PRESENT
from rig.memory.physical import Memory
from rig.model import PAGE_SIZE

_USER_HALF = 256  # entries: of 512, those that map user space
_OWN = np.uint64(ACCESSED | DIRTY | NX)  # bits in which a twin may differ from its pgd


@dataclass(frozen=True)
class StrayTwin:
    """A page that was written as if it were a pgd's twin. Physical addresses; entries: (index, value in the page)."""

    pgd: int
    page: int
    entries: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        held = ", ".join(f"[{index}] {value:#018x}" for index, value in self.entries)
        return f"page {self.page:#x}, after the image's pgd {self.pgd:#x}, holds its {held}"


def twin_of(root: int) -> int | None:
    """Where PTI looks for a pgd's twin, both physical: the page with bit 12 set. None when that is the pgd itself."""
    page = root & ~(PAGE_SIZE - 1)
    return None if page & PAGE_SIZE else page | PAGE_SIZE


def stray_twin(pgd: bytes, after: bytes) -> tuple[tuple[int, int], ...]:
    """The user-half entries of a pgd that the page after it holds as well: (index, value in that page).

    Accessed, dirty and NX bits aside. Not for a pgd that has a twin of its own: there they are what they must be.
    """
    ours, theirs = (np.frombuffer(page, "<u8", _USER_HALF) for page in (pgd, after))
    copied = (ours & np.uint64(PRESENT) != 0) & ((ours ^ theirs) & ~_OWN == 0)
    return tuple((index, int(theirs[index])) for index in np.flatnonzero(copied).tolist())


def stray_twins(memory: Memory, roots: Iterable[int]) -> list[StrayTwin]:
    """Of pgds without a twin of their own (physical addresses, bits 11:0 ignored), those that got one nevertheless.

    Raises OutsideMemory when a page is not in memory.
    """
    found = []
    for root in dict.fromkeys(root & ~(PAGE_SIZE - 1) for root in roots):
        if (page := twin_of(root)) is None:
            continue
        if entries := stray_twin(memory.read(root, PAGE_SIZE), memory.read(page, PAGE_SIZE)):
            found.append(StrayTwin(root, page, entries))
    return found
