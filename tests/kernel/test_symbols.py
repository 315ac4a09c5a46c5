"""kallsyms and struct kimage."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
import zstandard

from rig.errors import EvidenceError, UnsuitableKernel
from rig.kernel import kimage, symbols
from rig.kernel.symbols import COMMAND, from_vmlinux, of_another_boot, parse_all, parse_kallsyms, placed, table
from rig.kernel.table import SymbolTable
from rig.model import Arch, Range, Symbol

REGION = Range(0x15000000, 0x1EFFFFFF, "Crash kernel")


def test_lines_of_modules_hidden_and_torn_ones_are_left_out() -> None:
    text = (
        "ffffffff89877390 T machine_kexec\n"
        "0000000000000000 A __per_cpu_start\n"  # hidden, or a per-CPU zero
        "ffffffffc0001000 t machine_kexec\t[overwrite_pgd]\n"
        "ffffffff8a201cb0 T\n"
        "c1051f30 T __crash_kexec\r\n"  # 32-bit, with the line end of a serial line
    )
    assert parse_kallsyms(text) == {"machine_kexec": 0xFFFFFFFF89877390, "__crash_kexec": 0xC1051F30}


def test_the_command_finds_each_wanted_symbol_itself(tmp_path: Path) -> None:
    """Not one whose name contains it, nor all the lines that name it."""
    lines = (
        "1 t machine_kexec_prepare",
        "2 T machine_kexec",
        "3 T __crash_kexec",
        "4 T crash_kexec",
        "5 t crash_kexec_post",
    )
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text("\n".join(f"c105100{line}" for line in lines))
    command = COMMAND.replace("/proc/kallsyms", str(kallsyms))
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout
    assert parse_kallsyms(found) == {
        "machine_kexec": 0xC1051002,
        "__crash_kexec": 0xC1051003,
        "crash_kexec": 0xC1051004,
    }


def test_where_the_image_begins_by_one_function_of_it() -> None:
    """A 2.6.18 lies at 1 MiB, and its kallsyms begins with _stext, a little behind _text."""
    iomem = (Range(0x100000, 0x1FFFFFFF, "System RAM"), Range(0x100000, 0x2E5FFF, "Kernel code", 1))
    assert symbols.text_from(0xC0110F30, 0x110F30, iomem) == 0xC0100000
    assert symbols.text_from(0xC0710F30, 0x710F30, iomem) is None  # not in the image


@pytest.mark.parametrize("arch", list(Arch))
def test_start_is_word_3_or_word_4(arch: Arch) -> None:
    def struct(*words: int) -> bytes:
        return b"".join(w.to_bytes(arch.word, "little") for w in words)

    # head, entry, last_entry, start, control_code_page, ...
    new = struct(4, 0xC1530800, 0xC1530800, 0x1EF54760, 0xE80540, 0)
    # head, entry, last_entry, destination (0 for kdump), start, control_code_page
    old = struct(4, 0xC1530800, 0xC1530800, 0, 0x15001000, 0xE80540)
    assert kimage.parse(new, arch, 0xC1530800, REGION).start == 0x1EF54760
    assert kimage.parse(old, arch, 0xC1530800, REGION).start == 0x15001000


def test_no_entry_in_the_crash_region_is_no_kimage() -> None:
    blob = b"".join(w.to_bytes(4, "little") for w in (4, 5, 6, 7, 8, 9))
    with pytest.raises(EvidenceError, match=r"0xc1530800 makes no sense.*0x7"):
        kimage.parse(blob, Arch.I386, 0xC1530800, REGION)


def test_a_file_that_is_no_vmlinux_is_named(tmp_path: Path) -> None:
    file = tmp_path / "vmlinux"
    file.write_bytes(b"MZ, a bzImage perhaps")
    with pytest.raises(UnsuitableKernel, match="vmlinux is not a vmlinux"):
        from_vmlinux(file, {})
    with pytest.raises(UnsuitableKernel, match="missing"):
        from_vmlinux(tmp_path / "missing", {})


def vmlinux(symbols: dict[str, int]) -> bytes:
    """An ELF64 of nothing but a symbol table: the null section, .symtab, .strtab (which names the sections, too)."""
    strings = b"\0.symtab\0.strtab\0"
    table = bytes(24)  # the null symbol
    for name, value in symbols.items():
        table += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, value, 0)  # st_name, GLOBAL FUNC, st_shndx, st_value
        strings += name.encode() + b"\0"
    at, end = 64, 64 + len(table)
    sections = bytes(64)
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
    sections += struct.pack("<IIQQQQIIQQ", 1, 2, 0, 0, at, len(table), 2, 1, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 9, 3, 0, 0, end, len(strings), 0, 0, 1, 0)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, end + len(strings), 0, 64, 0, 0, 64, 3, 2)
    return ident + header + table + strings + sections


LINKED = {"machine_kexec": 0x81070000, "__crash_kexec": 0x81150000, "panic_cpu": 0x82600010}


def test_a_vmlinux_is_moved_to_where_the_kernel_runs(tmp_path: Path) -> None:
    file = tmp_path / "vmlinux"
    file.write_bytes(vmlinux(LINKED))
    running = {"machine_kexec": 0x91070000, "__crash_kexec": 0x91150000}
    assert from_vmlinux(file, running) == {address + 0x10000000: name for name, address in LINKED.items()}


@pytest.mark.parametrize(
    ("running", "words"),
    [
        ({"machine_kexec": 0x91070000, "__crash_kexec": 0x91150010}, "lie at different distances"),
        ({"something_else": 1}, "no symbol in common"),
    ],
)
def test_a_vmlinux_of_another_build_is_refused(running: dict[str, int], words: str, tmp_path: Path) -> None:
    file = tmp_path / "vmlinux"
    file.write_bytes(vmlinux(LINKED))
    with pytest.raises(UnsuitableKernel, match=words):
        from_vmlinux(file, running)


def test_a_stripped_vmlinux_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vmlinux"
    file.write_bytes(vmlinux({}).replace(struct.pack("<II", 1, 2), struct.pack("<II", 1, 1)))  # no SHT_SYMTAB
    with pytest.raises(UnsuitableKernel, match="no symbol table"):
        from_vmlinux(file, {})


KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81070000 T machine_kexec
ffffffff81070000 t an_alias
ffffffff81070200 t relocate_kernel
ffffffffc0001000 t overwrite\t[overwrite_pgd]
not a line
"""


