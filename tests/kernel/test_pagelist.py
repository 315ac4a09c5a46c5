"""The list of pages that kexec copies, written down by hand."""

from __future__ import annotations

import struct

import pytest

from rig.errors import EvidenceError
from rig.kernel.pagelist import NOWHERE, read
from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE

FIRST, SECOND = 0x5000, 0x9000  # pages of the list


def memory(first: list[int], second: list[int], word: str = "Q") -> PagesMemory:
    def page(words: list[int]) -> bytes:
        return struct.pack(f"<{len(words)}{word}", *words).ljust(PAGE_SIZE, b"\0")

    return PagesMemory({FIRST // PAGE_SIZE: page(first), SECOND // PAGE_SIZE: page(second)})


@pytest.mark.parametrize(("letter", "word"), [("Q", 8), ("I", 4)])
def test_destinations_go_on_from_page_to_page_and_the_list_too(letter: str, word: int) -> None:
    found = read(
        memory(
            # to 0x100000: two pages; then the list goes on elsewhere
            [0x100000 | 1, 0x40000 | 8, 0x77000 | 8, SECOND | 2],
            # one more page behind them, then one to 0x200000
            [0x41000 | 8, 0x200000 | 1, 0x42000 | 8, 4],
            letter,
        ),
        FIRST | 2,
        word,
    )
    assert found.destinations.tolist() == [0x100000, 0x101000, 0x102000, 0x200000]
    assert found.sources.tolist() == [0x40000, 0x77000, 0x41000, 0x42000]
    assert found.lists == (FIRST, SECOND)
    assert found.end == SECOND + 3 * word


def test_a_hypervisor_fills_pages_with_zeroes() -> None:
    found = read(memory([0x100000 | 1, 0x40000 | 8, 16, 0x41000 | 8, 4], []), FIRST | 2, 8)
    assert found.destinations.tolist() == [0x100000, 0x101000, 0x102000]
    assert found.sources.tolist() == [0x40000, NOWHERE, 0x41000]


@pytest.mark.parametrize(
    ("head", "first", "message"),
    [
        (FIRST | 2, [0x40000 | 8], "makes no sense"),  # a source without a destination
        (FIRST | 2, [0x100000 | 1, 0], "makes no sense"),  # ends without IND_DONE
        (FIRST | 2, [0xFF000 | 2], "out of memory"),
        (FIRST | 2, [FIRST | 2], "runs in a circle: back to"),
        (0x100000 | 1, [], "leads to no page of a list"),
        (FIRST | 2, [0x100000 | 1, *[0x40000 | 8] * 511], "runs over the end of its page at 0x6000"),
    ],
)
def test_what_is_no_list_is_not_guessed_at(head: int, first: list[int], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        read(memory(first, []), head, 8)
