"""Stray twins, on tables as kernels leave them at the panic when PTI is on."""

from __future__ import annotations

import pytest

from rig.memory.physical import OutsideMemory
from rig.memory.twins import StrayTwin, stray_twins
from tests.memory.hexmemory import hex_memory

# 6.1.192: the page after the image's pgd is its control code page, into which the code is copied only later.
SCRIBBLED = """
    d002000: 000000000d004063   # [0] the identity map's
    d002ff8: 0000000018dc2063   # [511] the control page at the address it runs at: kernel half, never mirrored
    d003000: 000000000d004063   # [0] as if this were a pgd
"""
# 6.12: the entry says by bit 58 (_PAGE_NOPTISHADOW) that it is not to be mirrored. The next page is the PDPT.
SPARED = """
    14002000: 0400000014003063
    14002ff8: 00000000101d6063
    14003000: 0000000014004063
"""


def test_the_page_after_the_images_pgd_is_written_as_its_twin() -> None:
    twin = StrayTwin(0xD002000, 0xD003000, ((0, 0xD004063),))
    assert stray_twins(hex_memory(SCRIBBLED), [0xD002000]) == [twin]
    assert stray_twins(hex_memory(SCRIBBLED), [0xD002FFF, 0xD002000]) == [twin]  # flags in CR3, loaded twice


def test_with_the_fix_there_is_no_twin() -> None:
    assert stray_twins(hex_memory(SPARED), [0x14002000]) == []


@pytest.mark.parametrize(
    ("entry", "twin", "stray"),
    [
        ("000000000d004063", "000000000d004003", True),  # accessed and dirty: the CPU's own doing
        ("800000000d004063", "000000000d004063", True),  # NX, which PTI sets in one of the two
        ("000000000d004063", "000000000d005063", False),  # another table
        ("000000000d004063", "000000000d004061", False),  # another permission
        ("000000000d004062", "000000000d004062", False),  # not present
        ("0000000000000000", "0000000000000000", False),
    ],
)
def test_what_counts_as_the_same_entry(entry: str, twin: str, stray: bool) -> None:
    memory = hex_memory(f"d0027f8: {entry}\nd0037f8: {twin}")
    assert [found.entries for found in stray_twins(memory, [0xD002000])] == ([((255, int(twin, 16)),)] if stray else [])


def test_the_kernel_half_is_not_mirrored_and_does_not_count() -> None:
    memory = hex_memory("d002800: 000000000d004063\nd003800: 000000000d004063")
    assert stray_twins(memory, [0xD002000]) == []


def test_on_an_odd_page_a_pgd_has_no_twin_to_hit() -> None:
    memory = hex_memory("d003000: 000000000d004063")  # the page after it isn't even looked at
    assert stray_twins(memory, [0xD003000]) == []


def test_a_page_that_was_not_kept_is_no_clean_page() -> None:
    with pytest.raises(OutsideMemory):
        stray_twins(hex_memory("d002000: 000000000d004063"), [0xD002000])