def test_all_symbols_by_address_the_modules_apart() -> None:
    kernel = parse_all(KALLSYMS, modules=False)
    # neither the per-CPU offset nor the second name of machine_kexec
    assert kernel == {
        0xFFFFFFFF81000000: "_text",
        0xFFFFFFFF81070000: "machine_kexec",
        0xFFFFFFFF81070200: "relocate_kernel",
    }
    assert parse_all(KALLSYMS, modules=True) == {0xFFFFFFFFC0001000: "overwrite [overwrite_pgd]"}


def test_symbols_of_another_boot_are_moved_with_the_kernel() -> None:
    kernel = table(parse_all(KALLSYMS, modules=False))
    for move in (0x10000000, -0x10000000):
        packed = SymbolTable.unpack(kernel.pack())
        here = of_another_boot(packed, {"machine_kexec": 0xFFFFFFFF81070000 + move, "__crash_kexec": 1})
        assert here.as_dict() == {address + move: name for address, name in kernel.items()}
        assert symbols.text_start(here) == 0xFFFFFFFF81000000 + move
        assert symbols.control_code(here) == [0xFFFFFFFF81070200 + move]
    with pytest.raises(LookupError, match="machine_kexec"):
        of_another_boot(table({0xC1000000: "_text"}), {"machine_kexec": 0xC1070000})


