"""The headers of a vmcore: where memory lies in the file, and its notes. Pure over its first bytes.

The kernel that makes /proc/vmcore (fs/proc/vmcore.c) merges all notes into one PT_NOTE; it has no sections. What
makedumpfile leaves of it as an ELF file has the same form.
Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rig import elf
from rig.elf import Elf, ElfError
from rig.errors import EvidenceError

_MACHINES: Final = ("EM_386", "EM_X86_64")
_NT_PRSTATUS = 1
_MOST = 16 << 20  # bytes of headers: notes of 8192 CPUs (NR_CPUS) take 3 MiB
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

    first_bytes: at least the ELF header and the program headers; EvidenceError names what is needed if not, or says
    that it is more than any vmcore needs.
    """
    front = _open(first_bytes)
    size = max([front.segments_end, *(end for _, end in _note_segments(front))])
    if size > _MOST:
        raise EvidenceError(f"the vmcore's headers are said to end at {size:#x}: none has so many")
    return size


def parse_headers(blob: bytes) -> VmcoreHeaders:
    """Parse the first bytes of a vmcore, at least `headers_size` of them.

    Raises EvidenceError for anything that is not the front of an x86 vmcore, saying what and at which offset.
    """
    front = _open(blob)
    loads = tuple(
        Load(each.physical, each.virtual, each.offset, each.file_size)
        for each in front.segments
        if each.type == elf.PT_LOAD
    )
    return VmcoreHeaders(front.bits, front.machine, loads, *parse_notes(blob, _note_segments(front)))


def parse_notes(
    blob: bytes, segments: Sequence[tuple[int, int]]
) -> tuple[tuple[Prstatus, ...], Mapping[str, str], tuple[Note, ...]]:
    """The notes in these [start, end) parts of a dump's front: per CPU, VMCOREINFO, the others. EvidenceError."""
    prstatus: list[Prstatus] = []
    vmcoreinfo: dict[str, str] = {}
    others: list[Note] = []
    try:
        found = [each for start, end in segments for each in elf.notes(blob, start, end)]
    except ElfError as problem:
        raise EvidenceError(str(problem), hint=_CUT) from problem
    for offset, name, kind, data in found:
        if name == "CORE" and kind == _NT_PRSTATUS:
            prstatus.append(_parse_prstatus(offset, data))
        elif name == "VMCOREINFO":
            vmcoreinfo |= _parse_vmcoreinfo(offset, data)
        else:
            others.append(Note(name, kind, data))
    return tuple(prstatus), vmcoreinfo, tuple(others)


def _open(blob: bytes) -> Elf:
    """The ELF file whose front this is, of a machine we know, with all its program headers."""
    try:
        front = elf.of_bytes(blob)
        if front.machine not in _MACHINES or front.type != "ET_CORE":
            raise EvidenceError(
                f"the vmcore is {front.type} for {front.machine}",
                hint=f"expected a little-endian ET_CORE for {' or '.join(_MACHINES)}",
            )
        _ = front.segments  # read here, to be found good or bad
    except ElfError as error:
        raise EvidenceError(f"the vmcore's ELF header can't be read: {error}", hint=_CUT) from error
    return front


def _note_segments(front: Elf) -> list[tuple[int, int]]:
    """[start, end) of each PT_NOTE."""
    return [(each.offset, each.offset + each.file_size) for each in front.segments if each.type == elf.PT_NOTE]


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
