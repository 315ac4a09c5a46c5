"""kdump-compressed files of a few pages, as makedumpfile writes them on x86_64 and on i386."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import lzallright
import pytest

from rig.errors import EvidenceError
from rig.memory import kdump
from rig.memory.dump import cut
from tests.memory.forged_vmcore import note, prstatus_i386

PAGE = 4096
HERE = (1, 2, 3, 9, 40000)  # page frames in the file; the last needs the second block of its bitmap
CONTENT = [bytes([number, 7]) * (PAGE // 2) for number in range(len(HERE))]
PACK: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: zlib.compress,
    2: lzallright.LZOCompressor().compress,
    0x20: bytes,  # zstd, which isn't read here
}
NOTES = note(b"CORE", 1, prstatus_i386(0xC0010000, 0xC0200000)) + note(b"VMCOREINFO", 0, b"PAGESIZE=4096\n")


def header(machine: str, status: int = 0, block_size: int = PAGE, bitmap_blocks: int = 4) -> bytes:
    """struct disk_dump_header: its timeval is 16 bytes, aligned to 8, or 8 aligned to 4."""
    utsname = b"".join(word.encode().ljust(65, b"\0") for word in ("Linux", "", "6.1.0", "#1", machine, ""))
    times = bytes(6 + 16) if machine == "x86_64" else bytes(2 + 8)
    rest = struct.pack("<IiiIIIIIIi", status, block_size, 1, bitmap_blocks, 65536, 5, 0, 0, 0, 1)
    return (b"KDUMP   " + struct.pack("<i", 6) + utsname + times + rest).ljust(PAGE, b"\0")


def sub_header(machine: str, at: int = PAGE + 104) -> bytes:
    """struct kdump_sub_header, with the notes behind it."""
    word = "Q" if machine == "x86_64" else "I"
    fixed = struct.pack(
        f"<{word}ii{word}{word}q{word}q{word}q{word}QQQ", 0, 0, 0, 0, 0, 0, 0, at, len(NOTES), 0, 0, 0, 0, 0
    )
    return (fixed.ljust(104, b"\0") + NOTES).ljust(PAGE, b"\0")


def bitmaps() -> bytes:
    bits = bytearray(2 * PAGE)
    for pfn in HERE:
        bits[pfn // 8] |= 1 << pfn % 8
    return b"\xff" * 2 * PAGE + bytes(bits)


def file(machine: str = "x86_64", flags: int = 1) -> bytes:
    front = header(machine) + sub_header(machine) + bitmaps()
    packed = [PACK[flags](page) for page in CONTENT]
    packed[3] = packed[0]  # makedumpfile writes pages of zeroes once
    at = len(front) + 24 * len(packed)
    descriptors = b""
    for number, data in enumerate(packed):
        offset = at + sum(map(len, packed[:number]))
        descriptors += struct.pack("<qIIQ", offset, len(data), flags, 0)
    return front + descriptors + b"".join(packed)


def unpacked(blob: bytes) -> list[bytes]:
    dump = kdump.parse_front(blob[: kdump.front_size(blob[: 2 * PAGE])])
    return list(kdump.pages(lambda at, size: blob[at : at + size], dump))


@pytest.mark.parametrize("machine", ["x86_64", "i686"])
@pytest.mark.parametrize("flags", [0, 1, 2])
def test_pages_come_unpacked_and_with_their_addresses(machine: str, flags: int) -> None:
    blob = file(machine, flags)
    dump = kdump.parse_front(blob[: kdump.front_size(blob[: 2 * PAGE])])
    assert unpacked(blob) == [*CONTENT[:3], CONTENT[0], CONTENT[4]]
    pieces = cut(dump.headers.loads)
    assert pieces.address.tolist() == [pfn * PAGE for pfn in HERE]
    assert pieces.offset.tolist() == [number * PAGE for number in range(len(HERE))]


def test_the_notes_of_the_vmcore_are_in_its_front() -> None:
    headers = kdump.parse_front(file("i686")).headers
    assert (headers.machine, headers.vmcoreinfo) == ("EM_386", {"PAGESIZE": "4096"})
    assert headers.prstatus[0].general["rip"] == 0xC0010000


@pytest.mark.parametrize("missing", [1, 3 * len(zlib.compress(CONTENT[0]))])
def test_a_file_that_ends_too_early_gives_fewer_pages(missing: int) -> None:
    found = unpacked(file()[:-missing])
    assert found == unpacked(file())[: len(found)]
    assert 0 < len(found) < len(HERE)


def test_a_file_without_descriptors_gives_none() -> None:
    front = kdump.front_size(file()[: 2 * PAGE])
    assert unpacked(file()[: front + 23]) == []


def spoilt(blob: bytes, at: int, new: bytes) -> bytes:
    return blob[:at] + new + blob[at + len(new) :]


FRONT = len(header("x86_64")) + PAGE + len(bitmaps())
DATA = FRONT + 24 * len(HERE)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"\x7fELF" + file()[4:], "begins with"),
        (file("sparc64"), "a machine 'sparc64'"),
        (file()[:PAGE], "only 4096 bytes are here"),
        (spoilt(file(), 0, header("x86_64", block_size=65536)), "makes no sense: block size 65536"),
        (spoilt(file(), 0, header("x86_64", bitmap_blocks=3)), "3 of bitmaps"),
        (spoilt(file(), 0, header("x86_64", status=8)), "marked the dump as incomplete"),
        (spoilt(file(), PAGE, sub_header("x86_64", at=PAGE * 2 - 8)), "outside its sub-header"),
        (file(flags=0x20), "a way not known here: 0x20"),
        (spoilt(file(flags=1), DATA, b"\0\0\0\0"), "page 0 of the dump can't be unpacked"),
        (spoilt(file(flags=2), DATA, b"\xff\xff\xff\xff"), "page 0 of the dump can't be unpacked"),
        (spoilt(file(flags=0), FRONT + 24 + 8, struct.pack("<I", 100)), "page 1 of the dump has 100 bytes"),
        (spoilt(file(), FRONT + 8, struct.pack("<I", 4097)), "page 0 of the dump is said to be 4097 bytes"),
        (spoilt(file(), FRONT, struct.pack("<q", -8)), "page 0 of the dump is said to be 28 bytes at -0x8"),
    ],
)
def test_anything_else_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        unpacked(blob)


def test_a_front_that_is_cut_off() -> None:
    with pytest.raises(EvidenceError, match="bitmaps of the dump end at 0x6000, only 0x5fff"):
        kdump.parse_front(file()[:0x5FFF])


def test_bitmaps_of_a_machine_that_nobody_has() -> None:
    with pytest.raises(EvidenceError, match="said to take 268435458 pages"):
        kdump.front_size(spoilt(file(), 0, header("x86_64", bitmap_blocks=1 << 28)))


def test_a_bitmap_of_every_other_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdump, "_MOST_RUNS", 1000)
    blob = spoilt(file(), FRONT - 2 * PAGE, b"\x55" * PAGE)
    with pytest.raises(EvidenceError, match="16385 runs of pages: it is garbage"):
        kdump.parse_front(blob)
