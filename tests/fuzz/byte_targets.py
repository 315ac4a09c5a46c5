"""Targets among the readers of binary formats: what goes in may be anything, what comes out must hold together."""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import zstandard

from rig import elf
from rig.elf import ElfError
from rig.errors import EvidenceError, GuestError, PackageError, UnsuitableKernel
from rig.guest.debs import kernel_files, module_depends
from rig.kernel import efi, image, kimage, linked, pagelist, symbols
from rig.kernel.payload import Undecodable, decompress
from rig.kernel.table import SymbolTable
from rig.memory import kdump, packed, paging, pti, twins, vmcore
from rig.memory.dump import Flattened, PieceReader, cut, hashes_at
from rig.memory.identity import IdentityMap
from rig.memory.image import PagesMemory
from rig.memory.levels import MODES
from rig.memory.pagetypes import PageTypes, parse_vmcoreinfo
from rig.memory.spaces import Difference, compare
from rig.memory.walk import AddressSpace, ProblemKind, walk
from rig.model import PAGE_SIZE, Arch, PagingMode, Range
from tests.forge import cpu
from tests.fuzz import seeds
from tests.fuzz import tables as hostile_tables
from tests.fuzz.tables import OPERATION, Tables

_SOURCE = Path("pages.zst")
_RAM = ((0, 64 * PAGE_SIZE, 0), (1 << 32, 64 * PAGE_SIZE, 64 * PAGE_SIZE))  # start, size, offset in the file
_SHOWN = 12  # translations of a walk that are held against single ones
_SMALL = 1 << 26  # what a decompressor may give: as high as the rig's own limit, nothing would be seen of it


def _edited(bases: list[bytes], data: bytes) -> bytes:
    """A good file with some bytes changed: which one, then (where, how many, what), and how much is cut off its end."""
    if len(data) < 3:
        return data
    base = bytearray(bases[data[0] % len(bases)])
    base = base[: len(base) - int.from_bytes(data[1:3], "little") % len(base)] if data[0] & 0x80 else base
    at = 3
    while at + 3 <= len(data):
        where, size = int.from_bytes(data[at : at + 2], "little"), data[at + 2] % 9
        new = data[at + 3 : at + 3 + size]
        base[where : where + len(new)] = new
        at += 3 + size
    return bytes(base)


# ---------------------------------------------------------------- dumps


