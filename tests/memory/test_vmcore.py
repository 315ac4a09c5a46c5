"""Headers of /proc/vmcore put together by hand, good and bad."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from rig.errors import EvidenceError
from rig.memory.vmcore import Load, Note, headers_size, parse_headers

EM_386, EM_X86_64 = 3, 62
ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
LOADS = [
    Load(0x1000, 0xFFFF888000001000, 0x3000, 0x9EC00),
    Load(0x100000, 0xFFFF888000100000, 0xA2000, 0x14F00000),
]
X86_64_ORDER = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_ax rip cs rflags rsp ss fs_base gs_base ds es fs gs"
)
I386_ORDER = "rbx rcx rdx rsi rdi rbp rax ds es fs gs orig_ax rip cs rflags rsp ss"
INFO = b"OSRELEASE=6.1.0\nSYMBOL(init_uts_ns)=ffffffff85c2a6a0\nNUMBER(phys_base)=-4=5\n"


def note(name: bytes, kind: int, data: bytes) -> bytes:
    def padded(raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % 4)

    return struct.pack("<III", len(name) + 1, len(data), kind) + padded(name + b"\0") + padded(data)


def prstatus_64(pid: int) -> bytes:
    """struct elf_prstatus of x86_64: registers are 1000, 1001... in the order of struct user_regs_struct."""
    return struct.pack("<3ih2x2Q4i8Q27Qi4x", 0, 0, 0, 0, 0, 0, pid, 0, 0, 0, *[7] * 8, *range(1000, 1027), 1)


def prstatus_32(pid: int) -> bytes:
    """struct elf_prstatus of i386, with junk in the undefined half of each selector's word."""
    registers = [0xABCD0000 | 1000 + i if i in (7, 8, 9, 10, 13, 16) else 1000 + i for i in range(17)]
    return struct.pack("<3ih2x2I4i8I17Ii", 0, 0, 0, 0, 0, 0, pid, 0, 0, 0, *[7] * 8, *registers, 1)


