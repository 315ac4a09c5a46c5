"""A symbol table that a debugger can read, of a kernel that is there without its vmlinux. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping

# System V ABI, chapters 4 and 5; AMD64 supplement 4.1
_HEADER, _SECTION, _SYMBOL = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_IDENT = b"\x7fELF\x02\x01\x01"  # 64-bit, little-endian, version 1
_ET_EXEC, _EM_X86_64 = 2, 62
_PROGBITS_ABSENT, _SYMTAB, _STRTAB = 8, 2, 3  # sh_type: NOBITS and two tables
_ALLOC_EXEC = 6
_GLOBAL_NOTYPE = 0x10
_NAMES = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"


def elf(symbols: Mapping[int, str]) -> bytes:
    """An ELF file with these symbols (virtual address -> name, at least one), and one empty section for them to lie in.

    64-bit also for 32-bit kernels: QEMU's gdbstub shows every CPU as an x86_64 one. A symbol ends where the next one
    begins.
    """
    addresses = sorted(symbols)
    start, end = addresses[0], addresses[-1] + 1
    names, table = bytearray(b"\0"), bytearray(_SYMBOL.size)
    for address, following in zip(addresses, [*addresses[1:], end], strict=True):
        table += _SYMBOL.pack(len(names), _GLOBAL_NOTYPE, 0, 1, address, following - address)
        # gdb takes "name [module]" for an expression
        names += symbols[address].partition(" ")[0].encode() + b"\0"
    parts = (bytes(table), bytes(names), _NAMES)
    offsets = [_HEADER.size + sum(map(len, parts[:number])) for number in range(len(parts) + 1)]
    sections = (
        (0,) * 10,
        (_NAMES.index(b".text"), _PROGBITS_ABSENT, _ALLOC_EXEC, start, offsets[0], end - start, 0, 0, 16, 0),
        (_NAMES.index(b".symtab"), _SYMTAB, 0, 0, offsets[0], len(table), 3, 1, 8, _SYMBOL.size),
        (_NAMES.index(b".strtab"), _STRTAB, 0, 0, offsets[1], len(names), 0, 0, 1, 0),
        (_NAMES.index(b".shstrtab"), _STRTAB, 0, 0, offsets[2], len(_NAMES), 0, 0, 1, 0),
    )
    header = _HEADER.pack(
        _IDENT.ljust(16, b"\0"),
        _ET_EXEC,
        _EM_X86_64,
        1,
        start,
        0,
        offsets[3],
        0,
        _HEADER.size,
        0,
        0,
        _SECTION.size,
        5,
        4,
    )
    return b"".join((header, *parts, *(_SECTION.pack(*section) for section in sections)))
