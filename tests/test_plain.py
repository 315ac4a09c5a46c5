"""What a plain kexec rests on, apart from a machine."""

from __future__ import annotations

from rig.model import Range
from rig.plain import ram


def test_ram_that_setup_data_splits_is_one_range() -> None:
    iomem = (
        Range(0x1000, 0x9FBFF, "System RAM"),
        Range(0x9FC00, 0x9FFFF, "Reserved"),
        Range(0x100000, 0x10000F, "System RAM"),
        Range(0x100010, 0x1FFDFFFF, "System RAM"),
        Range(0x1C000000, 0x1CE01D31, "Kernel code", 1),
    )
    assert [(r.start, r.last) for r in ram(iomem)] == [(0x1000, 0x9FBFF), (0x100000, 0x1FFDFFFF)]
