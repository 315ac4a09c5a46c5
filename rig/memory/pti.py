"""Page-table isolation: the user twin of a pgd, found by what it holds. Pure.

With PTI a pgd is two pages: the kernel's, and right behind it the user's (arch/x86/include/asm/pgtable.h,
kernel_to_user_pgdp()). Their user halves are the same, but that the kernel's may have NX set in addition
(arch/x86/mm/pti.c, __pti_set_user_pgtbl()); of the kernel's half the user's twin has only what entering the kernel
takes, the cpu_entry_area with the IDT among it.
"""

from __future__ import annotations

import numpy as np

from rig.memory import levels, paging
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, PagingMode

_TWIN = PAGE_SIZE  # the bit of the physical address in which the twins differ
# Entries of the user half: the lower half of the addresses; PAE's four entries are split 3 to 1 by default.
_USER_ENTRIES = {PagingMode.PAE: 3, PagingMode.FOUR_LEVEL: 256, PagingMode.FIVE_LEVEL: 256}


def user_pgd(memory: Memory, mode: PagingMode, cr3: int, idt: int) -> int | None:
    """Physical address of the user twin of the table at CR3; None when what lies there is no twin.

    idt: virtual address of the IDT, which both must map to the same place.
    """
    root = levels.root(mode, cr3)
    if mode not in _USER_ENTRIES or root & _TWIN:
        return None
    twin = root | _TWIN
    size = levels.root_size(mode)
    try:
        kernels, users = (levels.entries(mode, memory.read(at, size)) for at in (root, twin))
        same_idt = (
            paging.translate(memory, mode, root, idt).physical == paging.translate(memory, mode, twin, idt).physical
        )
    except (OutsideMemory, paging.NotMapped):
        return None
    # the CPU sets accessed bits in the twin that it runs on
    shared = ~np.uint64(levels.NX | levels.ACCESSED)
    half = _USER_ENTRIES[mode]
    ours, theirs = kernels[:half] & shared, users[:half] & shared
    return twin if same_idt and ours.any() and np.array_equal(ours, theirs) else None
