from __future__ import annotations

import pytest

from rig.memory.diff import bytes_changed, changed_ranges


@pytest.mark.parametrize(
    ("before", "after", "ranges"),
    [
        (b"", b"", []),
        (b"same", b"same", []),
        (b"abcdef", b"Xbcdef", [(0, 1)]),
        (b"abcdef", b"abcdeX", [(5, 1)]),
        (b"abcdef", b"aXXdXf", [(1, 2), (4, 1)]),
        (b"\x00\x00", b"\xff\xff", [(0, 2)]),
    ],
)
def test_changes(before: bytes, after: bytes, ranges: list[tuple[int, int]]) -> None:
    assert changed_ranges(before, after) == ranges
    assert bytes_changed(before, after) == sum(length for _, length in ranges)


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="3 bytes can't be compared with 4"):
        changed_ranges(b"abc", b"abcd")
    with pytest.raises(ValueError, match="3 bytes can't be compared with 4"):
        bytes_changed(b"abc", b"abcd")
