"""Two versions of the same bytes, compared byte by byte. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def changed_ranges(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """(offset, length) of each run of bytes that differ, ascending. Raises ValueError on unequal lengths."""
    differs = _differs(before, after).astype(np.int8)
    edges = np.diff(differs, prepend=np.int8(0), append=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


def bytes_changed(before: bytes, after: bytes) -> int:
    """How many bytes differ. Raises ValueError on unequal lengths."""
    return int(np.count_nonzero(_differs(before, after)))


def _differs(before: bytes, after: bytes) -> NDArray[np.bool_]:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} bytes can't be compared with {len(after)}")
    differs: NDArray[np.bool_] = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    return differs
