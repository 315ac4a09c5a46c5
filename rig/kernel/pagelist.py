"""Which pages kexec copies where: the list that kimage->head leads to. Pure.

The kernel hands it to relocate_kernel, which walks it word by word (include/linux/kexec.h, kimage_entry_t). Each word
is the physical address of a page with one of these bits:

    IND_DESTINATION 1   the next source page goes here, those after it to the pages behind
    IND_INDIRECTION 2   the list goes on in this page
    IND_DONE        4   the end
    IND_SOURCE      8   a page to be copied
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE

DESTINATION, INDIRECTION, DONE, SOURCE = 1, 2, 4, 8
_FLAGS = DESTINATION | INDIRECTION | DONE | SOURCE
MOST = 1 << 22  # words: more than any list for 16 GiB has; beyond that it runs in a circle


@dataclass(frozen=True)
class PageList:
    """Physical addresses. destinations, sources: of pages, in the order of copying; lists: the pages that the list is
    in; end: of the word IND_DONE."""

    destinations: NDArray[np.uint64]
    sources: NDArray[np.uint64]
    lists: tuple[int, ...]
    end: int


def read(memory: Memory, head: int, word: int) -> PageList:
    """Follow the list. head: the struct's first word. word: bytes of a word.

    :raise EvidenceError: it leads out of memory, has no end, or a word that is none of the four
    """
    pairs: list[tuple[int, int]] = []
    lists: list[int] = []
    entry, at, destination = head, 0, None
    for _ in range(MOST):
        flag, page = entry & _FLAGS, entry & ~(PAGE_SIZE - 1)
        if flag == DONE:
            pages = np.array(pairs, np.uint64).reshape(-1, 2)
            return PageList(pages[:, 0], pages[:, 1], tuple(lists), at)
        if flag == INDIRECTION:
            lists.append(page)
            at = page - word
        elif flag == DESTINATION:
            destination = page
        elif flag == SOURCE and destination is not None:
            pairs.append((destination, page))
            destination += PAGE_SIZE
        else:
            raise EvidenceError(f"the image's list of pages makes no sense: {entry:#x} at {at:#x}")
        if not lists:
            raise EvidenceError(f"the image's list of pages begins with {entry:#x}, which leads to no page of a list")
        at += word
        try:
            entry = int.from_bytes(memory.read(at, word), "little")
        except OutsideMemory as problem:
            raise EvidenceError(f"the image's list of pages leads out of memory: {problem}") from problem
    raise EvidenceError(f"the image's list of pages has no end after {MOST} words")
