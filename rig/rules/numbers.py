"""Whether what an evidence directory says can be true at all. Pure.

Numbers that no machine has would otherwise become loops that never end and memory that nobody has; names that must be
there are looked up without asking. What passes here may still be a lie: finding that out is what the checks are for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from rig.facts import Damage, DumpInfo, Facts, Hypervisor, Kimage, Manifest, Pattern, PerCpu, files
from rig.loads import LOADS
from rig.model import MOST_MEMORY, PAGE_SIZE, CheckResult, CpuState, Guest, Phase, Range, RunResult, Scenario, Symbol
from rig.rules import Table, each, everywhere, fits, matches

ADDRESSES = 1 << 64  # virtual ones, and the numbers in registers
PHYSICAL = 1 << 52  # MAXPHYADDR is at most 52 (Intel SDM vol. 3, 4.1.4)
CPUS = 8192  # of a guest: the most that a kernel can be configured for (CONFIG_NR_CPUS, arch/x86/Kconfig)
SECONDS = 1e9
DAMAGE = PAGE_SIZE  # bytes that one line of a sabotage's report tells of
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags")
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")

# Of checks and phases: the rig's own words.
_NAME = matches(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}", "a name")
_ADDRESS = fits(lambda address: 0 <= address < PHYSICAL, "a physical address")
_PLACE = fits(lambda place: 0 <= place[0] <= sum(place) <= PHYSICAL, "an address and a size in physical memory")
_TABLES = ("tables", "user_tables", "other_tables", "handover_tables", "slab_pages")


def _damage(told: Damage) -> Iterator[str]:
    """Its numbers are of its own size, which may be far beyond 64 bits."""
    if not 0 < told.size <= DAMAGE:
        yield f"of {told.size} bytes"
    elif any(not 0 <= value < 1 << 8 * told.size for value in (told.before, told.after)):
        yield f"a value that {told.size} bytes can't hold"


def _manifest(told: Manifest) -> Iterator[str]:
    """Every file that a run would be made of again has its hash, under a path that can't lead out of its place."""
    for name in told.sha256:
        path = Path(name)
        ours = path.parts[:1] in (("cache",), ("rig",)) and len(path.parts) > 1
        if ".." in path.parts or not (ours or path.is_absolute()):
            yield f"sha256: {name[:80]!r} is neither of the cache, nor the rig's, nor absolute"
    for path in files(told.ingredients):
        if str(path) not in told.sha256:
            yield f"ingredients: {str(path)[:80]!r} has no hash"


def _ram(told: Facts) -> Iterator[str]:
    """The ranges of RAM are whole pages of the file, which is as large as the guest's memory."""
    size = told.plan.guest.memory << 20
    for number, (start, length, offset) in enumerate(told.ram):
        aligned = not any(value % PAGE_SIZE for value in (start, length, offset))
        if not aligned or not 0 <= offset < offset + length <= size or not 0 <= start < PHYSICAL:
            yield f"ram[{number}]: not a part of {told.plan.guest.memory} MiB"
    ordered = sorted(told.ram)
    if any(low + length > high for (low, length, _), (high, _, _) in itertools.pairwise(ordered)):
        yield "ram: ranges overlap"


def _cpu(state: CpuState) -> Iterator[str]:
    missing = [*(n for n in GENERAL if n not in state.general), *(n for n in SEGMENTS if n not in state.segments)]
    if missing:
        yield f"lacks {', '.join(missing)}"
    segments = (value for one in state.segments.values() for value in (one.selector, one.base, one.limit, one.flags))
    controls = (state.cr0, state.cr2, state.cr3, state.cr4, state.efer)
    tables = (state.gdt_base, state.gdt_limit, state.idt_base, state.idt_limit)
    if not all(0 <= value < ADDRESSES for value in (*state.general.values(), *segments, *controls, *tables)):
        yield "a register holds no number of 64 bits"


RULES: Table = {
    int: {"": fits(lambda value: -ADDRESSES < value < ADDRESSES, "a number of 64 bits")},
    float: {"": fits(math.isfinite, "a number")},
    Facts: {
        "": _ram,
        "crashing_cpu": fits(range(CPUS).__contains__, "a CPU"),
        "crash_notes": each(_PLACE),
        "efi_tables": each(_PLACE),
        "vmcoreinfo": _PLACE,
        "control_memory": _PLACE,
        **dict.fromkeys(("cr3", "user_pgd"), _ADDRESS),
        **dict.fromkeys(_TABLES, each(_ADDRESS)),
    },
    Guest: {
        "memory": fits(range(1, MOST_MEMORY + 1).__contains__, "so many MiB as a guest may have"),
        "cpus": fits(range(1, CPUS + 1).__contains__, "so many CPUs as a guest may have"),
    },
    Scenario: {
        "load": fits(LOADS.__contains__, "a way to load an image that this rig knows"),
        "checks": each(_NAME),
        "expect_failed": each(_NAME),
    },
    Manifest: {"": _manifest},
    Range: {
        "": fits(lambda told: 0 <= told.start <= told.last + 1 <= ADDRESSES, "a range that ends behind its beginning")
    },
    Kimage: {"segments": each(_PLACE), "pages": each(_ADDRESS), "lists": each(_ADDRESS)},
    Hypervisor: {"allocated": lambda told: each(_PLACE)(told.values())},
    PerCpu: {
        "": fits(lambda told: 0 <= told.static <= told.used <= told.unit < PHYSICAL, "parts that lie in each other")
    },
    Pattern: {
        "": fits(lambda told: 0 <= told.physical <= told.physical + told.bytes <= PHYSICAL, "in physical memory"),
        "token": fits(str.isascii, "ASCII"),
    },
    DumpInfo: {"physical": _ADDRESS},
    Damage: {"": _damage},
    Phase: {
        "name": _NAME,
        "seconds": fits(lambda seconds: 0 <= seconds < SECONDS, "seconds that a phase may take"),
        "console": fits(lambda size: size >= 0, "a size"),
    },
    CheckResult: {"name": _NAME},
    RunResult: {"expect_failed": each(_NAME)},
    CpuState: {"": _cpu},
    Symbol: {"": fits(lambda symbol: 0 <= symbol.start <= symbol.end <= ADDRESSES, "anywhere")},
}


def complaints(told: object) -> Iterator[str]:
    """Where, and what no machine could have there: of what is in run.json, result.json, registers or symbols."""
    for where, complaint in everywhere(told, RULES, closed={Damage, CpuState, Symbol}):
        yield f"{where}: {complaint}".removeprefix(": ")
