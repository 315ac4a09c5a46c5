"""ELF files, read with nothing in them believed. Pure over whatever can be read.

These files come from packages, from users, and out of a crashed guest. A count, a size or an offset in one may be
anything: so none leads to more being read than the file has, nor to more than the bounds below, which are several times
what the largest kernels need.

Source: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Final

from rig.late import late
from rig.reading import stumbling

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile
else:
    ELFFile = late("elftools.elf.elffile:ELFFile")

MAGIC: Final = b"\x7fELF"
PT_LOAD, PT_INTERP, PT_NOTE = "PT_LOAD", "PT_INTERP", "PT_NOTE"
SHT_SYMTAB, SHT_DYNAMIC, SHT_NOTE = "SHT_SYMTAB", "SHT_DYNAMIC", "SHT_NOTE"
_DT_NEEDED = 1
_NO_BITS = "SHT_NOBITS"  # a section that takes no bytes of the file

MOST_HEADERS = 8192  # of each kind: no kernel, module, program or dump of x86 has so many
MOST = 64 << 20  # bytes of one section or segment; symbols of the largest kernels take a tenth of it
LONGEST_NAME = 512  # bytes, its NUL included: KSYM_NAME_LEN (include/linux/kallsyms.h)

_NOTE_HEADER = struct.Struct("<III")  # namesz, descsz, type: Elf32_Nhdr and Elf64_Nhdr are the same


class ElfError(Exception):
    """Not an ELF file that can be read; says what is wrong, and where."""


@dataclass(frozen=True)
class Segment:
    """A program header. Offset and sizes in bytes."""

    type: str  # PT_LOAD
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


@dataclass(frozen=True)
class Section:
    """A section header. Offset and size in bytes; link: the number of another section. name: empty for a broken one."""

    name: str
    type: str  # SHT_SYMTAB
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Layout:
    """Rows of one ELF class's long tables, which are read at once: hundreds of thousands of symbols. symbol_value:
    which field st_value is."""

    symbol: struct.Struct
    symbol_value: int
    dynamic: struct.Struct


_LAYOUTS: Final = {
    # st_name st_value st_size st_info st_other st_shndx
    32: _Layout(struct.Struct("<IIIBBH"), 1, struct.Struct("<II")),
    # st_name st_info st_other st_shndx st_value st_size
    64: _Layout(struct.Struct("<IBBHQQ"), 4, struct.Struct("<QQ")),
}
_IDENT = 16  # bytes of e_ident


class Elf:
    """A little-endian ELF file. Each table is read when it is asked for, and only then found good or bad.

    Its headers are pyelftools' to read, which is made for good files: so what leads to much work is looked at before,
    and whatever it stumbles over is an ElfError.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """:raise ElfError: no ELF header, or not one of a little-endian machine"""
        self._stream = stream
        ident = self._read(0, _IDENT)
        if not ident.startswith(MAGIC):
            raise ElfError(f"it begins with {ident[:4].hex() or 'nothing'}, not with ELF's magic number")
        if len(ident) < _IDENT or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ElfError(f"its ELF header begins with {ident.hex()}: no class and byte order")
        if ident[5] == 2:
            raise ElfError("it is big-endian: not of an x86 machine")
        with _stumbling("its ELF header"):
            self._file = ELFFile(stream)
            header = self._file.header
        self.bits: int = 32 * ident[4]  # its class
        self._layout = _LAYOUTS[self.bits]
        self.type, self.machine = (_word(header[key], key[2:]) for key in ("e_type", "e_machine"))
        self._header = header

    @property
    def segments_end(self) -> int:
        """Offset behind the program headers."""
        return int(self._header["e_phoff"] + self._header["e_phnum"] * self._header["e_phentsize"])

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All program headers. ElfError when they are not all there, or not of this class."""
        count, size = self._header["e_phnum"], self._header["e_phentsize"]
        if count > MOST_HEADERS:
            raise ElfError(f"it has {count} program headers: too many")
        if not count:
            return ()
        with _stumbling("its program headers"):
            own = self._file.structs.Elf_Phdr.sizeof()
        if size != own:
            raise ElfError(f"its program headers have {size} bytes each, not {own}")
        self._exactly(self._header["e_phoff"], count * size, "the program headers end")
        with _stumbling("its program headers"):
            return tuple(_segment(each.header) for each in self._file.iter_segments())

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All section headers; none in a file that has none. ElfError when they are not all there."""
        count, size = self._header["e_shnum"], self._header["e_shentsize"]
        if not self._header["e_shoff"]:
            return ()
        if not 0 < count <= MOST_HEADERS or self._header["e_shstrndx"] >= count:
            raise ElfError(f"it has {count} sections, their names in {self._header['e_shstrndx']}")
        with _stumbling("its section headers"):
            own = self._file.structs.Elf_Shdr.sizeof()
        if size != own:
            raise ElfError(f"its section headers have {size} bytes each, not {own}")
        self._exactly(self._header["e_shoff"], count * size, "the section headers end")
        with _stumbling("its section headers"):
            rows = [each.header for each in self._file.iter_sections()]
        names = rows[self._header["e_shstrndx"]]
        strings = self._bytes(names["sh_offset"], names["sh_size"])
        return tuple(
            Section(
                _string(strings, row["sh_name"], LONGEST_NAME) or "",
                _word(row["sh_type"], "type"),
                row["sh_offset"],
                row["sh_size"],
                row["sh_link"],
            )
            for row in rows
        )

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((each for each in self.sections if each.name == name), None)

    def data(self, section: Section) -> bytes:
        """What a section holds. ElfError when it isn't all there, or more than MOST."""
        return b"" if section.type == _NO_BITS else self._bytes(section.offset, section.size)

    def interpreter(self) -> str | None:
        """PT_INTERP: the path of the program's loader."""
        found = next((each for each in self.segments if each.type == PT_INTERP), None)
        if found is None:
            return None
        return self._bytes(found.offset, found.file_size).split(b"\0")[0].decode(errors="backslashreplace")

    def needed(self) -> tuple[str, ...]:
        """DT_NEEDED: names of the libraries that the loader is to load."""
        section = self.section(".dynamic")
        if section is None or section.type != SHT_DYNAMIC:
            return ()
        strings = self._linked(section)
        tags = self._rows(section, self._layout.dynamic)
        names = [_string(strings, value, LONGEST_NAME) for tag, value in tags if tag == _DT_NEEDED]
        if None in names:
            raise ElfError("it names a needed library outside its strings")
        return tuple(name for name in names if name is not None)

    def symbols(self) -> list[tuple[str, int]] | None:
        """(name, value) of every named symbol in .symtab, in its order; None when there is no such table.

        Without those of LONGEST_NAME or more, which kallsyms leaves out as well (scripts/kallsyms.c).
        """
        section = self.section(".symtab")
        if section is None or section.type != SHT_SYMTAB:
            return None
        strings, place = self._linked(section), self._layout.symbol_value
        rows = self._rows(section, self._layout.symbol)
        named = ((_string(strings, fields[0], LONGEST_NAME), fields[place]) for fields in rows)
        return [(name, value) for name, value in named if name]

    def notes(self) -> Iterator[tuple[str, int, bytes]]:
        """(name, type, data) of the notes in all note sections."""
        for section in self.sections:
            if section.type == SHT_NOTE:
                blob = self.data(section)
                for _, name, kind, data in notes(blob, 0, len(blob)):
                    yield name, kind, data

    def _linked(self, section: Section) -> bytes:
        """The strings that a section refers to."""
        if section.link >= len(self.sections):
            raise ElfError(f"the strings of {section.name} are said to be in section {section.link}")
        return self.data(self.sections[section.link])

    def _rows(self, section: Section, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        """A section as a table; less than a whole row at its end is left out."""
        blob = self.data(section)
        return form.iter_unpack(blob[: len(blob) // form.size * form.size])

    def _bytes(self, offset: int, size: int) -> bytes:
        if size > MOST:
            raise ElfError(f"{size} bytes are said to lie at {offset:#x}: more than the {MOST} that are read")
        return self._exactly(offset, size, "what lies there ends")

    def _read(self, offset: int, size: int) -> bytes:
        """Shorter at the file's end."""
        if offset >= 1 << 63:
            return b""
        self._stream.seek(offset)
        return self._stream.read(size)

    def _exactly(self, offset: int, size: int, what: str) -> bytes:
        """size: bounded. what: for the message."""
        blob = self._read(offset, size)
        if len(blob) < size:
            raise ElfError(f"{what} at {offset + size:#x}, only {offset + len(blob):#x} bytes are here")
        return blob


def of_bytes(blob: bytes) -> Elf:
    """:raise ElfError: as Elf"""
    return Elf(io.BytesIO(blob))


def of_file(file: IO[bytes]) -> Elf:
    """Read as needed: the file stays open as long. Errors as Elf; OSError when it can't be read."""
    return Elf(file)


def _stumbling(over: str) -> contextlib.AbstractContextManager[None]:
    """pyelftools does not promise what it raises for a broken file."""
    return stumbling(lambda problem: ElfError(f"{over} can't be read: {type(problem).__name__}: {problem}"), bugs=True)


def _word(value: object, what: str) -> str:
    """pyelftools' name for a number, or the number where it has none."""
    return value if isinstance(value, str) else f"{what} {value}"


def _segment(header: Mapping[str, Any]) -> Segment:
    places = (int(header[key]) for key in ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz"))
    return Segment(_word(header["p_type"], "type"), *places)


def notes(blob: bytes, at: int, end: int) -> Iterator[tuple[int, str, int, bytes]]:
    """(offset, name, type, data) of each note in [at, end) of some bytes.

    An all-zero header ends them, as the kernel's final_note() does. ElfError for one that runs over the end.
    """
    if end > len(blob):
        raise ElfError(f"the notes end at {end:#x}, only {len(blob):#x} bytes are here")
    while at + _NOTE_HEADER.size <= end:
        namesz, descsz, kind = _NOTE_HEADER.unpack_from(blob, at)
        if not (namesz or descsz or kind):
            break
        name_at = at + _NOTE_HEADER.size
        data_at = name_at + _aligned(namesz)
        if data_at + descsz > end:
            raise ElfError(
                f"the note at {at:#x} (name {namesz} bytes, data {descsz}) runs over the end of its segment at {end:#x}"
            )
        name = blob[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "backslashreplace")
        yield at, name, kind, blob[data_at : data_at + descsz]
        at = data_at + _aligned(descsz)


def _aligned(size: int) -> int:
    """A note's name and data each take a multiple of 4 bytes."""
    return size + 3 & ~3


def _string(strings: bytes, at: int, longest: int) -> str | None:
    """The string there, without its NUL; None when it has no end, or takes more than `longest` bytes."""
    end = strings.find(b"\0", at, at + longest)
    return None if end < 0 else strings[at:end].decode(errors="backslashreplace")
