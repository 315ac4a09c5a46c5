"""A symbol table that a debugger can read, of a kernel that is there without its vmlinux. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from rig.model import Arch

# System V ABI, chapters 4 and 5; AMD64 supplement 4.1
_MAGIC, _CLASS, _REST = b"\x7fELF", {Arch.I386: b"\x01", Arch.AMD64: b"\x02"}, b"\x01\x01"  # little-endian, version 1
_MACHINE = {Arch.I386: 3, Arch.AMD64: 62}
_ET_EXEC = 2
_PROGBITS_ABSENT, _SYMTAB, _STRTAB = 8, 2, 3  # sh_type: NOBITS and two tables
_ALLOC_EXEC = 6
_GLOBAL_NOTYPE = 0x10
_NAMES = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"


def elf(symbols: Mapping[int, str], arch: Arch) -> bytes:
    """An ELF file with these symbols (virtual address -> name, at least one), and one empty section for them to lie in.

    A symbol ends where the next one begins.
    """
    word = "Q" if arch is Arch.AMD64 else "I"
    header, section = struct.Struct(f"<16sHHI{3 * word}IHHHHHH"), struct.Struct(f"<II{4 * word}II{2 * word}")
    addresses = sorted(symbols)
    start, end = addresses[0], addresses[-1] + 1
    names, table = bytearray(b"\0"), bytearray(len(_symbol(arch, 0, 0, 0, 0)))
    entry = len(table)
    for address, following in zip(addresses, [*addresses[1:], end], strict=True):
        table += _symbol(arch, len(names), 1, address, following - address)
        # gdb takes "name [module]" for an expression
        names += symbols[address].partition(" ")[0].encode() + b"\0"
    parts = (bytes(table), bytes(names), _NAMES)
    offsets = [header.size + sum(map(len, parts[:number])) for number in range(len(parts) + 1)]
    sections = (
        (0,) * 10,
        (_NAMES.index(b".text"), _PROGBITS_ABSENT, _ALLOC_EXEC, start, offsets[0], end - start, 0, 0, 16, 0),
        (_NAMES.index(b".symtab"), _SYMTAB, 0, 0, offsets[0], len(table), 3, 1, 8, entry),
        (_NAMES.index(b".strtab"), _STRTAB, 0, 0, offsets[1], len(names), 0, 0, 1, 0),
        (_NAMES.index(b".shstrtab"), _STRTAB, 0, 0, offsets[2], len(_NAMES), 0, 0, 1, 0),
    )
    first = header.pack(
        (_MAGIC + _CLASS[arch] + _REST).ljust(16, b"\0"),
        *(_ET_EXEC, _MACHINE[arch], 1, start, 0, offsets[3], 0),
        *(header.size, 0, 0, section.size, len(sections), len(sections) - 1),
    )
    return b"".join((first, *parts, *(section.pack(*words) for words in sections)))


def _symbol(arch: Arch, name: int, section: int, value: int, size: int) -> bytes:
    if arch is Arch.AMD64:
        return struct.pack("<IBBHQQ", name, _GLOBAL_NOTYPE, 0, section, value, size)
    return struct.pack("<IIIBBH", name, value, size, _GLOBAL_NOTYPE, 0, section)
