"""The front of a /proc/vmcore, as an i386 kernel of Debian's writes it: ELF64, EM_386."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_NOTE, ET_CORE, EM_386 = 1, 4, 4, 3


def note(name: bytes, kind: int, data: bytes) -> bytes:
    def padded(blob: bytes) -> bytes:
        return blob + bytes(-len(blob) % 4)

    return struct.pack("<III", len(name) + 1, len(data), kind) + padded(name + b"\0") + padded(data)


def prstatus_i386(eip: int, esp: int, pid: int = 1) -> bytes:
    """struct elf_prstatus, 144 bytes: 72 of head (pid at 24), 17 registers, pr_fpvalid."""
    head = bytearray(72)
    struct.pack_into("<I", head, 24, pid)
    # ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss
    registers = (0, 0, 0, 0, 0, 0, 0, 0x7B, 0x7B, 0xD8, 0, 0xFFFFFFFF, eip, 0x60, 0x46, esp, 0x68)
    return bytes(head) + struct.pack("<17I", *registers) + bytes(4)


def vmcore_i386(
    cpus: Sequence[tuple[int, int]], loads: Sequence[tuple[int, int, int]] = ((0, 0x10000, 0x800000),)
) -> bytes:
    """cpus: (eip, esp) of each NT_PRSTATUS. loads: (physical, file offset, size); by default 8 MiB from physical 0."""
    notes = b"".join(note(b"CORE", 1, prstatus_i386(eip, esp, pid)) for pid, (eip, esp) in enumerate(cpus, 1))
    return vmcore(notes + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0-forged\nPAGESIZE=4096\n"), loads)


def vmcore(notes: bytes, loads: Sequence[tuple[int, int, int]] = ((0, 0x10000, 0x800000),)) -> bytes:
    """notes: as `note` makes them, one after the other."""
    start = _EHDR.size + (1 + len(loads)) * _PHDR.size
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    return (
        _EHDR.pack(ident, ET_CORE, EM_386, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 1 + len(loads), 0, 0, 0)
        + _PHDR.pack(PT_NOTE, 0, start, 0, 0, len(notes), len(notes), 0)
        + b"".join(
            _PHDR.pack(PT_LOAD, 7, offset, 0xC0000000 + physical, physical, size, size, 0)
            for physical, offset, size in loads
        )
        + notes
    )
