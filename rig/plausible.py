"""Whether what an evidence directory says can be true at all. Pure.

Types are msgspec's business. This is about values: numbers that no machine has would otherwise become loops that never
end and memory that nobody has; names that must be there are looked up without asking. What passes here may still be a
lie: finding that out is what the checks are for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rig import ingredients
from rig.facts import Damage, Facts, Manifest
from rig.loads import LOADS
from rig.model import MOST_MEMORY, PAGE_SIZE, CpuState, Guest, Phase, RunResult, Symbol

ADDRESSES = 1 << 64  # virtual ones, and the numbers in registers
PHYSICAL = 1 << 52  # MAXPHYADDR is at most 52 (Intel SDM vol. 3, 4.1.4)
CPUS = 8192  # of a guest: the most that a kernel can be configured for (CONFIG_NR_CPUS, arch/x86/Kconfig)
DEPTH = 32  # of lists and objects in each other: what the rig writes has less than ten
SECONDS = 1e9
DAMAGE = PAGE_SIZE  # bytes that one line of a sabotage's report tells of
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}")  # of checks and phases: the rig's own words
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags")
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


def values(value: object, where: str = "", depth: int = 0) -> Iterator[str]:
    """Complaints about numbers that are none, or beyond 64 bits, and about what is nested deeper than DEPTH; anywhere
    in model objects or plain JSON. Damage has numbers of its own size, and is left out.
    """
    if depth > DEPTH:
        yield f"{where[:80]}...: nested deeper than {DEPTH}"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{where}: {value} is no number"
    elif isinstance(value, int):
        if not -ADDRESSES < value < ADDRESSES:
            yield f"{where}: a number beyond 64 bits"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from values(inner, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from values(inner, f"{where}[{number}]", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, Damage):
        for field in dataclasses.fields(value):
            name = f"{where}.{field.name}" if where else field.name
            yield from values(getattr(value, field.name), name, depth + 1)


def facts(told: Facts) -> Iterator[str]:
    """Complaints about run.json: the key, and what is wrong with its value."""
    yield from values(told)
    guests = [("plan.guest", told.plan.guest), *([("plan.into", told.plan.into)] if told.plan.into else [])]
    for where, guest in guests:
        yield from _guest(where, guest)
    if told.manifest is not None:
        yield from _manifest(told.manifest)
    yield from _ram(told)
    yield from _places(told)
    if told.plan.scenario.load not in LOADS:
        yield f"plan.scenario.load: {told.plan.scenario.load[:80]!r}, which this rig does not know"
    yield from _names("plan.scenario.checks", told.plan.scenario.checks)
    yield from _names("plan.scenario.expect_failed", told.plan.scenario.expect_failed)
    if told.per_cpu is not None and not 0 <= told.per_cpu.static <= told.per_cpu.used <= told.per_cpu.unit < PHYSICAL:
        yield "per_cpu: the parts of a unit don't lie in each other"
    if told.crashing_cpu is not None and not 0 <= told.crashing_cpu < CPUS:
        yield f"crashing_cpu: there is no CPU {told.crashing_cpu}"
    if told.pattern is not None and not told.pattern.token.isascii():
        yield "pattern.token: not ASCII"
    for number, damage in enumerate(told.damage):
        if not 0 < damage.size <= DAMAGE:
            yield f"damage[{number}].size: {damage.size} bytes"
        elif any(not 0 <= value < 1 << 8 * damage.size for value in (damage.before, damage.after)):
            yield f"damage[{number}]: a value that {damage.size} bytes can't hold"
    for number, phase in enumerate(told.phases):
        yield from _phase(number, phase)


def _names(where: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not NAME.fullmatch(name):
            yield f"{where}: {name[:80]!r} can't be a name"


def _phase(number: int, phase: Phase) -> Iterator[str]:
    yield from _names(f"phases[{number}].name", [phase.name])
    if not 0 <= phase.seconds < SECONDS:
        yield f"phases[{number}].seconds: {phase.seconds}"
    if phase.console is not None and phase.console < 0:
        yield f"phases[{number}].console: {phase.console}"


def _manifest(told: Manifest) -> Iterator[str]:
    """Every file that a run would be made of again has its hash, under a path that can't lead out of its place."""
    for name in told.sha256:
        path = Path(name)
        ours = path.parts[:1] in (("cache",), ("rig",)) and len(path.parts) > 1
        if ".." in path.parts or not (ours or path.is_absolute()):
            yield f"manifest.sha256: {name[:80]!r} is neither of the cache, nor the rig's, nor absolute"
    for path in ingredients.files(told.ingredients):
        if str(path) not in told.sha256:
            yield f"manifest.ingredients: {str(path)[:80]!r} has no hash"


