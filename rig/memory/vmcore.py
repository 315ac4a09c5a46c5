"""The headers of a vmcore: where memory lies in the file, and its notes. Pure over its first bytes.

The kernel that makes /proc/vmcore (fs/proc/vmcore.c) merges all notes into one PT_NOTE; it has no sections. What
makedumpfile leaves of it as an ELF file has the same form.
Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from rig.errors import EvidenceError

_MACHINES: Final = ("EM_386", "EM_X86_64")
_NOTE_HEADER = struct.Struct("<III")  # namesz, descsz, type: Elf32_Nhdr and Elf64_Nhdr are the same
_NT_PRSTATUS = 1
_CUT = "the front of the vmcore is cut off; `headers_size` says how much of it is needed"


@dataclass(frozen=True)
class Load:
    """A PT_LOAD: `size` bytes of memory at physical (and virtual) addresses, from `offset` of the file."""

    physical: int
    virtual: int
    offset: int
    size: int


@dataclass(frozen=True)
class Prstatus:
    """An NT_PRSTATUS note: one CPU as the crashing kernel saved it.

    general: by the names of CpuState.general. selectors: cs ss ds es fs gs. orig_ax: as wide as a register.
    bases: fs and gs bases (x86_64 only). 32-bit registers are zero-extended.
    """

    pid: int
    general: Mapping[str, int]
    selectors: Mapping[str, int]
    bases: Mapping[str, int]
    orig_ax: int


@dataclass(frozen=True)
class Note:
    """A note that is neither NT_PRSTATUS nor VMCOREINFO."""

    name: str
    type: int
    data: bytes


@dataclass(frozen=True)
class VmcoreHeaders:
    """elf_class: 32 or 64. machine: EM_386 or EM_X86_64. prstatus: in the file's order, which is by CPU."""

    elf_class: int
    machine: str
    loads: tuple[Load, ...]
    prstatus: tuple[Prstatus, ...]
    vmcoreinfo: Mapping[str, str]
    notes: tuple[Note, ...]

    def offset_of(self, physical: int) -> int:
        """File offset of a physical address. Raises LookupError when it isn't in the file."""
        for load in self.loads:
            if load.physical <= physical < load.physical + load.size:
                return load.offset + physical - load.physical
        raise LookupError(f"physical address {physical:#x} is in no PT_LOAD of the vmcore")


@dataclass(frozen=True)
class _Layout:
    """A struct elf_prstatus: where pr_pid and pr_reg are, and what struct user_regs_struct is."""

    pid: int
    registers: int
    word: int
    order: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.order.split())


# By descsz, which is sizeof(struct elf_prstatus): include/linux/elfcore.h has its head (pr_info, pr_cursig,
# pr_sigpend, pr_sighold, then the pids, four times of two words, pr_reg, pr_fpvalid). The order of pr_reg is
# struct user_regs_struct: arch/x86/include/asm/user_64.h and user_32.h, filled from struct pt_regs
# (arch/x86/include/uapi/asm/ptrace.h) by ELF_CORE_COPY_REGS in arch/x86/include/asm/elf.h.
_LAYOUTS: Final[Mapping[int, _Layout]] = {
    336: _Layout(
        32,
        112,
        8,
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_ax rip cs rflags rsp ss"
        " fs_base gs_base ds es fs gs",
    ),
    144: _Layout(
        24,
        72,
        4,
        "rbx rcx rdx rsi rdi rbp rax ds es fs gs orig_ax rip cs rflags rsp ss",
    ),
}
_SELECTORS: Final = frozenset(("cs", "ss", "ds", "es", "fs", "gs"))
_BASES: Final = frozenset(("fs_base", "gs_base"))


def headers_size(first_bytes: bytes) -> int:
    """How many bytes from the file's start hold all headers and notes.

    first_bytes: at least the ELF header and the program headers; EvidenceError names what is needed if not.
    """
    elf = _open(first_bytes)
    notes = [each["p_offset"] + each["p_filesz"] for each in _segments(elf, "PT_NOTE")]
    return max([_program_headers_end(elf), *notes])


def parse_headers(blob: bytes) -> VmcoreHeaders:
    """Parse the first bytes of a vmcore, at least `headers_size` of them.

    Raises EvidenceError for anything that is not the front of an x86 vmcore, saying what and at which offset.
    """
    elf = _open(blob)
    segments = [(each["p_offset"], each["p_offset"] + each["p_filesz"]) for each in _segments(elf, "PT_NOTE")]
    loads = tuple(
        Load(each["p_paddr"], each["p_vaddr"], each["p_offset"], each["p_filesz"]) for each in _segments(elf, "PT_LOAD")
    )
    return VmcoreHeaders(elf.elfclass, elf["e_machine"], loads, *parse_notes(blob, segments))


