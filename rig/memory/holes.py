"""Sparse files by chunks: what is a hole need not be read. Without numpy, for what comes before a guest starts."""

from __future__ import annotations

import errno
import os

CHUNK = 1 << 20  # bytes; small enough for one to stay in a core's cache between being read and looked at


def next_data(fd: int, start: int, size: int) -> int:
    """Where the file has data from `start` on; not below `size`, rounded up to whole chunks, when nowhere before."""
    nowhere = -(-size // CHUNK) * CHUNK
    if start >= size:
        return nowhere
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as problem:
        if problem.errno != errno.ENXIO:  # what a hole up to the file's end is
            raise
        return nowhere
