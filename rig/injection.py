"""Sabotage through the debugger, on kernels as they are. What is damaged is chosen from memory and registers. Pure.

To add one: a decorated function Scene -> Change. At `machine-kexec` the damage is done after the capture, and may only
be to memory; at `handover` before it; at `returned`, of a kexec jump, it is done after the capture of `handover`, while
the image is about to run. The machine is held in between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.errors import EvidenceError
from rig.facts import Damage, Kimage, RegisterDamage
from rig.late import late
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, Arch, Checkpoint, CpuState, PagingMode, Range

if TYPE_CHECKING:
    import capstone
    import numpy as np

    from rig.memory import levels, paging, walk
else:  # the catalogue asks for the names of injections before anything is to be damaged
    capstone, np = late("capstone"), late("numpy")
    levels, paging, walk = late("rig.memory.levels"), late("rig.memory.paging"), late("rig.memory.walk")

# Accessed and dirty: the CPU sets them by itself, so a check must not take them for damage (SDM vol. 3, 4.8).
AD_BITS = (5, 6)
LARGE_PAGE = 2 << 20  # bytes, what an entry of a page directory maps in PAE and longer modes
CODE = 512  # bytes of machine_kexec in which the instruction is looked for that turns interrupts off
CLI, STI = b"\xfa", b"\xfb"  # SDM vol. 2
CR0_WP, CR4_PGE = 1 << 16, 1 << 7  # SDM vol. 3, 2.5
MOV_TO_CR3, INT3 = b"\x0f\x22\xd8", 0xCC  # mov cr3, (r|e)ax; SDM vol. 2


@dataclass(frozen=True)
class Scene:
    """The held machine. cr3: at `panic`. cpu: the crashing one, as it is now. memory: as it is now."""

    arch: Arch
    mode: PagingMode
    cr3: int
    cpu: CpuState
    memory: Memory
    iomem: tuple[Range, ...]
    crash_region: Range | None  # None for a plain kexec
    kimage: Kimage
    moved: frozenset[
        int
    ]  # physical: the pages that a plain kexec copies from and to, and those of the list that says so
    chance: random.Random


@dataclass(frozen=True)
class Change:
    """What is to be written. own: a page (physical address) that the sabotage took for itself."""

    memory: tuple[Damage, ...] = ()
    registers: tuple[RegisterDamage, ...] = ()
    own: int | None = None


@dataclass(frozen=True)
class Injection:
    name: str
    when: Checkpoint
    choose: Callable[[Scene], Change]


_found: dict[str, Injection] = {}


def injection(name: str, when: Checkpoint) -> Callable[[Callable[[Scene], Change]], Callable[[Scene], Change]]:
    """Enter a function into the registry, under the name by which a scenario asks for it."""

    def enter(choose: Callable[[Scene], Change]) -> Callable[[Scene], Change]:
        _found[name] = Injection(name, when, choose)
        return choose

    return enter


# ---------------------------------------------------------------- the live pgd


@injection("flip-pgd-bit", Checkpoint.HANDOVER)
def flip_pgd_bit(scene: Scene) -> Change:
    """Any bit of any entry but the accessed and dirty ones. The old tables are no longer live, so the guest goes on."""
    root, width = levels.root(scene.mode, scene.cr3), levels.MODES[scene.mode].entry_size
    address = root + width * scene.chance.randrange(levels.root_size(scene.mode) // width)
    bit = scene.chance.choice([b for b in range(8 * width) if b not in AD_BITS])
    before = int.from_bytes(scene.memory.read(address, width), "little")
    return Change((Damage(address, width, before, before ^ 1 << bit),))


# ---------------------------------------------------------------- the way


@injection("interrupts-on", Checkpoint.MACHINE_KEXEC)
def interrupts_on(scene: Scene) -> Change:
    """machine_kexec's own CLI becomes STI: it goes on to change segments and tables with interrupts on.

    Setting the flag itself would be in vain: the CLI comes first.
    """
    rip = scene.cpu.general["rip"]
    physical = paging.translate(scene.memory, scene.mode, scene.cr3, rip).physical
    width = capstone.CS_MODE_64 if scene.arch is Arch.AMD64 else capstone.CS_MODE_32
    code = scene.memory.read(physical, CODE)  # kernel text is contiguous, physically too
    for address, size, mnemonic, _ in capstone.Cs(capstone.CS_ARCH_X86, width).disasm_lite(code, physical):
        if mnemonic == "cli" and size == len(CLI):
            return Change((Damage(address, 1, CLI[0], STI[0]),))
    raise EvidenceError(f"no CLI within {CODE} bytes of machine_kexec at {rip:#x}")


@injection("unmapped-control-page", Checkpoint.MACHINE_KEXEC)
def unmapped_control_page(scene: Scene) -> Change:
    """The image's tables no longer map the control page where it runs: nothing there after CR3 is loaded."""
    entry = _control_entry(scene)
    return Change((Damage(entry.address, entry.size, entry.before, 0),))


