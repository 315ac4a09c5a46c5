"""Hostile binary input, generated: the same examples in each run, a few hundred a reader.

Files are made well-formed first and spoilt afterwards, so that readers are taken past their first lines. Where there is
a second reader, both must agree. Campaigns take it further: tests/fuzz/campaign.py.
"""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rig import elf
from rig.elf import ElfError
from rig.errors import EvidenceError
from rig.guest.debs import kernel_files
from rig.guest.initramfs import CharDevice, Entry, Symlink, cpio
from rig.kernel import symfile
from rig.memory import packed, vmcore
from rig.memory.walk import walk
from rig.model import PAGE_SIZE, Arch
from tests.fuzz import byte_targets, seeds
from tests.fuzz.byte_targets import check_space
from tests.fuzz.tables import OPERATION, Tables
from tests.memory import forged_vmcore, test_vmcore

few = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,  # the machine may be busy; a hang is pytest's own timeout's business
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
many = settings(few, max_examples=40)

# (place, new bytes), in a file of any size; and how much of its end is missing
SPOILT = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=9)), max_size=4)


def spoil(data: bytes, changes: list[tuple[int, bytes]], missing: int = 0) -> bytes:
    blob = bytearray(data)
    for place, new in changes:
        at = place % len(blob)
        blob[at : at + len(new)] = new[: len(blob) - at]
    return bytes(blob[: len(blob) - missing % len(blob)])


# name of the target -> good files that it is given, spoilt
GOOD: dict[str, Callable[[], list[bytes]]] = {
    "vmcore": seeds.vmcores,
    "elf": seeds.elf_files,
    "deb": seeds.tars,
    "payload": seeds.payloads,
    "kdump_page": seeds.packed_pages,
    "packed": byte_targets.seeds_packed,
    "flattened": byte_targets.seeds_flattened,
    "kimage": byte_targets.seeds_kimage,
    "pagetypes": seeds.vmcoreinfos,
    "kallsyms": byte_targets.seeds_kallsyms,
}


@pytest.mark.parametrize("name", GOOD)
@few
@given(which=st.integers(0, 9), changes=SPOILT, missing=st.just(0) | st.integers(0, 1 << 16))
def test_good_files_spoilt(name: str, which: int, changes: list[tuple[int, bytes]], missing: int) -> None:
    good = GOOD[name]()
    getattr(byte_targets, f"fuzz_{name}")(spoil(good[which % len(good)], changes, missing))


@pytest.mark.parametrize("name", ["kdump", "bzimage", "tables", "pgd", "pagelist", "pieces", "efi"])
@few
@given(data=st.binary(max_size=120))
def test_any_bytes(name: str, data: bytes) -> None:
    getattr(byte_targets, f"fuzz_{name}")(data)


# ---------------------------------------------------------------- against a second reader


def _theirs(blob: bytes) -> tuple[list[tuple[int, ...]], list[tuple[str, int]] | None]:
    """Program headers and symbols as pyelftools reads them."""
    file = ELFFile(io.BytesIO(blob))
    keys = ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")
    segments = [tuple(segment.header[key] for key in keys) for segment in file.iter_segments()]
    table = file.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return segments, None
    return segments, [(symbol.name, symbol["st_value"]) for symbol in table.iter_symbols() if symbol.name]


@many
@given(
    arch=st.sampled_from(Arch),
    symbols=st.dictionaries(
        st.integers(1, (1 << 32) - 2), st.text("abc_.$", min_size=1, max_size=40), min_size=1, max_size=8
    ),
)
def test_symbols_as_pyelftools_reads_them(arch: Arch, symbols: dict[int, str]) -> None:
    blob = symfile.elf(symbols, arch)
    ours = elf.of_bytes(blob)
    assert ours.symbols() == _theirs(blob)[1] == [(name, address) for address, name in sorted(symbols.items())]


@many
@given(which=st.integers(0, 9), changes=SPOILT)
def test_a_spoilt_elf_file_is_refused_or_read_as_pyelftools_does(which: int, changes: list[tuple[int, bytes]]) -> None:
    good = [blob for blob in seeds.elf_files() if len(blob) < 2000]
    blob = spoil(good[which % len(good)], [(place % 200, new) for place, new in changes])
    try:
        theirs = _theirs(blob)
    except Exception:  # whatever it is: pyelftools is made for good files
        return
    with contextlib.suppress(ElfError):
        file = elf.of_bytes(blob)
        fields = [(s.offset, s.virtual, s.physical, s.file_size, s.memory_size) for s in file.segments]
        assert fields == theirs[0]
        if theirs[1] is not None and all(name.isascii() for name, _ in theirs[1]):
            assert file.symbols() == theirs[1]


