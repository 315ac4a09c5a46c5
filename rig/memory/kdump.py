"""makedumpfile's kdump-compressed format: which pages are in it, and the pages. Pure over its bytes.

In blocks of a page each: a header; a sub-header, with the notes of /proc/vmcore behind it; a bitmap of the pages that
the machine had, and one of those that are in the file, a bit a page frame; then a descriptor for each of these, by
ascending address, and their data, each page compressed for itself. makedumpfile's IMPLEMENTATION and diskdump_mod.h
say so; the structs have the sizes of the machine that makedumpfile ran on. All is little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import lzallright
import numpy as np
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.dump import MOST_BYTES
from rig.memory.vmcore import Load, VmcoreHeaders, parse_notes
from rig.model import PAGE_SIZE

SIGNATURE: Final = b"KDUMP   "
_MACHINE_AT: Final = 12 + 4 * 65  # utsname.machine; only its own first members come before it
_INCOMPLETE: Final = 0x8  # of status: makedumpfile ran out of space
_DESCRIPTOR: Final = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
_BATCH: Final = 4096  # descriptors read at once
_MOST_BLOCKS: Final = 4096  # of a page, before the descriptors: the bitmaps of a machine of 256 GiB take that
_MOST_RUNS: Final = 1 << 20  # of pages: a machine of 8 GiB of which every other page is in the file

Read = Callable[[int, int], bytes]  # offset in the file, size; shorter at the file's end


class _Header(NamedTuple):
    """struct disk_dump_header, without its times."""

    signature: bytes
    version: int
    utsname: bytes
    status: int
    block_size: int
    sub_header_blocks: int
    bitmap_blocks: int


class _SubHeader(NamedTuple):
    """Of struct kdump_sub_header what is used here."""

    offset_note: int
    size_note: int


@dataclass(frozen=True)
class _Layout:
    """header, sub_header: the structs up to the last member that is used; x where a member is not."""

    machine: str
    elf_class: int
    header: struct.Struct
    sub_header: struct.Struct


_LAYOUTS: Final = {
    "x86_64": _Layout("EM_X86_64", 64, struct.Struct("<8si390s6x16xIiiI"), struct.Struct("<48xqQ")),
    "i686": _Layout("EM_386", 32, struct.Struct("<8si390s2x8xIiiI"), struct.Struct("<32xqI")),
}


@dataclass(frozen=True)
class Kdump:
    """headers: as those of an ELF dump; the offsets of its loads are those of the pages laid end to end.

    descriptors: where the first lies in the file. pages: how many there are.
    """

    headers: VmcoreHeaders
    descriptors: int
    pages: int


def front_size(first_bytes: bytes) -> int:
    """How many bytes from the file's start parse_front() wants. first_bytes: at least the first two pages.

    Raises EvidenceError for what is not the front of such a file, or promises more than any machine has use for.
    """
    _, header = _header(first_bytes)
    blocks = 1 + header.sub_header_blocks + header.bitmap_blocks
    if blocks > _MOST_BLOCKS:
        raise EvidenceError(f"the dump's headers and bitmaps are said to take {blocks} pages: {_MOST_BLOCKS} are read")
    return blocks * PAGE_SIZE


def parse_front(blob: bytes) -> Kdump:
    """What is in the file, from its first front_size() bytes. Raises EvidenceError for anything else."""
    layout, header = _header(blob)
    end = front_size(blob)
    if len(blob) < end:
        raise EvidenceError(f"the bitmaps of the dump end at {end:#x}, only {len(blob):#x} bytes are here")
    sub = _SubHeader(*layout.sub_header.unpack_from(blob, PAGE_SIZE))
    notes_end = sub.offset_note + sub.size_note
    bitmaps = (1 + header.sub_header_blocks) * PAGE_SIZE
    if sub.offset_note < PAGE_SIZE or notes_end > bitmaps:
        raise EvidenceError(f"the notes of the dump lie at {sub.offset_note:#x}-{notes_end:#x}, outside its sub-header")
    second = np.frombuffer(blob[(bitmaps + end) // 2 : end], np.uint8)
    present = np.unpackbits(second, bitorder="little").view(np.bool_)
    notes = parse_notes(blob, [(sub.offset_note, notes_end)])
    headers = VmcoreHeaders(layout.elf_class, layout.machine, _loads(present), *notes)
    return Kdump(headers, end, int(present.sum()))


def pages(read: Read, dump: Kdump) -> Iterator[bytes]:
    """All pages that the file has, unpacked, in the order of the loads; fewer when it ends too early.

    Raises EvidenceError for a page that can't be unpacked, or can't be where its descriptor says.
    """
    for first in range(0, dump.pages, _BATCH):
        count = min(_BATCH, dump.pages - first)
        raw = read(dump.descriptors + first * _DESCRIPTOR.itemsize, count * _DESCRIPTOR.itemsize)
        whole = len(raw) // _DESCRIPTOR.itemsize
        for number, (offset, size, flags, _) in enumerate(np.frombuffer(raw, _DESCRIPTOR, whole).tolist(), first):
            # makedumpfile keeps a page as it is where packing makes it no smaller
            if not 0 <= offset < MOST_BYTES or size > PAGE_SIZE:
                raise EvidenceError(f"page {number} of the dump is said to be {size} bytes at {offset:#x}")
            data = read(offset, size)
            if len(data) < size:
                return
            yield _unpacked(number, data, flags)
        if whole < count:
            return


def _header(blob: bytes) -> tuple[_Layout, _Header]:
    if not blob.startswith(SIGNATURE):
        raise EvidenceError(f"the dump begins with {blob[:8]!r}, not with {SIGNATURE!r}")
    machine = blob[_MACHINE_AT : _MACHINE_AT + 65].split(b"\0")[0].decode("ascii", "backslashreplace")
    layout = _LAYOUTS.get(machine)
    if layout is None:
        raise EvidenceError(f"the dump is of a machine {machine!r}", hint=f"known: {', '.join(_LAYOUTS)}")
    if len(blob) < 2 * PAGE_SIZE:
        raise EvidenceError(f"of the dump's headers only {len(blob)} bytes are here")
    header = _Header(*layout.header.unpack_from(blob))
    if header.block_size != PAGE_SIZE or header.sub_header_blocks < 1 or header.bitmap_blocks % 2:
        raise EvidenceError(
            f"the dump's header makes no sense: block size {header.block_size}, {header.sub_header_blocks} blocks of"
            f" sub-header, {header.bitmap_blocks} of bitmaps"
        )
    if header.status & _INCOMPLETE:
        raise EvidenceError("makedumpfile has marked the dump as incomplete")
    return layout, header


def _loads(present: NDArray[np.bool_]) -> tuple[Load, ...]:
    """Runs of pages that are there, one behind the other in the order of their addresses."""
    edges = np.flatnonzero(np.diff(present, prepend=False, append=False)).reshape(-1, 2)
    if len(edges) > _MOST_RUNS:
        raise EvidenceError(f"the dump's bitmap has {len(edges)} runs of pages: it is garbage")
    sizes = (edges[:, 1] - edges[:, 0]) * PAGE_SIZE
    offsets = np.cumsum(sizes) - sizes
    rows = zip((edges[:, 0] * PAGE_SIZE).tolist(), offsets.tolist(), sizes.tolist(), strict=True)
    return tuple(Load(physical, 0, offset, size) for physical, offset, size in rows)


def _unpacked(number: int, data: bytes, flags: int) -> bytes:
    try:
        match flags:
            case 0:
                page = data
            case 0x1:  # DUMP_DH_COMPRESSED_ZLIB
                page = zlib.decompress(data)
            case 0x2:  # DUMP_DH_COMPRESSED_LZO
                page = lzallright.LZOCompressor.decompress(data, PAGE_SIZE)
            case _:
                raise EvidenceError(f"page {number} of the dump is compressed in a way not known here: {flags:#x}")
    except (zlib.error, lzallright.LZOError) as problem:
        raise EvidenceError(f"page {number} of the dump can't be unpacked: {problem}") from problem
    if len(page) != PAGE_SIZE:
        raise EvidenceError(f"page {number} of the dump has {len(page)} bytes")
    return page
