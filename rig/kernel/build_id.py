"""The build ID that the linker gives a program: what tells two builds of the same source apart."""

from __future__ import annotations

from pathlib import Path

from rig import elf

_GNU_BUILD_ID = "GNU", 3  # name and type of the note: NT_GNU_BUILD_ID


def build_id(path: Path) -> bytes | None:
    """The NT_GNU_BUILD_ID note of an ELF file; None when it has none (ld(1), --build-id).

    :raise ElfError: not an ELF file, or a broken one
    """
    with path.open("rb") as stream:
        found = elf.of_file(stream).notes()
        return next((data for name, kind, data in found if (name, kind) == _GNU_BUILD_ID), None)
