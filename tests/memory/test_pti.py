from __future__ import annotations

import struct

import pytest

from rig.memory.image import PagesMemory
from rig.memory.pti import user_pgd
from rig.model import PagingMode

PGD = 0x2000  # the twin is at 0x3000
IDT = 0xFFFFFE0000000000
NX = 1 << 63


def table(entries: dict[int, int]) -> bytes:
    return struct.pack("<512Q", *(entries.get(i, 0) for i in range(512)))


def pages(user: dict[int, int], at: int = 3) -> PagesMemory:
    """Kernel pgd at 0x2000: a user entry (NX set), the entry area [508] and the direct map [273]."""
    return PagesMemory(
        {
            2: table({0: 0x9067 | NX, 508: 0x4063, 273: 0x7063}),
            at: table(user),
            4: table({0: 0x5063}),
            5: table({0: 0x6063}),
            6: table({0: 0x8063}),
        }
    )


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ({0: 0x9067, 508: 0x4063}, 0x3000),  # without the kernel's NX
        ({0: 0x9047, 508: 0x4063}, 0x3000),  # not accessed yet
        ({0: 0xA067, 508: 0x4063}, None),  # another user space
        ({0: 0x9067}, None),  # no way into the kernel
        ({}, None),
    ],
)
def test_a_twin_shares_the_user_half_and_maps_the_idt(user: dict[int, int], found: int | None) -> None:
    assert user_pgd(pages(user), PagingMode.FOUR_LEVEL, PGD, IDT) == found


def test_what_can_not_have_a_twin_has_none() -> None:
    memory = pages({0: 0x9067, 508: 0x4063})
    assert user_pgd(memory, PagingMode.TWO_LEVEL, PGD, IDT) is None
    assert user_pgd(memory, PagingMode.FOUR_LEVEL, 0x3000, IDT) is None  # already the second of two pages
