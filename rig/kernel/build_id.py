"""The build ID that the linker gives a program: what tells two builds of the same source apart."""

from __future__ import annotations

from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection


def build_id(path: Path) -> bytes | None:
    """The NT_GNU_BUILD_ID note of an ELF file; None when it has none (ld(1), --build-id).

    :raise ELFError: not an ELF file
    """
    with path.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return bytes.fromhex(note["n_desc"])
    return None
