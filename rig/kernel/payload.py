"""Decompression of what a kernel image or a package carries, by magic, as far as Python's own library and zstandard go.

What is packed may be anybody's: it is unpacked up to a bound, whatever it says about its own size.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from rig.late import late

if TYPE_CHECKING:
    import zstandard
else:
    zstandard = late("zstandard")

# Bytes. KERNEL_IMAGE_SIZE (arch/x86/include/asm/page_64_types.h): no kernel without KASLR may be larger.
MOST = 512 << 20
# Bytes of history that a decompressor may ask for: the kernel's scripts use `xz --lzma2=dict=128MiB` at most, and
# `zstd --ultra -22`, whose window is as large.
_DICTIONARY = 256 << 20
_LZMA_MEMORY = _DICTIONARY + (16 << 20)  # what liblzma takes beside its dictionary is a few hundred KiB
# A zstd block of 4 bytes can stand for 128 KiB (RFC 8878, 3.1.1.2.3), and zstandard unpacks all it is given: so much
# packed at a time comes to 32 MiB at most.
_ZSTD_STEP = 1024


class Undecodable(Exception):
    """These bytes can't be decompressed; says why."""


class _Stream(Protocol):
    """lzma's and bz2's decompressors."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _streamed(stream: _Stream, data: bytes, most: int) -> tuple[bytes, bool]:
    unpacked = stream.decompress(data, most + 1)
    return unpacked, stream.eof


def _gzip(data: bytes, most: int) -> tuple[bytes, bool]:
    stream = zlib.decompressobj(wbits=31)
    return stream.decompress(data, most + 1), stream.eof


def _xz(data: bytes, most: int) -> tuple[bytes, bool]:
    return _streamed(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY), data, most)


def _lzma(data: bytes, most: int) -> tuple[bytes, bool]:
    return _streamed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY), data, most)


def _bzip2(data: bytes, most: int) -> tuple[bytes, bool]:
    return _streamed(bz2.BZ2Decompressor(), data, most)


def _zstd(data: bytes, most: int) -> tuple[bytes, bool]:
    stream = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY).decompressobj()
    parts, size = [], 0
    for start in range(0, len(data), _ZSTD_STEP):
        parts.append(stream.decompress(data[start : start + _ZSTD_STEP]))
        size += len(parts[-1])
        if stream.eof or size > most:
            break
    return b"".join(parts), stream.eof


def _plain(data: bytes, _most: int) -> tuple[bytes, bool]:
    return data, True


# Magic -> decompressor: (packed, most bytes wanted) -> (unpacked, perhaps one byte more or a lot; whether the stream
# ended). All stop at the stream's end: the build appends the size (scripts/Makefile.lib).
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes, int], tuple[bytes, bool]]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\0", _xz),
    (b"BZh", _bzip2),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x5d\0\0", _lzma),
    (b"\x7fELF", _plain),  # CONFIG_KERNEL_UNCOMPRESSED
)
_OTHER = {b"\x02\x21\x4c\x18": "LZ4", b"\x89LZO": "LZO"}


def decompress(data: bytes, most: int = MOST) -> bytes:
    """The uncompressed stream at the start of data; what follows the stream is ignored.

    :raise Undecodable: unknown or unsupported format, broken data, data that ends too early, or more than `most` bytes
    """
    for magic, name in _OTHER.items():
        if data.startswith(magic):
            raise Undecodable(f"the rig has no decompressor for {name}")
    for magic, decompressor in _DECOMPRESSORS:
        if data.startswith(magic):
            try:
                unpacked, ended = decompressor(data, most)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, zstandard.ZstdError) as error:
                raise Undecodable(f"broken data: {error}") from error
            if len(unpacked) > most:
                raise Undecodable(f"it unpacks to more than {most >> 20} MiB")
            if not ended:
                raise Undecodable("broken data: it ends too early")
            return unpacked
    raise Undecodable("compressed in a way the rig doesn't know")