def fuzz_vmcore(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        assert vmcore.headers_size(data) <= 16 << 20
    with contextlib.suppress(EvidenceError):
        headers = vmcore.parse_headers(data)
        assert vmcore.headers_size(data) <= max(len(data), 16 << 20)
        pieces = cut(headers.loads)
        assert int(pieces.size.sum()) == sum(load.size for load in headers.loads)
        assert np.array_equal(pieces.address // PAGE_SIZE, (pieces.address + pieces.size - 1) // PAGE_SIZE)


def seeds_vmcore() -> list[bytes]:
    return seeds.vmcores()


def read_kdump(blob: bytes) -> list[bytes]:
    """The pages in it, as rig/dump.py reads them from a file."""
    file = io.BytesIO(blob)

    def read(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

    front = read(0, kdump.front_size(read(0, 2 * PAGE_SIZE)))
    dump = kdump.parse_front(front)
    pieces = cut(dump.headers.loads)
    assert len(pieces) == dump.pages
    found = list(kdump.pages(read, dump))
    assert len(found) <= dump.pages
    assert all(len(page) == PAGE_SIZE for page in found)
    return found


def fuzz_kdump(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        read_kdump(_edited(seeds.kdumps(), data))


def fuzz_kdump_page(data: bytes) -> None:
    """The data of a page: packed in one of the ways, or in none."""
    with contextlib.suppress(EvidenceError):
        read_kdump(seeds.kdump_of_page(data[:1], data[1 : PAGE_SIZE + 1]))


def seeds_kdump_page() -> list[bytes]:
    return seeds.packed_pages()


def fuzz_flattened(data: bytes) -> None:
    """In chunks of any size the same comes out."""
    header, rest = b"makedumpfile".ljust(4096, b"\0"), data[1:]
    step = data[0] + 1 if data else 1
    chunks = [header[:5], header[5:], *(rest[at : at + step] for at in range(0, len(rest), step))]
    assert _unflattened([header + rest]) == _unflattened(chunks)


def _unflattened(chunks: list[bytes]) -> object:
    """[offset, bytes] of what adjoins; or what is wrong with it. And whether the mark at the end was seen."""
    flat, runs = Flattened(), list[tuple[int, bytearray]]()
    try:
        for offset, part in (found for chunk in chunks for found in flat.feed(chunk)):
            if runs and runs[-1][0] + len(runs[-1][1]) == offset:
                runs[-1][1].extend(part)
            else:
                runs.append((offset, bytearray(part)))
    except EvidenceError as problem:
        return str(problem)
    return runs, flat.complete


def seeds_flattened() -> list[bytes]:
    return [
        b"\x05" + struct.pack(">qq", 0, 3) + b"abc" + struct.pack(">qq", 4096, 1) + b"x" + struct.pack(">qq", -1, -1)
    ]


def fuzz_pieces(data: bytes) -> None:
    """PT_LOADs anyhow: what is cut is what was promised, and a reader finds each piece in a file of any chunks."""
    rows = [struct.unpack_from("<HHH", data, at) for at in range(0, len(data) - 5, 6)][:8]
    loads = [vmcore.Load(physical * 64, 0, offset, size) for physical, offset, size in rows]
    try:
        pieces = cut(loads)
    except EvidenceError:
        return
    with contextlib.suppress(EvidenceError):
        hashes_at(pieces.address, np.zeros(100, np.uint64), _RAM)
    file = bytes(range(256)) * 512
    reader, found = PieceReader(pieces), []
    for at in range(0, len(file), 777):
        found += reader.feed(file[at : at + 777])
    wanted = zip(pieces.offset.tolist(), pieces.size.tolist(), strict=True)
    assert found == [file[offset : offset + size] for offset, size in wanted if offset + size <= len(file)]


def fuzz_packed(data: bytes) -> None:
    """Pages and hashes in evidence; half of the inputs get past zstd."""
    blob = zstandard.compress(data[1:]) if data[:1] < b"\x80" else data[1:]
    with contextlib.suppress(zstandard.ZstdError):
        if zstandard.frame_content_size(blob) > _SMALL:  # rig.evidence.reader looks at that first
            return
    with contextlib.suppress(EvidenceError):
        pages = packed.unpack_pages(blob, _SOURCE)
        assert packed.unpack_pages(packed.pack_pages(pages), _SOURCE) == pages
    with contextlib.suppress(EvidenceError):
        packed.unpack_hashes(blob, _SOURCE)


def seeds_packed() -> list[bytes]:
    page = packed.pack_pages({1: bytes(PAGE_SIZE)})
    return [b"\0" + zstandard.decompress(page), b"\xff" + page]


# ---------------------------------------------------------------- kernels and packages


def fuzz_bzimage(data: bytes) -> None:
    with contextlib.suppress(UnsuitableKernel):
        found = image.parse(_edited(seeds.bzimages(), data))
        assert found.release
        assert "/" not in found.release


def fuzz_payload(data: bytes) -> None:
    """Packed data after a magic number of our choice."""
    with contextlib.suppress(Undecodable):
        assert len(decompress(data, _SMALL)) <= _SMALL
    for magic in (b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"BZh9", b"\x28\xb5\x2f\xfd", b"\x5d\0\0"):
        with contextlib.suppress(Undecodable):
            assert len(decompress(magic + data, _SMALL)) <= _SMALL


def seeds_payload() -> list[bytes]:
    return seeds.payloads()


def fuzz_elf(data: bytes) -> None:
    """Everything that is read of an ELF file; twice the same, and never more than the file has."""
    try:
        file = elf.of_bytes(data)
    except ElfError:
        return
    for part in (
        lambda: file.segments,
        lambda: [file.data(section) for section in file.sections],
        file.interpreter,
        file.needed,
        file.symbols,
        lambda: list(file.notes()),
    ):
        with contextlib.suppress(ElfError):
            part()
    with contextlib.suppress(PackageError):
        module_depends(data)
    with contextlib.suppress(UnsuitableKernel):
        linked.parse(data + b"Linux version 2.6.18-\xff (x) ")


def seeds_elf() -> list[bytes]:
    return seeds.elf_files()


def fuzz_deb(data: bytes) -> None:
    """The tar archive in a kernel's package: whatever is written stays below the directory."""
    with contextlib.suppress(PackageError):
        for path, content, _ in kernel_files(io.BytesIO(seeds.with_checksums(data)), {"a", "b_c"}, boot=True):
            assert ".." not in path.parts
            assert not path.is_absolute()
            assert path != PurePosixPath(".")
            assert len(content) <= 512 << 20


def seeds_deb() -> list[bytes]:
    return seeds.tars()


def fuzz_kallsyms(data: bytes) -> None:
    text = data.decode(errors="replace")
    running = symbols.parse_kallsyms(text)
    assert all(address and "\n" not in name for name, address in running.items())
    both = [symbols.parse_all(text, modules=modules) for modules in (False, True)]
    for found in map(symbols.table, both):
        placed = symbols.placed(found, [min(address + 1, (1 << 64) - 1) for address in found])
        assert all(symbol.start < symbol.end for symbol in placed)
        symbols.given_back(found)
        unpacked = SymbolTable.unpack(found.pack())
        assert (unpacked.as_dict(), unpacked.marked) == (found.as_dict(), found.marked)
        with contextlib.suppress(LookupError):
            assert [*symbols.of_another_boot(unpacked, running).as_dict().values()] == [*found.as_dict().values()]


def seeds_kallsyms() -> list[bytes]:
    return [b"ffffffff89877390 T machine_kexec\nc1051f30 T _text\nffffffffc0001000 t a\t[mod]\n0000000000000000 A x\n"]


def fuzz_efi(data: bytes) -> None:
    with contextlib.suppress(GuestError):
        efi.parse(data.decode(errors="replace"))
    table = (b"IBI SYST" + data).ljust(PAGE_SIZE, b"\0")[:PAGE_SIZE]
    with contextlib.suppress(EvidenceError):
        efi.spans(PagesMemory({1: table}), 0x1000, 0x2000)


# ---------------------------------------------------------------- memory of a guest


def fuzz_tables(data: bytes) -> None:
    """Page tables of every mode, of garbage and loops: see tests/fuzz/tables.py."""
    tables = Tables.of(data)
    space = walk(tables.memory, tables.mode, tables.cr3, **tables.options, limit=tables.limit)
    check_space(tables, space)
    if len(data) & 1:  # with one entry less
        before = Tables.of(data[:-OPERATION])
        compare(walk(before.memory, before.mode, before.cr3, **before.options, limit=before.limit), space)
    assert compare(space, space) == Difference()
    IdentityMap.of(space).cover(0, 1 << 32)


def seeds_tables() -> list[bytes]:
    return hostile_tables.seeds()


def check_space(tables: Tables, space: AddressSpace) -> None:
    """A walk against single translations: what it lists is there, the broken is not, nothing is missing."""
    whole = all(problem.kind is not ProblemKind.TOO_MANY for problem in space.problems)
    assert len(space.virtual) == space.count if whole else len(space.virtual) <= space.count
    assert np.all(space.virtual[:-1] + space.size[:-1] <= space.virtual[1:])
    rows = np.unique(np.linspace(0, max(0, len(space.virtual) - 1), min(_SHOWN, len(space.virtual)), dtype=np.int64))
    for row in rows.tolist():
        virtual, size = int(space.virtual[row]), int(space.size[row])
        for offset in (0, size - 1):
            found = tables.translate(virtual + offset)
            assert found is not None
            assert (found.physical, found.page_size) == (int(space.physical[row]) + offset, size)
            assert int(found.flags) == int(space.flags[row])
    for problem in space.problems[:_SHOWN]:
        if problem.kind in (ProblemKind.RESERVED_BITS, ProblemKind.OUTSIDE_MEMORY):
            assert tables.translate(problem.virtual) is None
    for virtual in tables.addresses if whole else ():
        row = int(np.searchsorted(space.virtual, np.uint64(virtual), side="right")) - 1
        listed = row >= 0 and virtual - int(space.virtual[row]) < int(space.size[row])
        assert listed == (tables.translate(virtual) is not None)


def fuzz_pgd(data: bytes) -> None:
    """A pgd, the page behind it, and another version of it: twins, and what the CPU itself may have changed."""
    tables = Tables.of(data)
    twins.stray_twins(tables.memory, [0x1000, 0x2000, 0x6000])
    pti.user_pgd(tables.memory, tables.mode, tables.cr3 & ~0x1000, tables.addresses[0])
    before, after = (tables.memory.read(at, PAGE_SIZE) for at in (0x1000, 0x2000))
    for level in range(len(MODES[tables.mode].levels)):
        found = paging.entry_changes(tables.mode, before, after, level=level)
        listed = {change.index: change for change in (*found.changed, *found.ad_only)}
        old, new = (paging.entries(tables.mode, blob) for blob in (before, after))
        assert sorted(listed) == np.flatnonzero(old != new).tolist()
        assert all((change.before, change.after) == (old[i], new[i]) for i, change in listed.items())
        assert all(change.before & ~change.after == 0 for change in found.ad_only)


def _memory(data: bytes) -> PagesMemory:
    """8 pages, filled with the data again and again: pointers in it lead somewhere."""
    blob = (data * (8 * PAGE_SIZE // max(1, len(data)) + 1))[: 8 * PAGE_SIZE].ljust(8 * PAGE_SIZE, b"\0")
    return PagesMemory({pfn: blob[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] for pfn in range(8)})


def fuzz_pagelist(data: bytes) -> None:
    """A list of pages of a few pages of words, each of which points to one of them more often than not."""
    if len(data) < 2:
        return
    word, rest = (4, 8)[data[0] & 1], data[1:]
    words = [rest[at % len(rest)] % 8 << 12 | rest[(at + 1) % len(rest)] & 0x1F for at in range(0, 4096, 2)]
    blob = b"".join(each.to_bytes(word, "little") for each in words)[: 8 * PAGE_SIZE]
    pages = {pfn: blob[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] for pfn in range(len(blob) // PAGE_SIZE)}
    with contextlib.suppress(EvidenceError):
        found = pagelist.read(PagesMemory(pages), words[0], word)
        assert len(found.destinations) == len(found.sources) <= len(blob) // word
        assert len(set(found.lists)) == len(found.lists)


def fuzz_kimage(data: bytes) -> None:
    """Registers that lead into garbage, or to words of our choice."""
    if not data:
        return
    arch, xen = (Arch.AMD64 if data[0] & 1 else Arch.I386), bool(data[0] & 2) and bool(data[0] & 1)
    mode = PagingMode.FOUR_LEVEL if arch is Arch.AMD64 else PagingMode.TWO_LEVEL
    tables = seeds.identity_tables(mode)
    memory = PagesMemory(tables, fallback=_memory(data[1:]))
    state = cpu(0, rsp=0x2000)
    argument = 0x1000 + data[0] * 4
    state = replace(state, general={**state.general, "rdi": argument, "rax": argument}, cr3=seeds.IDENTITY_ROOT)
    region = Range(0x4000, 0x7FFF, "Crash kernel")
    for own in (True, False):
        with contextlib.suppress(EvidenceError):
            found = kimage.read(memory, mode, state, arch, region, own_tables=own, xen=xen)
            assert found.start in region
        with contextlib.suppress(EvidenceError):
            plain, copied = kimage.read_plain(memory, mode, state, arch, [region], own_tables=own, xen=xen)
            assert all(mem in region and mem + size - 1 in region for mem, size in plain.segments)
            assert len(copied.destinations) == len(copied.sources)


def seeds_kimage() -> list[bytes]:
    words = [0x5002, 0x1000, 0x1008, 0x4080, 0xFFFF888000001000, 0, 1, 0x1000, 0x10, 0x4000, 0x1000]
    return [bytes([kind]) + b"".join(word.to_bytes(8, "little") for word in words) for kind in (0, 1, 3)]


def fuzz_pagetypes(data: bytes) -> None:
    """vmcoreinfo of a kernel that lies about its structs."""
    info = parse_vmcoreinfo(data)
    memory = _memory(data)

    def read(virtual: int, size: int) -> bytes:
        return memory.read(virtual & 0x7FFF, size)

    for word in (4, 8):
        with contextlib.suppress(LookupError):
            PageTypes(read, info, word).is_slab(5)


def seeds_pagetypes() -> list[bytes]:
    return seeds.vmcoreinfos()