def parse_notes(
    blob: bytes, segments: Sequence[tuple[int, int]]
) -> tuple[tuple[Prstatus, ...], Mapping[str, str], tuple[Note, ...]]:
    """The notes in these [start, end) parts of a dump's front: per CPU, VMCOREINFO, the others. EvidenceError."""
    prstatus: list[Prstatus] = []
    vmcoreinfo: dict[str, str] = {}
    others: list[Note] = []
    for offset, note in (found for start, end in segments for found in _notes(blob, start, end)):
        if note.name == "CORE" and note.type == _NT_PRSTATUS:
            prstatus.append(_parse_prstatus(offset, note.data))
        elif note.name == "VMCOREINFO":
            vmcoreinfo |= _parse_vmcoreinfo(offset, note.data)
        else:
            others.append(note)
    return tuple(prstatus), vmcoreinfo, tuple(others)


def _open(blob: bytes) -> ELFFile:
    """The ELF file whose front this is, of a machine we know, with all its program headers."""
    if blob[:4] != b"\x7fELF":
        raise EvidenceError(f"the vmcore begins with {blob[:4].hex() or 'nothing'}, not with ELF's magic number")
    try:
        elf = ELFFile(BytesIO(blob))
    except (ELFError, UnicodeDecodeError) as error:
        raise EvidenceError(f"the vmcore's ELF header can't be read: {error}", hint=_CUT) from error
    if not elf.little_endian or elf["e_machine"] not in _MACHINES or elf["e_type"] != "ET_CORE":
        raise EvidenceError(
            f"the vmcore is {elf['e_type']} for {elf['e_machine']}, {'little' if elf.little_endian else 'big'}-endian",
            hint=f"expected a little-endian ET_CORE for {' or '.join(_MACHINES)}",
        )
    if elf["e_phentsize"] != elf.structs.Elf_Phdr.sizeof():
        raise EvidenceError(f"the vmcore's program headers have {elf['e_phentsize']} bytes each")
    end = _program_headers_end(elf)
    if end > len(blob):
        raise EvidenceError(f"the vmcore's program headers end at {end:#x}, only {len(blob):#x} bytes are here")
    return elf


def _program_headers_end(elf: ELFFile) -> int:
    return int(elf["e_phoff"]) + int(elf["e_phnum"]) * int(elf["e_phentsize"])


def _segments(elf: ELFFile, kind: str) -> list[Mapping[str, int]]:
    """The program headers of one type."""
    return [segment.header for segment in elf.iter_segments(kind)]


def _notes(blob: bytes, at: int, end: int) -> Iterator[tuple[int, Note]]:
    """(file offset, note) of each note. An all-zero header ends a segment, as the kernel's final_note() does.

    Read here rather than by pyelftools, which takes a note that runs over the end for a short one.
    """
    if end > len(blob):
        raise EvidenceError(f"the notes end at {end:#x}, only {len(blob):#x} bytes are here", hint=_CUT)
    while at + _NOTE_HEADER.size <= end:
        namesz, descsz, kind = _NOTE_HEADER.unpack_from(blob, at)
        if not (namesz or descsz or kind):
            break
        name_at = at + _NOTE_HEADER.size
        data_at = name_at + _aligned(namesz)
        if data_at + descsz > end:
            raise EvidenceError(
                f"the note at {at:#x} (name {namesz} bytes, data {descsz}) runs over the end of its segment at {end:#x}"
            )
        name = blob[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "backslashreplace")
        yield at, Note(name, kind, blob[data_at : data_at + descsz])
        at = data_at + _aligned(descsz)


def _aligned(size: int) -> int:
    """A note's name and data each take a multiple of 4 bytes."""
    return size + 3 & ~3


def _parse_prstatus(offset: int, data: bytes) -> Prstatus:
    layout = _LAYOUTS.get(len(data))
    if layout is None:
        raise EvidenceError(
            f"the NT_PRSTATUS at {offset:#x} has {len(data)} bytes",
            hint="336 are x86_64's struct elf_prstatus, 144 i386's",
        )
    words = struct.iter_unpack(
        "<Q" if layout.word == 8 else "<I",
        data[layout.registers : layout.registers + layout.word * len(layout.names)],
    )
    values = dict(zip(layout.names, (word for (word,) in words), strict=True))
    return Prstatus(
        pid=int.from_bytes(data[layout.pid : layout.pid + 4], "little", signed=True),
        orig_ax=values.pop("orig_ax"),
        # i386 saves selectors in the low half of a word, the high half is not defined.
        selectors={name: values.pop(name) & 0xFFFF for name in layout.names if name in _SELECTORS},
        bases={name: values.pop(name) for name in layout.names if name in _BASES},
        general=values,
    )


def _parse_vmcoreinfo(offset: int, data: bytes) -> dict[str, str]:
    """KEY=VALUE lines (Documentation/admin-guide/kdump/vmcoreinfo.rst)."""
    text = data.rstrip(b"\0").decode("ascii", "backslashreplace")
    parts = [line.partition("=") for line in text.splitlines() if line]
    for key, equals, _ in parts:
        if not equals:
            raise EvidenceError(f"the VMCOREINFO note at {offset:#x} has a line without '=': {key!r}")
    return {key: value for key, _, value in parts}
