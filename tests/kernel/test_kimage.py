"""struct kimage of a plain kexec, found by plausibility."""

from __future__ import annotations

import struct

import pytest

from rig.errors import EvidenceError
from rig.kernel.kimage import parse_plain
from rig.model import Arch, Range

RAM = (Range(0x1000, 0x9FBFF, "System RAM"), Range(0x100000, 0x1FFFFFFF, "System RAM"))
KERNEL, PURGATORY = (0x1000000, 0x800000), (0x1FFD7000, 0x5000)


def struct_kimage(start: int, *segments: tuple[int, int], destination: tuple[int, ...] = ()) -> bytes:
    """x86_64: head, entry, last_entry, [destination], start, control_code_page, two words between, the segments."""
    virtual = 0xFFFF888001000000
    words = [0x5002, virtual, virtual + 8, *destination, start, 0xFFFFEA0000123440, 0, 0x1234, len(segments)]
    for mem, size in segments:
        words += [0x7F0000001000, size - 0x10, mem, size]
    return struct.pack(f"<{len(words)}Q", *words).ljust(1024, b"\0")


# kexec_file_load has the segments in the order in which they were added
@pytest.mark.parametrize("segments", [(KERNEL, PURGATORY), (PURGATORY, KERNEL)])
@pytest.mark.parametrize("destination", [(), (0x1000000,)])
def test_the_entry_is_in_one_of_the_segments(
    segments: tuple[tuple[int, int], ...], destination: tuple[int, ...]
) -> None:
    # a `destination` of old kernels may itself look like an entry, so it must lie outside
    blob = struct_kimage(0x1FFD7760, *segments, destination=tuple(d - 0x800000 for d in destination))
    image = parse_plain(blob, Arch.AMD64, 0xFFFF888003000000, RAM)
    assert (image.start, image.segments) == (0x1FFD7760, segments)


@pytest.mark.parametrize(
    "blob",
    [
        struct_kimage(0x1FFD7760, KERNEL),  # the entry is in none
        struct_kimage(0x1FFD7760, PURGATORY, PURGATORY),  # one over the other
        struct_kimage(0xA0010, (0xA0000, 0x1000)),  # no RAM there
        bytes(1024),
    ],
)
def test_what_makes_no_sense_is_not_judged(blob: bytes) -> None:
    with pytest.raises(EvidenceError, match="makes no sense"):
        parse_plain(blob, Arch.AMD64, 0xFFFF888003000000, RAM)