def test_packed_symbols_that_are_damaged_are_refused() -> None:
    packed = table(parse_all(KALLSYMS, modules=False)).pack()
    flipped = packed[:-1] + bytes([packed[-1] ^ 1])
    heads = (b'{"count":2,"marked":{}}\n', b'{"count":-1,"marked":{}}\n', b'{"count":1}\n', b"2\n")
    two = [struct.pack("<QQ", *pair) + b"machine_kexec\nother" for pair in ((2, 2), (3, 2))]
    torn = [head + bytes(8) + b"\1" + bytes(7) + b"machine_kexec" for head in heads]  # one name for two
    torn += [heads[0] + rest for rest in two] + [b"", b"\xff" * 8]  # not in order
    for bad in (b"", packed[:-8], flipped, *map(zstandard.compress, torn)):
        with pytest.raises(ValueError, match=r"."):
            SymbolTable.unpack(bad)


def test_a_table_of_symbols() -> None:
    names = {0xFFFFFFFF81000010: "twice", 0xC1000000: "_text", 0xC1000020: "größer", 0xC1000010: "twice"}
    found = table(names)
    assert list(found.items()) == sorted(names.items()) == list(found.as_dict().items())
    assert found.marked == {"_text": 0xC1000000}
    assert SymbolTable.of(names, ["twice"]).marked == {"twice": 0xC1000010}
    assert found.between(0xC1000001, 0xC1000020) == [0xC1000010]
    asked = (0xFFFFFFFFFFFFFFFF, 0xC1000025, 0xC1000020, 0xC0FFFFFF)
    assert [*found.around(asked)] == [
        (0xC1000020, 0xFFFFFFFF81000010, 0xC1000020),
        (0xFFFFFFFF81000010, None, 0xFFFFFFFFFFFFFFFF),
    ]
    with pytest.raises(KeyError):
        found[0xC1000001]
    nothing = SymbolTable.unpack(table({}).pack())
    assert (dict(nothing), nothing.as_dict(), [*nothing.around([5])]) == ({}, {}, [])


def test_a_symbol_reaches_to_the_next_one() -> None:
    names = table({0x1000: "first", 0x1010: "second", 0x2F00: "last"})
    assert placed(names, [0x1015, 0x100F, 0x1000]) == (
        Symbol("first", 0x1000, 0x1010),
        Symbol("second", 0x1010, 0x2F00),
    )
    assert placed(names, [0xFFF]) == ()  # before the first
    assert placed(names, [0x2FFF]) == (Symbol("last", 0x2F00, 0x3000),)
    assert placed(names, [0x3000]) == ()  # no longer on the page of the last one


@pytest.mark.parametrize("arch", list(Arch))
def test_segments_of_the_image(arch: Arch) -> None:
    def struct(*words: int) -> bytes:
        return b"".join(w.to_bytes(arch.word, "little") for w in words)

    start = REGION.start
    front = (4, 0xC1530800, 0xC1530800, start, 0xE80540, 2, 0)  # a 2 that is no count
    two = (2, 0xB7000000, 0x1234, start, 0x2000, 0xB7100000, 0x1000, start + 0x2000, 0x1000)
    assert kimage.segments(struct(*front, *two, 0, 0), arch, REGION) == ((start, 0x2000), (start + 0x2000, 0x1000))
    for word, value in ((3, REGION.last + 1), (3, start + 8), (4, 0), (2, 0x2001), (7, start + 0x1000)):
        bad = [*two]
        bad[word] = value  # outside; not a whole page; empty; longer than its place; overlapping
        assert kimage.segments(struct(*front, *bad, 0, 0), arch, REGION) == ()
    assert kimage.segments(struct(*front, *two, *two), arch, REGION) == ()  # which one?


def test_where_the_kernel_has_its_control_code() -> None:
    names = ("c1000000 T startup_32", "c1000000 T _text", "c1051ba4 T relocate_kernel", "c1060000 t kdump_nmi_callback")
    kallsyms = table(symbols.parse_all("\n".join(names), modules=False))
    text = symbols.text_start(kallsyms)
    iomem = [Range(0x15000000, 0x15FFFFFF, "Kernel code")]
    assert kimage.code_pages(kallsyms, text, iomem) == [0x15051000, 0x15052000]
    assert kimage.code_pages(kallsyms, text, []) == []