def _guest(where: str, guest: Guest) -> Iterator[str]:
    if not 0 < guest.memory <= MOST_MEMORY:
        yield f"{where}.memory: {guest.memory} MiB"
    if not 0 < guest.cpus <= CPUS:
        yield f"{where}.cpus: {guest.cpus}"


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


def _places(told: Facts) -> Iterator[str]:
    """Physical ranges and pages."""
    ranges = [*told.iomem, *([told.crash_region] if told.crash_region else [])]
    if any(not 0 <= one.start <= one.last + 1 <= ADDRESSES for one in ranges):
        yield "iomem, crash_region: a range ends before it begins"
    sized: dict[str, Iterable[tuple[int, int]]] = {
        "crash_notes": told.crash_notes,
        "efi_tables": told.efi_tables,
        "vmcoreinfo": [told.vmcoreinfo] if told.vmcoreinfo else [],
        "control_memory": [told.control_memory] if told.control_memory else [],
        "kimage.segments": told.kimage.segments if told.kimage else [],
        "pattern": [(told.pattern.physical, told.pattern.bytes)] if told.pattern else [],
        "hypervisor.allocated": told.hypervisor.allocated.values() if told.hypervisor else [],
    }
    for key, places in sized.items():
        if any(not 0 <= address <= address + size <= PHYSICAL for address, size in places):
            yield f"{key}: not a range of physical memory"
    pages: dict[str, Iterable[int]] = {
        "cr3": [told.cr3] if told.cr3 is not None else [],
        "tables": told.tables,
        "user_pgd": [told.user_pgd] if told.user_pgd is not None else [],
        "user_tables": told.user_tables,
        "other_tables": told.other_tables,
        "handover_tables": told.handover_tables,
        "slab_pages": told.slab_pages,
        "dump.physical": [told.dump.physical] if told.dump else [],
        "kimage.pages": told.kimage.pages if told.kimage else [],
        "kimage.lists": told.kimage.lists if told.kimage else [],
    }
    for key, addresses in pages.items():
        if any(not 0 <= address < PHYSICAL for address in addresses):
            yield f"{key}: not a physical address"


def cpus(states: Iterable[CpuState]) -> Iterator[str]:
    """Complaints about the registers at a checkpoint."""
    for state in states:
        yield from values(state, f"CPU {state.cpu}")
        missing = [*(n for n in GENERAL if n not in state.general), *(n for n in SEGMENTS if n not in state.segments)]
        if missing:
            yield f"CPU {state.cpu} lacks {', '.join(missing)}"
        segments = (value for one in state.segments.values() for value in dataclasses.astuple(one))
        controls = (state.cr0, state.cr2, state.cr3, state.cr4, state.efer)
        tables = (state.gdt_base, state.gdt_limit, state.idt_base, state.idt_limit)
        if any(value < 0 for value in (*state.general.values(), *segments, *controls, *tables)):
            yield f"CPU {state.cpu} has a negative number in a register"


def symbols(known: Iterable[Symbol]) -> Iterator[str]:
    """Complaints about symbols.json."""
    for symbol in known:
        if not 0 <= symbol.start <= symbol.end <= ADDRESSES:
            yield f"{symbol.name[:80]!r} lies nowhere"


def result(told: RunResult) -> Iterator[str]:
    """Complaints about result.json."""
    yield from values(told)
    yield from _names("checks", (check.name for check in told.checks))
    yield from _names("expect_failed", told.expect_failed)
    for number, phase in enumerate(told.phases):
        yield from _phase(number, phase)
