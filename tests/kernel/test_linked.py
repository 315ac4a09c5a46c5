"""A vmlinux as a crash kernel: where it runs, and what it is."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from rig.errors import UnsuitableKernel
from rig.kernel import linked
from rig.model import Arch, Kernel
from tests.forge import GUEST

MINE = Kernel("mine", "forged", image=Path("vmlinux"))
BANNER = b"%s version %s (%s)\0Linux version %s\0Linux version 2.6.18-6-686 (forged) #1\0"
EXECUTABLE, CORE, I386, AMD64, ARM = 2, 4, 3, 62, 40  # e_type, e_machine


def vmlinux(kind: int = EXECUTABLE, machine: int = I386, text: bytes = BANNER) -> bytes:
    """Two PT_LOADs at 16 MiB, as CONFIG_PHYSICAL_START=0x1000000 has them: text, and data with .bss behind it."""
    wide = machine == AMD64
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    head, entry = (64, 56) if wide else (52, 32)
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", kind, machine, 1, 0x1000000, head, 0, 0, head, entry, 2, 0, 0, 0
    )
    base, start = (0xFFFFFFFF80000000 if wide else 0xC0000000), head + 2 * entry
    segments = b""
    for physical, size, memory in ((0x1000000, len(text), 0x1000), (0x1100000, 0, 0x234)):
        fields = (start, base + physical, physical, size, memory)
        segments += (
            struct.pack("<IIQQQQQQ", 1, 7, *fields, 0x1000) if wide else struct.pack("<IIIIIIII", 1, *fields, 7, 0x1000)
        )
    return ident + header + segments + text


@pytest.mark.parametrize(("machine", "arch"), [(I386, Arch.I386), (AMD64, Arch.AMD64)])
def test_it_says_where_it_runs_and_what_it_is(machine: int, arch: Arch, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux(machine=machine))
    assert linked.is_elf(path)
    files = linked.obtain(MINE, path, replace(GUEST, arch=arch))
    assert (files.release, files.arch, files.relocatable) == ("2.6.18-6-686", arch, False)
    assert files.linked_at == (0x1000000, 0x1100234)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (vmlinux(kind=CORE), "not the vmlinux of an x86 kernel"),
        (vmlinux(machine=ARM), "not the vmlinux of an x86 kernel"),
        (vmlinux(text=b"Linux version %s\0"), "not the vmlinux of an x86 kernel"),  # no kernel, its module perhaps
        (vmlinux()[:40], "broken ELF file"),
        (vmlinux(text=b"Linux version 2.6.18/../../x \0"), "a release that no kernel can have: '2.6.18/../../x'"),
        (vmlinux(text=b"Linux version 2\xff \0"), "a release that no kernel can have"),
        (vmlinux(machine=AMD64), "a kernel for amd64, the guest i386 is i386"),
    ],
)
def test_what_is_none_is_told(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(UnsuitableKernel, match=words) as caught:
        linked.obtain(MINE, path, GUEST)
    assert str(path) in caught.value.message


def test_a_bzimage_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"MZ")
    assert not linked.is_elf(tmp_path / "bzImage")
    assert not linked.is_elf(tmp_path / "nothing")
