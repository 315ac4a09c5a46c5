"""Decompression of what a kernel image carries, by magic, as far as Python's own library and zstandard go."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from rig.late import late

if TYPE_CHECKING:
    import zstandard
else:
    zstandard = late("zstandard")


class Undecodable(Exception):
    """These bytes can't be decompressed; says why."""


def _zstd(data: bytes) -> bytes:
    # The kernel is packed with `zstd --ultra -22`: a window beyond the default limit.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj().decompress(data)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)


# Magic -> decompressor. All stop at the stream's end: the build appends the size (scripts/Makefile.lib).
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x5d\0\0", _lzma),
    (b"\x7fELF", bytes),  # CONFIG_KERNEL_UNCOMPRESSED
)
_OTHER = {b"\x02\x21\x4c\x18": "LZ4", b"\x89LZO": "LZO"}


def decompress(data: bytes) -> bytes:
    """The uncompressed stream at the start of data; what follows the stream is ignored.

    :raise Undecodable: unknown or unsupported format, or broken data
    """
    for magic, name in _OTHER.items():
        if data.startswith(magic):
            raise Undecodable(f"the rig has no decompressor for {name}")
    for magic, decompressor in _DECOMPRESSORS:
        if data.startswith(magic):
            try:
                return decompressor(data)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, zstandard.ZstdError) as error:
                raise Undecodable(f"broken data: {error}") from error
    raise Undecodable("compressed in a way the rig doesn't know")
