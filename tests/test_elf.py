"""ELF files that say of themselves what can't be."""

from __future__ import annotations

import io
import struct

import pytest

from rig import elf
from rig.elf import ElfError
from rig.kernel import symfile
from rig.model import Arch
from tests.guest.forge import elf as program

GOOD = symfile.elf({0xC0100000: "machine_kexec", 0xC0200000: "panic"}, Arch.AMD64)
(SECTIONS,) = struct.unpack_from("<Q", GOOD, 40)  # e_shoff
SYMTAB, STRTAB = (SECTIONS + number * 64 for number in (2, 3))  # section headers


def changed(at: int, new: bytes, blob: bytes = GOOD) -> bytes:
    return blob[:at] + new + blob[at + len(new) :]


def quad(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_what_a_program_asks_its_loader_for() -> None:
    file = elf.of_file(io.BytesIO(program("/lib/ld.so", ["libc.so.6", "libz.so.1"])))
    assert (file.interpreter(), file.needed()) == ("/lib/ld.so", ("libc.so.6", "libz.so.1"))
    assert file.symbols() is None
    static = elf.of_bytes(program())
    assert (static.interpreter(), static.needed(), list(static.notes())) == (None, (), [])


def test_symbols_of_either_class() -> None:
    for arch, bits in ((Arch.AMD64, 64), (Arch.I386, 32)):
        file = elf.of_bytes(symfile.elf({0xC0100000: "a", 0xC0200000: "b"}, arch))
        assert (file.bits, file.symbols()) == (bits, [("a", 0xC0100000), ("b", 0xC0200000)])


def test_a_name_that_kallsyms_would_leave_out() -> None:
    names = {1: "x" * (elf.LONGEST_NAME - 1), 2: "y" * elf.LONGEST_NAME, 3: "z"}
    assert elf.of_bytes(symfile.elf(names, Arch.AMD64)).symbols() == [(names[1], 1), ("z", 3)]


def test_notes_end_at_an_empty_one() -> None:
    blob = struct.pack("<III", 4, 3, 3) + b"GNU\0" + b"abc\0" + bytes(12) + b"garbage and more of it"
    assert list(elf.notes(blob, 0, len(blob))) == [(0, "GNU", 3, b"abc")]


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "begins with nothing"),
        (b"MZ", "begins with 4d5a"),
        (GOOD[:10], "no class and byte order"),
        (changed(4, b"\3"), "no class and byte order"),
        (changed(5, b"\2"), "big-endian"),
        (GOOD[:40], "ELF header can't be read"),
    ],
)
def test_no_header(blob: bytes, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        elf.of_bytes(blob)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (changed(40, quad(len(GOOD))), "section headers end at"),
        (changed(40, quad(1 << 63)), "section headers end at 0x8000000000000140, only 0x8000000000000000"),
        (changed(58, b"\1\0"), "section headers have 1 bytes each"),
        (changed(60, b"\0\0"), "it has 0 sections"),  # the number would be in section 0
        (changed(62, b"\xff\xff"), "names in 65535"),
        (changed(62, b"\x09\0"), "names in 9"),
        (changed(SYMTAB + 24, quad(len(GOOD))), "what lies there ends at"),
        (changed(SYMTAB + 32, quad(10 << 30)), "section size"),
        (changed(SYMTAB + 40, b"\xff\0\0\0"), "section 255"),
    ],
)
def test_no_symbols(blob: bytes, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        elf.of_bytes(blob).symbols()


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (32, quad(1 << 62), "program headers end at"),
        (54, b"\0\0", "program headers have 0 bytes each"),
        (56, b"\xff\xff", "65535 program headers: too many"),
        (56, b"\xf0\xff", "65520 program headers: too many"),
    ],
)
def test_no_program_headers(at: int, new: bytes, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        elf.of_bytes(changed(at, new, program("/lib/ld.so"))).interpreter()