def vmcore(
    notes: bytes, *, bits: int = 64, machine: int = EM_X86_64, loads: Sequence[Load] = LOADS, cut: int = 0
) -> bytes:
    """The front of a /proc/vmcore: ELF header, program headers, notes at 0x1000."""
    segments = [(PT_NOTE, 0x1000, 0, 0, len(notes) - cut)] + [
        (PT_LOAD, load.offset, load.virtual, load.physical, load.size) for load in loads
    ]
    identity = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    if bits == 64:
        header = struct.pack("<2HI3QI6H", ET_CORE, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
        table = [struct.pack("<2I6Q", kind, 0, at, v, p, n, n, 0) for kind, at, v, p, n in segments]
    else:
        header = struct.pack("<2HI3II6H", ET_CORE, machine, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
        table = [struct.pack("<8I", kind, at, v, p, n, n, 0, 0) for kind, at, v, p, n in segments]
    return (identity + header + b"".join(table)).ljust(0x1000, b"\0") + notes


GOOD = vmcore(
    note(b"CORE", 1, prstatus_64(0))
    + note(b"CORE", 1, prstatus_64(4711))
    + note(b"Xen", 0x1000002, b"abc")
    + note(b"VMCOREINFO", 0, INFO)
)


def test_x86_64() -> None:
    found = parse_headers(GOOD)
    assert (found.elf_class, found.machine, found.loads) == (64, "EM_X86_64", tuple(LOADS))
    assert [each.pid for each in found.prstatus] == [0, 4711]
    cpu = found.prstatus[1]
    assert cpu.general == {
        name: 1000 + i
        for i, name in enumerate(X86_64_ORDER.split())
        if name not in {"orig_ax", "cs", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"}
    }
    assert (cpu.general["r15"], cpu.general["rip"], cpu.general["rsp"]) == (1000, 1016, 1019)
    assert cpu.orig_ax == 1015
    assert cpu.selectors == {"cs": 1017, "ss": 1020, "ds": 1023, "es": 1024, "fs": 1025, "gs": 1026}
    assert cpu.bases == {"fs_base": 1021, "gs_base": 1022}
    assert found.vmcoreinfo == {
        "OSRELEASE": "6.1.0",
        "SYMBOL(init_uts_ns)": "ffffffff85c2a6a0",
        "NUMBER(phys_base)": "-4=5",
    }
    assert found.notes == (Note("Xen", 0x1000002, b"abc"),)


@pytest.mark.parametrize("bits", [32, 64])
def test_i386_in_either_elf_class(bits: int) -> None:
    loads = [Load(0x1000, 0xC0001000, 0x3000, 0x9EC00)]
    found = parse_headers(vmcore(note(b"CORE", 1, prstatus_32(1)), bits=bits, machine=EM_386, loads=loads))
    assert (found.elf_class, found.machine, found.loads) == (bits, "EM_386", tuple(loads))
    (cpu,) = found.prstatus
    assert cpu.general == {
        name: 1000 + i
        for i, name in enumerate(I386_ORDER.split())
        if name not in {"ds", "es", "fs", "gs", "orig_ax", "cs", "ss"}
    }
    assert (cpu.general["rbx"], cpu.general["rip"], cpu.general["rsp"]) == (1000, 1012, 1015)
    assert (cpu.pid, cpu.orig_ax, cpu.bases) == (1, 1011, {})
    assert cpu.selectors == {"ds": 1007, "es": 1008, "fs": 1009, "gs": 1010, "cs": 1013, "ss": 1016}


def test_offset_of() -> None:
    found = parse_headers(GOOD)
    assert found.offset_of(0x1000) == 0x3000
    assert found.offset_of(0x1234) == 0x3234
    assert found.offset_of(0x100000 + 0x14EFFFFF) == 0xA2000 + 0x14EFFFFF
    for physical in (0xFFF, 0x1000 + 0x9EC00, 0x15000000):
        with pytest.raises(LookupError, match=f"{physical:#x} is in no PT_LOAD"):
            found.offset_of(physical)


def test_headers_size() -> None:
    assert headers_size(GOOD[:512]) == len(GOOD)
    assert headers_size(vmcore(b"")) == 0x1000
    with pytest.raises(EvidenceError, match="program headers end at 0xe8, only 0xe7 bytes are here"):
        headers_size(GOOD[:0xE7])


def test_an_empty_note_ends_the_notes() -> None:
    notes = note(b"CORE", 1, prstatus_64(5)) + bytes(12) + b"\xff" * 40
    assert [each.pid for each in parse_headers(vmcore(notes)).prstatus] == [5]


def test_no_notes_at_all() -> None:
    found = parse_headers(vmcore(b""))
    assert (found.prstatus, found.vmcoreinfo, found.notes) == ((), {}, ())


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "begins with nothing"),
        (b"hello world", "begins with 68656c6c"),
        (GOOD[:20], "ELF header can't be read"),
        (GOOD[:100], "program headers end at 0xe8, only 0x64 bytes"),
        (GOOD[:-1], f"the notes end at {len(GOOD):#x}, only {len(GOOD) - 1:#x} bytes"),
        (vmcore(b"", machine=183), "ET_CORE for EM_AARCH64"),
        (GOOD[:16] + b"\2" + GOOD[17:], "ET_EXEC for EM_X86_64"),
        (GOOD[:54] + b"\x20" + GOOD[55:], "program headers have 32 bytes each"),
        (vmcore(note(b"CORE", 1, prstatus_64(1)), cut=1), "note at 0x1000 .* runs over the end .* at 0x1163"),
        (vmcore(struct.pack("<III", 0xFFFFFFFF, 0, 1)), r"note at 0x1000 \(name 4294967295 bytes"),
        (vmcore(note(b"CORE", 1, bytes(100))), "NT_PRSTATUS at 0x1000 has 100 bytes"),
        (
            vmcore(note(b"VMCOREINFO", 0, b"A=1\nB\n")),
            "VMCOREINFO note at 0x1000 has a line without '=': 'B'",
        ),
    ],
)
def test_bad_input(blob: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_headers(blob)


def test_no_flipped_byte_and_no_cut_raises_anything_else() -> None:
    """Whatever is wrong with the headers: headers, or an EvidenceError."""
    refused = 0
    for at in range(0xE8):
        for value in (0, 0xFF):
            try:
                parse_headers(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])
            except EvidenceError:
                refused += 1
    for size in range(0, len(GOOD), 29):
        with pytest.raises(EvidenceError):
            parse_headers(GOOD[:size])
    assert refused > 40
