"""Which pages kexec copies where: the list that kimage->head leads to. Pure.

The kernel hands it to relocate_kernel, which walks it word by word (include/linux/kexec.h, kimage_entry_t). Each word
is the physical address of a page with one of these bits:

    IND_DESTINATION 1   the next source page goes here, those after it to the pages behind
    IND_INDIRECTION 2   the list goes on in this page
    IND_DONE        4   the end
    IND_SOURCE      8   a page to be copied
    IND_ZERO       16   a page to be filled with zeroes: only a Xen hypervisor's (xen/include/xen/kimage.h)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE

DESTINATION, INDIRECTION, DONE, SOURCE, ZERO = 1, 2, 4, 8, 16
_FLAGS = DESTINATION | INDIRECTION | DONE | SOURCE | ZERO
NOWHERE = (1 << 64) - 1  # instead of the source of a page that is filled with zeroes
MOST = 1 << 22  # words: more than any list for 16 GiB has


@dataclass(frozen=True)
class PageList:
    """Physical addresses. destinations, sources (or NOWHERE): of pages, in the order of copying; lists: the pages that
    the list is in; end: of the word IND_DONE."""

    destinations: NDArray[np.uint64]
    sources: NDArray[np.uint64]
    lists: tuple[int, ...]
    end: int


def read(memory: Memory, head: int, word: int) -> PageList:
    """Follow the list. head: the struct's first word. word: bytes of a word.

    :raise EvidenceError: it leads out of memory, has no end, or a word that is none of these. Each of its pages ends
        with the way to the next one at the latest (kimage_add_entry(), kernel/kexec_core.c)
    """
    pairs: list[tuple[int, int]] = []
    lists: dict[int, None] = {}
    entry, at, destination = head, 0, None
    for _ in range(MOST):
        flag, page = entry & _FLAGS, entry & ~(PAGE_SIZE - 1)
        if flag == DONE:
            pages = np.array(pairs, np.uint64).reshape(-1, 2)
            return PageList(pages[:, 0], pages[:, 1], tuple(lists), at)
        if flag == INDIRECTION:
            if page in lists:
                raise EvidenceError(f"the image's list of pages runs in a circle: back to {page:#x} from {at:#x}")
            lists[page] = None
            at = page - word
        elif flag == DESTINATION:
            destination = page
        elif flag in (SOURCE, ZERO) and destination is not None:
            pairs.append((destination, page if flag == SOURCE else NOWHERE))
            destination += PAGE_SIZE
        else:
            raise EvidenceError(f"the image's list of pages makes no sense: {entry:#x} at {at:#x}")
        if not lists:
            raise EvidenceError(f"the image's list of pages begins with {entry:#x}, which leads to no page of a list")
        at += word
        if flag != INDIRECTION and at % PAGE_SIZE == 0:
            raise EvidenceError(f"the image's list of pages runs over the end of its page at {at:#x}")
        try:
            entry = int.from_bytes(memory.read(at, word), "little")
        except OutsideMemory as problem:
            raise EvidenceError(f"the image's list of pages leads out of memory: {problem}") from problem
    raise EvidenceError(f"the image's list of pages has no end after {MOST} words")


def wanted_hashes(
    sources: NDArray[np.uint64], at: Callable[[NDArray[np.uint64]], NDArray[np.uint64]]
) -> NDArray[np.uint64]:
    """xxh3_64 of what each source puts at its destination. at: the hashes of pages at physical addresses."""
    wanted = np.full(len(sources), xxhash.xxh3_64_intdigest(bytes(PAGE_SIZE)), np.uint64)
    copied = sources != NOWHERE
    wanted[copied] = at(sources[copied])
    return wanted
