"""Packed data that is anybody's: what it unpacks to is bounded, and torn data is not taken for whole."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard

from rig.kernel.payload import Undecodable, decompress

MIB = 1 << 20


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE, preset=0)


def zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


ZSTD = (zstandard.compress, zstd_without_size)
PACKERS = [gzip.compress, xz, alone, bz2.compress, *ZSTD]


@pytest.mark.parametrize("pack", PACKERS)
def test_a_bomb_is_refused_without_being_unpacked(pack: Callable[[bytes], bytes]) -> None:
    size = (64 if pack in ZSTD else 8) * MIB  # zstd unpacks up to 32 MiB at a time before it is seen
    bomb = pack(bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="unpacks to more than 1 MiB"):
            decompress(bomb, MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size * 2 // 3
    assert len(decompress(bomb, size)) == size


@pytest.mark.parametrize("pack", PACKERS)
def test_a_stream_that_ends_too_early(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(bytes(range(256)) * 40)
    assert decompress(packed) == bytes(range(256)) * 40
    with pytest.raises(Undecodable, match="broken data"):
        decompress(packed[:-6])


def test_a_dictionary_of_four_gigabytes() -> None:
    packed = bytearray(alone(b"kernel"))
    packed[1:5] = b"\xff\xff\xff\xff"  # dict_size
    packed[:3] = b"\x5d\0\0"  # the magic number that kernels begin with
    packed[3:5] = b"\xff\xff"
    with pytest.raises(Undecodable, match="broken data: Memory usage limit"):
        decompress(bytes(packed))
