"""What the debugger's sabotages choose, on a small forged machine with the tables of an image."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from rig.errors import EvidenceError
from rig.facts import Damage, Kimage
from rig.injection import AD_BITS, INJECTIONS, Change, Scene
from rig.memory.image import PagesMemory
from rig.memory.levels import root_size
from rig.memory.paging import NotMapped, entry_changes, translate
from rig.model import PAGE_SIZE, Arch, PagingMode, Range
from tests.forge import cpu

START = 0x2010760  # of the new image, in the crash region
CONTROL, TEXT = 0x2003000, 0xFFFFFFFF81000000  # the control page: physical, and where it runs
ROOT, PDPT, PD = 0x2002000, 0x2004000, 0x2005000
TEXT_PDPT, TEXT_PD, TEXT_PT = 0x2006000, 0x2007000, 0x2008000
OLD, OLD_PDPT, OLD_PD = 0x1000, 0x2000, 0x3000  # the live tables: kernel text in 2 MiB at 0x400000
KERNEL = 0x400000
# push %rbp; mov $0xfa,%al (no CLI, though it holds its byte); cli; ret
CODE = bytes.fromhex("55 b0fa fa c3")
RAM = (Range(0, 0x9FFFF, "System RAM"), Range(0x100000, 0x3FFFFFF, "System RAM"))


def table(entries: dict[int, int]) -> bytes:
    words = [entries.get(index, 0) for index in range(512)]
    return struct.pack("<512Q", *words)


PAGES = {
    ROOT: table({0: PDPT | 0x63, 511: TEXT_PDPT | 0x63}),
    PDPT: table({0: PD | 0x63}),
    PD: table({index: index << 21 | 0xE3 for index in range(32)}),  # 64 MiB in large pages
    TEXT_PDPT: table({510: TEXT_PD | 0x63}),
    TEXT_PD: table({8: TEXT_PT | 0x63}),
    TEXT_PT: table({0: CONTROL | 0x63}),
    OLD: table({511: OLD_PDPT | 0x63}),
    OLD_PDPT: table({510: OLD_PD | 0x63}),
    OLD_PD: table({8: KERNEL | 0xE3}),
    KERNEL: CODE.ljust(PAGE_SIZE, b"\xcc"),
}
EVERYTHING = {pfn: bytes(PAGE_SIZE) for pfn in range(0x4000)} | {at // PAGE_SIZE: page for at, page in PAGES.items()}


def scene() -> Scene:
    state = cpu(0, rip=TEXT)
    return Scene(
        arch=Arch.AMD64,
        mode=PagingMode.FOUR_LEVEL,
        cr3=OLD,
        cpu=replace(state, cr0=0x80000033, cr4=0x20, efer=0xD01),
        memory=PagesMemory(EVERYTHING),
        iomem=(*RAM, Range(0x2000000, 0x2FFFFFF, "Crash kernel", depth=1)),
        crash_region=Range(0x2000000, 0x2FFFFFF, "Crash kernel"),
        moved=frozenset(),
        kimage=Kimage(0xFFFF888000000000, START, "forged"),
        chance=random.Random(1),
    )


def after(change: Change) -> PagesMemory:
    """Memory with the change made, each word having been there as it says."""
    pages = dict(EVERYTHING)
    for word in change.memory:
        pfn, offset = divmod(word.address, PAGE_SIZE)
        page = pages[pfn]
        assert int.from_bytes(page[offset : offset + word.size], "little") == word.before != word.after
        pages[pfn] = page[:offset] + word.after.to_bytes(word.size, "little") + page[offset + word.size :]
    return PagesMemory(pages)


def mapped(memory: PagesMemory, virtual: int) -> int:
    return translate(memory, PagingMode.FOUR_LEVEL, ROOT, virtual).physical


# ---------------------------------------------------------------- the live pgd


@pytest.mark.parametrize("mode", [PagingMode.TWO_LEVEL, PagingMode.PAE, PagingMode.FOUR_LEVEL])
def test_any_flip_is_seen_and_named(mode: PagingMode) -> None:
    chance, forged = random.Random(1), replace(scene(), mode=mode)
    for _ in range(200):
        before = chance.randbytes(PAGE_SIZE)
        pages = PagesMemory({OLD // PAGE_SIZE: before})
        [flip] = INJECTIONS["flip-pgd-bit"].choose(replace(forged, memory=pages, chance=chance)).memory
        at = flip.address - OLD
        changed = before[:at] + flip.after.to_bytes(flip.size, "little") + before[at + flip.size :]
        changes = entry_changes(mode, before[: root_size(mode)], changed[: root_size(mode)])
        assert [(c.index * flip.size, c.before, c.after) for c in changes.changed] == [(at, flip.before, flip.after)]
        assert changes.ad_bits == 0


def test_every_entry_and_every_other_bit_can_be_flipped() -> None:
    forged = replace(scene(), mode=PagingMode.PAE)
    flips = [INJECTIONS["flip-pgd-bit"].choose(forged).memory[0] for _ in range(4000)]
    assert {(flip.address - OLD) // 8 for flip in flips} == {0, 1, 2, 3}
    assert {(flip.after ^ flip.before).bit_length() - 1 for flip in flips} == set(range(64)) - set(AD_BITS)


def test_a_seed_repeats_the_choice() -> None:
    choose = INJECTIONS["flip-pgd-bit"].choose
    assert choose(scene()) == choose(scene())


# ---------------------------------------------------------------- the way


def test_interrupts_on_patches_the_instruction_not_a_byte_that_looks_like_it() -> None:
    assert INJECTIONS["interrupts-on"].choose(scene()).memory == (Damage(KERNEL + 3, 1, 0xFA, 0xFB),)


def test_a_machine_kexec_without_cli_is_refused() -> None:
    pages = EVERYTHING | {KERNEL // PAGE_SIZE: bytes(PAGE_SIZE)}
    with pytest.raises(EvidenceError, match="no CLI"):
        INJECTIONS["interrupts-on"].choose(replace(scene(), memory=PagesMemory(pages)))


def test_unmapped_control_page_is_lost_where_it_runs_and_only_there() -> None:
    memory = after(INJECTIONS["unmapped-control-page"].choose(scene()))
    with pytest.raises(NotMapped):
        mapped(memory, TEXT)
    assert mapped(memory, CONTROL) == CONTROL


def test_nx_control_page_is_mapped_but_not_executable() -> None:
    memory = after(INJECTIONS["nx-control-page"].choose(scene()))
    found = translate(memory, PagingMode.FOUR_LEVEL, ROOT, TEXT)
    assert (found.physical, found.executable) == (CONTROL, False)


def test_without_nx_there_is_nothing_to_set() -> None:
    forged = scene()
    with pytest.raises(EvidenceError, match="NXE"):
        INJECTIONS["nx-control-page"].choose(replace(forged, cpu=replace(forged.cpu, efer=0x500)))


def test_identity_hole_is_the_topmost_ram_outside_the_crash_region() -> None:
    memory = after(INJECTIONS["identity-hole"].choose(scene()))
    with pytest.raises(NotMapped):
        mapped(memory, 0x3E00000)
    assert mapped(memory, START) == START


def test_stray_table_maps_the_same_from_outside_the_crash_region() -> None:
    change = INJECTIONS["stray-table"].choose(scene())
    memory = after(change)
    path = translate(memory, PagingMode.FOUR_LEVEL, ROOT, START).path
    assert change.own == 0x3FFF000
    assert path[-1][1] // PAGE_SIZE * PAGE_SIZE == change.own
    assert [mapped(memory, at) for at in (0, START, TEXT)] == [0, START, CONTROL]
    assert [word.address for word in change.memory] == sorted(word.address for word in change.memory)


@pytest.mark.parametrize("name", ["unmapped-control-page", "nx-control-page", "identity-hole", "stray-table"])
def test_an_image_without_tables_is_refused(name: str) -> None:
    with pytest.raises(EvidenceError, match="no page tables of the image"):
        INJECTIONS[name].choose(replace(scene(), memory=PagesMemory(EVERYTHING | {ROOT // PAGE_SIZE: table({})})))


def test_the_root_in_struct_kimage_is_found_without_a_map_of_the_entry() -> None:
    """As on i386, whose image's tables map nothing but the control page."""
    own = 0x5000
    pages = EVERYTHING | {own // PAGE_SIZE: table({0: 0x6063, 511: TEXT_PDPT | 0x63}), 6: table({0: 0x7063})}
    pages |= {7: table({CONTROL >> 21: 0x8063}), 8: table({CONTROL >> 12 & 511: CONTROL | 0x63}), ROOT >> 12: table({})}
    forged = scene()
    forged = replace(forged, memory=PagesMemory(pages), kimage=replace(forged.kimage, pages=(own,)))
    assert INJECTIONS["unmapped-control-page"].choose(forged).memory == (Damage(TEXT_PT, 8, CONTROL | 0x63, 0),)


# ---------------------------------------------------------------- the new image's entry


@pytest.mark.parametrize(
    ("name", "register", "value"), [("stale-cr4", "cr4", 0x20 | 1 << 7), ("stale-cr0", "cr0", 0x80000033 | 1 << 16)]
)
def test_stale_registers_are_one_bit_more(name: str, register: str, value: int) -> None:
    [change] = INJECTIONS[name].choose(scene()).registers
    assert (change.register, change.after) == (register, value)
    assert scene().cpu.register(register) == change.before


# ---------------------------------------------------------------- the way back from a kexec jump


def test_a_stray_write_is_one_bit_of_the_topmost_page_of_zeros() -> None:
    [flip] = INJECTIONS["stray-write"].choose(scene()).memory
    assert flip.address // PAGE_SIZE == 0x3FFF
    assert (flip.before, flip.after.bit_count()) == (0, 1)


def away() -> Scene:
    """The image has been called from the control page, and runs on its own tables."""
    stack, code = 0x9000, b"\x0f\x22\xd8\x44\x0f\x22\xc0"  # mov cr3, rax; mov cr0, r8
    control = (b"\x90" * 0x120 + b"\x0f\x22\xd8\x90" + b"\x90" * 0x60 + code).ljust(PAGE_SIZE, b"\0")
    pages = EVERYTHING | {
        CONTROL // PAGE_SIZE: control,
        stack // PAGE_SIZE: (CONTROL + 0x12D).to_bytes(8, "little").rjust(PAGE_SIZE, b"\0"),
    }
    state = replace(scene().cpu, cr3=ROOT, general={**scene().cpu.general, "rsp": stack + PAGE_SIZE - 8})
    return replace(scene(), crash_region=None, cpu=state, memory=PagesMemory(pages))


def test_other_code_is_mapped_where_the_control_page_runs_and_only_behind_the_last_change_of_cr3() -> None:
    forged = away()
    change = INJECTIONS["other-code-mapped"].choose(forged)
    assert change.own == 0x3FFF000
    [pointer] = [word for word in change.memory if word.address // PAGE_SIZE == TEXT_PT // PAGE_SIZE]
    assert (pointer.before, pointer.after) == (CONTROL | 0x63, 0x3FFF063)
    copy = bytearray(PAGE_SIZE)
    for word in change.memory:
        if word is not pointer:
            copy[word.address % PAGE_SIZE : word.address % PAGE_SIZE + 8] = word.after.to_bytes(8, "little")
    original = forged.memory.read(CONTROL, PAGE_SIZE)
    assert [(at, copy[at]) for at in range(PAGE_SIZE) if copy[at] != original[at]] == [(0x120 + 4 + 0x60 + 3, 0xCC)]


def test_without_a_way_back_there_is_no_other_code_to_map() -> None:
    forged = away()
    with pytest.raises(EvidenceError, match="nowhere but at its own address"):
        INJECTIONS["other-code-mapped"].choose(replace(forged, cpu=replace(forged.cpu, cr3=OLD)))


# ---------------------------------------------------------------- plain kexec: no crash region


def plain(segments: tuple[tuple[int, int], ...] = ()) -> Scene:
    forged = scene()
    return replace(forged, crash_region=None, kimage=replace(forged.kimage, segments=segments))


def test_the_tables_of_a_plain_image_are_found_anywhere_in_ram() -> None:
    """Not those that other CPUs are started with: these map many pages of the kernel's twice."""
    start_cpu, kernel_pt = 0x200000, 0x201000
    many = table({0: KERNEL | 0x63, 1: KERNEL + PAGE_SIZE | 0x63})
    pages = EVERYTHING | {
        start_cpu // PAGE_SIZE: table({0: PDPT | 0x63, 511: 0x202063}),
        0x202: table({510: 0x203063}),
        0x203: table({8: kernel_pt | 0x63}),
        kernel_pt // PAGE_SIZE: many,
    }
    forged = replace(plain(), memory=PagesMemory(pages))
    assert INJECTIONS["unmapped-control-page"].choose(forged).memory == (Damage(TEXT_PT, 8, CONTROL | 0x63, 0),)


def test_identity_hole_of_a_plain_image_is_where_nothing_of_it_is_or_goes() -> None:
    forged = replace(plain(), moved=frozenset([0x3FFF000, 0x3C00000]))
    memory = after(INJECTIONS["identity-hole"].choose(forged))
    with pytest.raises(NotMapped):
        mapped(memory, 0x3A00000)


def test_a_torn_image_is_purgatorys_last_byte_unless_that_is_in_use() -> None:
    forged = plain(segments=((0x100000, 0x2000), (START & ~0xFFF, 0x2000)))
    last = (START & ~0xFFF) + 0x1FFF
    assert INJECTIONS["torn-image"].choose(forged).memory == (Damage(last, 1, 0, 0xFF),)
    used = EVERYTHING | {last // PAGE_SIZE: b"\x01" * PAGE_SIZE}
    with pytest.raises(EvidenceError, match="may be in use"):
        INJECTIONS["torn-image"].choose(replace(forged, memory=PagesMemory(used)))
    with pytest.raises(EvidenceError, match="not known"):
        INJECTIONS["torn-image"].choose(plain())
