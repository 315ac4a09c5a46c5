"""Page files that the rig never wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import zstandard

from rig.errors import EvidenceError
from rig.memory.packed import MAGIC, pack_pages, unpack_hashes, unpack_pages
from rig.model import PAGE_SIZE

SOURCE = Path("memory/panic.pages.zst")


def page_file(*pfns: int, count: int | None = None) -> bytes:
    counted = struct.pack("<Q", len(pfns) if count is None else count)
    return zstandard.compress(MAGIC + counted + struct.pack(f"<{len(pfns)}Q", *pfns) + bytes(len(pfns) * PAGE_SIZE))


def test_pages_come_back() -> None:
    pages = {(1 << 40) - 1: b"ab" * 2048, 7: bytes(PAGE_SIZE)}
    assert unpack_pages(pack_pages(pages), SOURCE) == pages


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "panic.pages.zst: "),
        (zstandard.compress(b"RIGPAGES"), "not a page file"),
        (page_file(1, 2, count=1 << 60), "1152921504606846976 pages announced"),
        (page_file(2, 1), "not in the order of their numbers"),
        (page_file(3, 3), "not in the order of their numbers"),
        (page_file(1 << 40), "not in the order of their numbers"),
    ],
)
def test_anything_else_is_refused_by_name(blob: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        unpack_pages(blob, SOURCE)


def test_hashes_are_whole() -> None:
    with pytest.raises(EvidenceError, match=r"panic\.pages\.zst: "):
        unpack_hashes(zstandard.compress(bytes(15)), SOURCE)