@few
@given(
    loads=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 30)), max_size=5),
    notes=st.lists(st.tuples(st.binary(max_size=9), st.integers(1, 9), st.binary(max_size=30)), max_size=4),
)
def test_a_vmcore_as_it_was_written(loads: list[tuple[int, int]], notes: list[tuple[bytes, int, bytes]]) -> None:
    """Notes of any name but those that mean something."""
    notes = [(b"x" + name.replace(b"\0", b""), kind, data) for name, kind, data in notes]
    placed = [(physical, 0x10000, size) for physical, size in loads]
    blob = forged_vmcore.vmcore(b"".join(forged_vmcore.note(*each) for each in notes), placed)
    assert vmcore.headers_size(blob) == len(blob)
    found = vmcore.parse_headers(blob)
    assert [(load.physical, load.offset, load.size) for load in found.loads] == placed
    assert [(note.type, note.data) for note in found.notes] == [(kind, data) for _, kind, data in notes]


NAMES = st.text("ab-_.é", min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
BYTE = st.integers(0, 255)
CONTENT = st.one_of(st.binary(max_size=40), st.none(), st.builds(Symlink, NAMES), st.builds(CharDevice, BYTE, BYTE))


@settings(few, max_examples=12)
@given(entries=st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(lambda p: "/" + "/".join(p)), CONTENT))
def test_an_initramfs_as_cpio_lists_it(entries: dict[str, bytes | Symlink | CharDevice | None]) -> None:
    archive = b"".join(cpio(Entry(path, 0o644, content) for path, content in entries.items()))
    done = subprocess.run(["cpio", "-it", "--quiet"], input=archive, capture_output=True, timeout=20, check=True)
    above = {str(parent) for path in entries for parent in Path(path).parents} - {"/"}
    assert done.stderr == b""
    assert [name.decode() for name in done.stdout.splitlines()] == sorted(
        path.removeprefix("/") for path in {*entries, *above}
    )


# ---------------------------------------------------------------- what one reader says, and how it ends


@few
@given(options=st.binary(min_size=2, max_size=2), entries=st.lists(st.binary(min_size=6, max_size=6), max_size=12))
def test_a_walk_is_what_single_translations_say(options: bytes, entries: list[bytes]) -> None:
    assert OPERATION == 6
    tables = Tables.of(options + b"".join(entries))
    check_space(tables, walk(tables.memory, tables.mode, tables.cr3, **tables.options, limit=tables.limit))


@few
@given(pages=st.dictionaries(st.integers(0, (1 << 40) - 1), st.binary(min_size=1, max_size=8), max_size=6))
def test_packed_pages_come_back(pages: dict[int, bytes]) -> None:
    whole = {pfn: (content * PAGE_SIZE)[:PAGE_SIZE] for pfn, content in pages.items()}
    assert packed.unpack_pages(packed.pack_pages(whole), Path("x")) == whole


def test_each_good_file_is_read() -> None:
    """The seeds get through to what they are seeds of, instead of being refused at the door."""
    for blob in seeds.vmcores():
        assert vmcore.parse_headers(blob).prstatus
    for blob in seeds.kdumps():
        assert len(byte_targets.read_kdump(blob)) == 5
    for blob in seeds.packed_pages():
        assert len(byte_targets.read_kdump(seeds.kdump_of_page(blob[:1], blob[1:]))) == 5
    for blob in seeds.elf_files():
        assert elf.of_bytes(blob).segments or elf.of_bytes(blob).symbols()
    for blob in seeds.tars():
        found = kernel_files(io.BytesIO(blob), {"a", "b_c"}, boot=True)
        assert [is_module for _, _, is_module in found] == [False, True, True, True]


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        # 4 GiB of notes, and of program headers beyond any file
        (test_vmcore.GOOD[:96] + struct.pack("<Q", 1 << 32) + test_vmcore.GOOD[104:], "said to end at 0x100001000"),
        (test_vmcore.GOOD[:32] + struct.pack("<Q", 1 << 63) + test_vmcore.GOOD[40:], "headers end at 0x80000000000"),
    ],
)
def test_nobody_is_asked_for_gigabytes_of_headers(blob: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        vmcore.headers_size(blob)