@injection("nx-control-page", Checkpoint.MACHINE_KEXEC)
def nx_control_page(scene: Scene) -> Change:
    """The control page is not executable where it runs, in the image's tables."""
    if not scene.cpu.efer & 1 << 11:
        raise EvidenceError("EFER.NXE is clear: there is no NX to set")
    entry = _control_entry(scene)
    return Change((Damage(entry.address, entry.size, entry.before, entry.before | levels.NX),))


@injection("identity-hole", Checkpoint.MACHINE_KEXEC)
def identity_hole(scene: Scene) -> Change:
    """The image's identity map lacks the topmost 2 MiB of RAM that the way doesn't need.

    For kdump that is all RAM outside the crash region, for a plain kexec where nothing of the image is or goes.
    """
    tables = _image_tables(scene)
    control = paging.translate(scene.memory, scene.mode, tables.root, tables.control).physical
    needed = {page // LARGE_PAGE for page in (*scene.moved, control, *(t.address for t in tables.space.tables))}
    whole = np.flatnonzero((tables.space.size == LARGE_PAGE) & (tables.space.virtual == tables.space.physical))
    for start in reversed(tables.space.physical[whole].tolist()):
        if _is_ram(scene, start, LARGE_PAGE) and start // LARGE_PAGE not in needed:
            entry = _last_entry(scene, tables.root, start)
            return Change((Damage(entry.address, entry.size, entry.before, 0),))
    raise EvidenceError(f"the identity map at {tables.root:#x} has no 2 MiB page that is all RAM and not needed")


@injection("stray-table", Checkpoint.MACHINE_KEXEC)
def stray_table(scene: Scene) -> Change:
    """A page directory of the image's identity map lies outside the crash region, with the same contents."""
    tables = _image_tables(scene)
    path = paging.translate(scene.memory, scene.mode, tables.root, scene.kimage.start).path
    if len(path) < 3:
        raise EvidenceError(f"the identity map at {tables.root:#x} has no page directory")
    _, at, before = path[-2]
    frame = levels.MODES[scene.mode].levels[len(path) - 2].frame
    copy = _zero_page(scene)
    original = scene.memory.read(before & frame, PAGE_SIZE)
    words = (original[i : i + 8] for i in range(0, PAGE_SIZE, 8))
    written = [Damage(copy + 8 * i, 8, 0, int.from_bytes(word, "little")) for i, word in enumerate(words) if any(word)]
    pointer = Damage(at, 8, before, before & ~frame | copy)
    return Change(tuple(sorted([*written, pointer], key=lambda d: d.address)), own=copy)


# ---------------------------------------------------------------- the new image's entry


@injection("stale-cr4", Checkpoint.HANDOVER)
def stale_cr4(scene: Scene) -> Change:
    """CR4.PGE is still set: global pages of the old kernel would outlive a change of tables."""
    return Change(registers=(RegisterDamage("cr4", scene.cpu.cr4, scene.cpu.cr4 | CR4_PGE),))


@injection("stale-cr0", Checkpoint.HANDOVER)
def stale_cr0(scene: Scene) -> Change:
    """CR0.WP is still set."""
    return Change(registers=(RegisterDamage("cr0", scene.cpu.cr0, scene.cpu.cr0 | CR0_WP),))


@injection("torn-image", Checkpoint.HANDOVER)
def torn_image(scene: Scene) -> Change:
    """A byte of the image has changed: the last one of the segment that is entered.

    That is purgatory, which compares the sums of all segments but its own, and whose last page it doesn't fill.
    """
    for mem, size in scene.kimage.segments:
        if mem <= scene.kimage.start < mem + size:
            last = mem + size - 1
            before = scene.memory.read(last, 1)[0]
            if before:
                raise EvidenceError(f"the last byte of purgatory, at {last:#x}, is {before:#x}: it may be in use")
            return Change((Damage(last, 1, before, 0xFF),))
    raise EvidenceError("where the image's segments lie is not known")


# ---------------------------------------------------------------- the way back from a kexec jump


@injection("stray-write", Checkpoint.RETURNED)
def stray_write(scene: Scene) -> Change:
    """While the image runs, a bit changes elsewhere: in the topmost page that is all zeros."""
    address = _zero_page(scene) + scene.chance.randrange(PAGE_SIZE)
    return Change((Damage(address, 1, 0, 1 << scene.chance.randrange(8)),))


@injection("other-code-mapped", Checkpoint.RETURNED)
def other_code_mapped(scene: Scene) -> Change:
    """The image's tables map a copy of the control page where that runs, with INT3 behind the last change of CR3.

    That is the one back to the old tables: by them the next instruction is the control page's, and the kernel goes on.
    """
    back = int.from_bytes(scene.memory.read(scene.cpu.general["rsp"], scene.arch.word), "little")
    control, copy = back & ~(PAGE_SIZE - 1), _zero_page(scene)
    entry = _mapping(scene, control)
    code = bytearray(scene.memory.read(control, PAGE_SIZE))
    behind = code.rfind(MOV_TO_CR3) + len(MOV_TO_CR3)
    if behind < len(MOV_TO_CR3):
        raise EvidenceError(f"no MOV to CR3 on the control page at {control:#x}")
    code[behind] = INT3
    words = (int.from_bytes(code[at : at + 8], "little") for at in range(0, PAGE_SIZE, 8))
    written = [Damage(copy + 8 * n, 8, 0, word) for n, word in enumerate(words) if word]
    pointer = Damage(entry.address, entry.size, entry.before, entry.before ^ control ^ copy)
    return Change(tuple(sorted([*written, pointer], key=lambda d: d.address)), own=copy)


def _mapping(scene: Scene, page: int) -> _Entry:
    """The entry of the image's tables that maps a physical page elsewhere than at its own address."""
    for root in (scene.cpu.cr3,) if scene.cpu.paging is not None else scene.kimage.pages:
        space = walk.walk(scene.memory, scene.mode, root)
        for virtual in space.virtual[(space.physical == page) & (space.size == PAGE_SIZE)].tolist():
            if virtual != page:
                return _last_entry(scene, root, virtual)
    raise EvidenceError(f"the image's tables map {page:#x} nowhere but at its own address")


# ---------------------------------------------------------------- the image's own tables


@dataclass(frozen=True)
class _ImageTables:
    """root: physical. control: where the control page is mapped beside its own physical address, virtual."""

    root: int
    space: walk.AddressSpace
    control: int


def _image_tables(scene: Scene) -> _ImageTables:
    """The tables that the image was given when it was loaded, whatever their design.

    They are known by what they must do: map one page of control memory twice, at its own address and at one of the
    kernel's. i386 keeps a pointer to their root in struct kimage; on x86_64 the root is in control memory, and they
    map the entry of the new image as well. Control memory is the crash region; for plain kexec it may be any RAM, where
    the tables that other CPUs are started with look alike, but map many pages twice.
    """
    for root in (*scene.kimage.pages, *_identity_roots(scene)):
        space = walk.walk(scene.memory, scene.mode, root)
        small = (space.size == PAGE_SIZE) & (space.virtual != space.physical)
        pairs = zip(space.virtual[small].tolist(), space.physical[small].tolist(), strict=True)
        if scene.crash_region is None:
            twice = [virtual for virtual, physical in pairs if _maps(scene, root, physical)]
            twice = twice if len(twice) == 1 else []
        else:
            inside = ((v, physical) for v, physical in pairs if physical in scene.crash_region)
            twice = [virtual for virtual, physical in inside if _maps(scene, root, physical)]
        if twice:
            return _ImageTables(root, space, twice[0])
    raise EvidenceError("no page tables of the image were found: none map a page of control memory twice")


def _identity_roots(scene: Scene) -> Iterator[int]:
    region = scene.crash_region
    ranges = [r for r in scene.iomem if r.name == "System RAM"] if region is None else [region]
    pages = (page for r in ranges for page in range(-(-r.start // PAGE_SIZE) * PAGE_SIZE, r.last, PAGE_SIZE))
    return (page for page in pages if _maps(scene, page, scene.kimage.start))


def _maps(scene: Scene, root: int, address: int) -> bool:
    """Whether the tables map an address to itself."""
    try:
        return paging.translate(scene.memory, scene.mode, root, address).physical == address
    except (paging.NotMapped, OutsideMemory):
        return False


@dataclass(frozen=True)
class _Entry:
    """address: physical. size: bytes. before: its value."""

    address: int
    size: int
    before: int


def _control_entry(scene: Scene) -> _Entry:
    tables = _image_tables(scene)
    return _last_entry(scene, tables.root, tables.control)


def _last_entry(scene: Scene, root: int, virtual: int) -> _Entry:
    """The entry that maps the page."""
    _, address, value = paging.translate(scene.memory, scene.mode, root, virtual).path[-1]
    return _Entry(address, levels.MODES[scene.mode].entry_size, value)


# ---------------------------------------------------------------- RAM


def _is_ram(scene: Scene, start: int, size: int) -> bool:
    """Whether all of it is System RAM, and none of it the crash region's."""
    last, region = start + size - 1, scene.crash_region
    if region is not None and start <= region.last and last >= region.start:
        return False
    return any(r.name == "System RAM" and start in r and last in r for r in scene.iomem)


def _zero_page(scene: Scene) -> int:
    """The topmost page of RAM outside the crash region that holds nothing but zeros."""
    for ram in sorted((r for r in scene.iomem if r.name == "System RAM"), key=lambda r: r.start, reverse=True):
        for page in range((ram.last + 1) // PAGE_SIZE * PAGE_SIZE - PAGE_SIZE, ram.start - 1, -PAGE_SIZE):
            if _is_ram(scene, page, PAGE_SIZE) and not any(scene.memory.read(page, PAGE_SIZE)):
                return page
    raise EvidenceError("no page of RAM is all zeros")


INJECTIONS: Mapping[str, Injection] = dict(_found)
