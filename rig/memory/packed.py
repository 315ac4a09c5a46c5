"""How pages and their hashes are kept in evidence: compressed with zstd, little-endian. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.model import PAGE_SIZE

MAGIC = b"RIGPAGES"
_LAST_PFN = (1 << 40) - 1  # of 52 bits of physical address (SDM vol. 3, 4.1.4)


def pack_pages(pages: Mapping[int, bytes]) -> bytes:
    """MAGIC, count (u64), pfns (u64 each, ascending), then 4096 bytes each; zstd over all of it."""
    pfns = sorted(pages)
    raw = MAGIC + struct.pack("<Q", len(pfns)) + struct.pack(f"<{len(pfns)}Q", *pfns)
    return zstandard.compress(raw + b"".join(pages[pfn] for pfn in pfns), 3)


def unpack_pages(blob: bytes, source: Path) -> dict[int, bytes]:
    """What pack_pages packed. Raises EvidenceError, naming the source, for anything else."""
    try:
        raw = zstandard.decompress(blob)
    except zstandard.ZstdError as problem:
        raise EvidenceError(f"{source}: {problem}") from problem
    if raw[:8] != MAGIC or len(raw) < 16:
        raise EvidenceError(f"{source}: not a page file")
    (count,) = struct.unpack_from("<Q", raw, 8)
    start = 16 + 8 * count
    if len(raw) != start + count * PAGE_SIZE:
        raise EvidenceError(f"{source}: {count} pages announced, {len(raw)} bytes found")
    pfns = struct.unpack_from(f"<{count}Q", raw, 16)
    if any(pfn > _LAST_PFN for pfn in pfns[-1:]) or any(low >= high for low, high in pairwise(pfns)):
        raise EvidenceError(f"{source}: its pages are not in the order of their numbers")
    return {pfn: raw[start + i * PAGE_SIZE : start + (i + 1) * PAGE_SIZE] for i, pfn in enumerate(pfns)}


def pack_hashes(hashes: NDArray[np.uint64]) -> bytes:
    """8 bytes each, in their order; zstd over all of it."""
    return zstandard.compress(hashes.astype("<u8").tobytes(), 3)


def unpack_hashes(blob: bytes, source: Path) -> NDArray[np.uint64]:
    """What pack_hashes packed. Raises EvidenceError, naming the source, for anything else."""
    try:
        return np.frombuffer(zstandard.decompress(blob), dtype="<u8")
    except (zstandard.ZstdError, ValueError) as problem:
        raise EvidenceError(f"{source}: {problem}") from problem
