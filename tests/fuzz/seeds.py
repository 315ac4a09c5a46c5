"""Small good files of every format: what fuzzing begins with, and what it changes."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import re
import struct
import tarfile
import zlib

import lzallright
import zstandard

from rig.kernel import symfile
from rig.memory.levels import MODES
from rig.memory.vmcore import Load
from rig.model import PAGE_SIZE, Arch, PagingMode
from tests.guest.forge import elf
from tests.kernel.forge import bzimage
from tests.kernel.test_linked import AMD64, vmlinux
from tests.memory import forged_vmcore, test_kdump, test_vmcore

IDENTITY_ROOT = 0x10_0000  # physical; above what it maps
_TEXT = b"text of a kernel " * 9


def vmcores() -> list[bytes]:
    loads = [Load(0x1000, 0xFFFF888000001000, 0x3000, 0x9EC0), Load(1 << 32, 0, 0xD000, 0x2000)]
    notes = forged_vmcore.note(b"CORE", 1, test_vmcore.prstatus_64(1)) + forged_vmcore.note(b"VMCOREINFO", 0, b"A=1\n")
    compact = forged_vmcore.vmcore_i386([(1, 2)], [(0, 0x10000, 0x5000), (0x9F000, 0x20000, 0xC00)])
    old = test_vmcore.vmcore(forged_vmcore.note(b"CORE", 1, test_vmcore.prstatus_32(1)), bits=32, machine=3, loads=[])
    return [compact, test_vmcore.vmcore(notes, loads=loads), old]


@functools.cache
def kdumps() -> list[bytes]:
    return [test_kdump.file(machine, flags) for machine in ("x86_64", "i686") for flags in (0, 1, 2)]


def kdump_of_page(flags: bytes, data: bytes) -> bytes:
    """A file that begins like a good one, all of whose pages have this data. flags: a byte."""
    good = kdumps()[0]
    front = good[: test_kdump.FRONT]
    descriptor = struct.pack("<qIIQ", len(front) + 24 * len(test_kdump.HERE), len(data), sum(flags) % 4, 0)
    return front + descriptor * len(test_kdump.HERE) + data


def packed_pages() -> list[bytes]:
    page = bytes(range(256)) * 16
    return [b"\1" + zlib.compress(page), b"\2" + lzallright.LZOCompressor().compress(page), b"\0" + page]


@functools.cache
def bzimages() -> list[bytes]:
    packers = (gzip.compress, lzma.compress, bz2.compress, zstandard.compress)
    return [bzimage("6.1.0 (x) #1", config="CONFIG_A=y\nCONFIG_B=2\n", pack=pack) for pack in packers] + [
        bzimage("2.6.18 (x)", protocol=0x204, kernel=b"\0x86_64\0"),
        bzimage("2.6.25 (x)", protocol=0x208, arch=Arch.I386, config="CONFIG_A=y\n"),
    ]


def payloads() -> list[bytes]:
    alone = lzma.compress(_TEXT, format=lzma.FORMAT_ALONE)
    stated = zstandard.ZstdCompressor(write_content_size=True).compress(_TEXT)
    return [gzip.compress(_TEXT), lzma.compress(_TEXT), alone, bz2.compress(_TEXT), zstandard.compress(_TEXT), stated]


def elf_files() -> list[bytes]:
    names = {0xC0100000: "machine_kexec", 0xC0200000: "panic"}
    return [
        elf("/lib/ld.so", ["libc.so.6", "libz.so.1"], ["depends=mii,libphy", "license=GPL"]),
        symfile.elf(names, Arch.AMD64),
        symfile.elf(names, Arch.I386),
        vmlinux(),
        vmlinux(machine=AMD64),
        *vmcores()[:1],
    ]


@functools.cache
def tars() -> list[bytes]:
    """In each of the three formats: a boot file, modules packed in several ways, a link."""
    module = elf(modinfo=["depends=x"])
    files = {
        "./boot/vmlinuz-6": b"kernel",
        "./lib/modules/6/a.ko.xz": lzma.compress(module),
        "./lib/modules/6/b-c.ko": module,
        f"./usr/lib/modules/6/{'long/' * 30}a.ko.zst": zstandard.compress(module),
    }
    return [_tar(files, kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _tar(files: dict[str, bytes], kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|", format=kind, bufsize=512) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("./boot/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    return stream.getvalue()


def with_checksums(archive: bytes) -> bytes:
    """A tar archive whose headers have the checksums that they should have: else nobody reads on."""
    blob, at = bytearray(archive), 0
    while at + tarfile.BLOCKSIZE <= len(blob):
        blob[at + 148 : at + 156] = b" " * 8
        blob[at + 148 : at + 156] = b"%06o\0 " % sum(blob[at : at + tarfile.BLOCKSIZE])
        size = re.match(rb" *([0-7]{1,11})", blob[at + 124 : at + 136])
        at += tarfile.BLOCKSIZE * (1 + -(-int(size[1] if size else b"0", 8) // tarfile.BLOCKSIZE))
    return bytes(blob)


@functools.cache
def identity_tables(mode: PagingMode) -> dict[int, bytes]:
    """Tables from IDENTITY_ROOT on: the first 2 or 4 MiB by 4 KiB, and the same in the kernel's half."""
    shape, pages, at = MODES[mode], {}, IDENTITY_ROOT
    for level in shape.levels:
        size = shape.entry_size
        page, count = bytearray(PAGE_SIZE), PAGE_SIZE // size
        last = level is shape.levels[-1]
        for index in range(count) if last else (0, 0xC0000000 >> 22 if size == 4 else 273):
            value = (index << 12 if last else at + PAGE_SIZE) | 0x67
            page[index * size : (index + 1) * size] = value.to_bytes(size, "little")
        pages[at // PAGE_SIZE] = bytes(page)
        at += PAGE_SIZE
    return pages


def vmcoreinfos() -> list[bytes]:
    common = "SIZE(page)=64\nOFFSET(page.flags)=0\nOFFSET(page.compound_head)=8\nNUMBER(PG_slab)=9\n"
    sparse = "SYMBOL(mem_section)=ff00\nNUMBER(SECTION_SIZE_BITS)=27\nSIZE(mem_section)=32\n"
    late = "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-167772160\nOFFSET(page._mapcount)=48\n"
    return [
        (common + "SYMBOL(mem_map)=1000\n").encode(),
        (common + sparse + "OFFSET(mem_section.section_mem_map)=0\n" + late).encode(),
    ]
