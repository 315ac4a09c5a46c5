"""Every byte that changed, and who owns it: everywhere until the hand-over, then outside the crash region."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rig.checks.writers import TO_HANDOVER, TO_MACHINE_KEXEC, Interval, before_they_stopped, functions
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import PerCpu
from rig.handover import HandOver, Live
from rig.kernel import ages
from rig.memory import levels, paging
from rig.memory.diff import changed_ranges
from rig.memory.ledger import UNACCOUNTED, Change, Claim, Part, account, divide
from rig.memory.paging import NotMapped
from rig.memory.physical import VGA_TEXT, OutsideMemory
from rig.model import CRASH_KERNEL, PAGE_SIZE, Arch, Checkpoint, CheckResult, CpuState, Verdict

ORDER = (Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.CRASH_KERNEL)
# The crash kernel is given the first 640 KiB, and keeps its real-mode trampoline there; purgatory saves what was in
# them to the crash region first (kexec-tools, "backup region"), which is where /proc/vmcore reads them from.
LOW_MEMORY = (0, 0xA0000)
THREAD_SIZE = {Arch.AMD64: 16384, Arch.I386: 8192}  # arch/x86/include/asm/page_{64,32}_types.h, without KASAN
UNTOLD = "a kernel this old does not tell where its stacks, per-CPU data and .bss lie"
VMCOREINFO = b"OSRELEASE="  # how its text begins (kernel/crash_core.c, VMCOREINFO_OSRELEASE())
IMAGE = {"Kernel code": ".text", "Kernel rodata": ".rodata", "Kernel data": ".data", "Kernel bss": ".bss"}


@dataclass(frozen=True)
class _Interval:
    """What changed between two consecutive checkpoints: in bytes, and (`owners`) as the figures list it.

    inside: bytes in the crash region; outside, pages: all others.
    """

    between: Interval
    outside: int
    pages: int
    inside: int
    owners: list[dict[str, Any]]


@dataclass(frozen=True)
class Owned:
    """`length` changed bytes at a physical address, and whose they are."""

    between: Interval
    owner: str
    address: int
    length: int


def memory_accounted(evidence: Evidence) -> CheckResult:
    """Changes between consecutive checkpoints, each byte with the owner that the guest's own words give it."""
    seen = [c for c in ORDER if c in evidence.facts.captured]
    if len(seen) < 2:
        raise EvidenceError("memory was captured at fewer than two checkpoints: nothing to compare")
    common = claims(evidence)
    intervals = [_interval(evidence, between, common) for between in pairwise(seen)]
    ledger = [entry for interval in intervals for entry in interval.owners]
    nobodys = [entry for entry in ledger if entry["owner"] == UNACCOUNTED]
    total, inside = sum(i.outside for i in intervals), sum(i.inside for i in intervals)
    unaccounted = sum(entry["bytes"] for entry in nobodys)
    figures = {
        "bytes_changed": total,
        "crash_region_bytes": inside,
        "owners": ledger,
        "unaccounted": unaccounted,
        "intervals": [
            {"from": str(i.between[0]), "to": str(i.between[1]), "bytes": i.outside, "pages": i.pages}
            for i in intervals
        ],
    }
    if ages.older(evidence.facts.kernel.release, ages.PER_CPU_TOLD):
        summary = f"could not judge: who owns the {total + inside} bytes that changed is not known, since {UNTOLD}"
        return CheckResult("memory-accounted", Verdict.ERROR, summary, figures)
    if unaccounted and (unknown := _never_learned(evidence)):
        summary = f"could not judge: {unknown}, and {unaccounted} of the bytes that changed may be its"
        return CheckResult("memory-accounted", Verdict.ERROR, summary, figures)
    if unaccounted:
        where = ", ".join(address for entry in nobodys for address in entry["addresses"])
        summary = f"{unaccounted} of {total + inside} changed bytes have no owner: at {where}"
        return CheckResult("memory-accounted", Verdict.FAIL, summary, figures)
    if evidence.course[-1] not in seen:
        summary = f"{total} bytes changed, all with an owner, but memory was last seen at {seen[-1]}"
        return CheckResult("memory-accounted", Verdict.ERROR, summary, figures)
    owners = len({entry["owner"] for entry in ledger})
    summary = (
        f"{total} bytes changed outside the crash region, {inside} in it up to the hand-over: all of them with an owner"
        f" ({owners} owners)"
    )
    return CheckResult("memory-accounted", Verdict.PASS, summary, figures)


def _never_learned(evidence: Evidence) -> str:
    """Whose memory isn't known, because the run broke off before it was looked up; empty when everybody's is."""
    if evidence.facts.kimage is None:
        return "struct kimage was not read"
    if not evidence.facts.tables:  # a survey finds the root at least
        return "the crashed task's memory was not looked up"
    return ""


def _interval(evidence: Evidence, between: Interval, common: Sequence[Claim]) -> _Interval:
    """common: claims that hold whenever something changed; those of the interval alone come before them."""
    changes = list(_changes(evidence, *between))
    region = evidence.facts.crash_region
    outside = [c for c in changes if region is None or c.address not in region]
    size = sum(c.length for c in outside)
    parts = _parts(evidence, between, changes, common)
    return _Interval(
        between,
        outside=size,
        pages=len({c.address // PAGE_SIZE for c in outside}),
        inside=sum(c.length for c in changes) - size,
        owners=_entries(evidence, between, parts),
    )


def _parts(evidence: Evidence, between: Interval, changes: list[Change], common: Sequence[Claim]) -> list[Part]:
    """What changed in an interval, by owner: of all claims on it the first that holds."""
    region = evidence.facts.crash_region
    extra = ad_claims(evidence, *between)
    if between[1] is Checkpoint.CRASH_KERNEL:
        extra.append(Claim(*LOW_MEMORY, "first 640 KiB, given to the crash kernel (saved by purgatory)"))
        others = (r for r in evidence.facts.iomem if r.name == CRASH_KERNEL and r != region)
        extra += [Claim(r.start, r.last + 1, "low memory reserved for the crash kernel") for r in others]
    if between[0] is Checkpoint.PANIC:
        extra += slab_claims(evidence)
    claimed = [*extra, *common]
    parts = divide(changes, claimed)
    if between == TO_MACHINE_KEXEC and any(part.owner == UNACCOUNTED for part in parts):
        # only now: reading what they executed takes a second
        parts = divide(changes, [*claimed, *_other_cpus_claims(evidence)])
    return parts


def owned(evidence: Evidence) -> list[Owned]:
    """Every run of changed bytes that memory-accounted judges, with its owner: by checkpoint, then by address.

    :raise EvidenceError: memory was not captured at `panic`, or what is needed was not kept
    """
    seen = [c for c in ORDER if c in evidence.facts.captured]
    common = claims(evidence)
    found = []
    for between in pairwise(seen):
        parts = _parts(evidence, between, list(_changes(evidence, *between)), common)
        found += [Owned(between, part.owner, part.address, part.length) for part in parts]
    return found


def _changes(evidence: Evidence, a: Checkpoint, b: Checkpoint) -> Iterator[Change]:
    """Up to the hand-over in the crash region, too: whatever changes in it then is not the new kernel's doing."""
    region = evidence.facts.crash_region if b is Checkpoint.CRASH_KERNEL else None
    pfns: set[int] = set()
    for checkpoint in (a, b):
        if checkpoint is not Checkpoint.PANIC:
            pfns |= set(evidence.pages(checkpoint))
    for pfn in sorted(pfns):
        address = pfn * PAGE_SIZE
        if region is not None and address in region:
            continue
        before, after = (evidence.memory(c).read(address, PAGE_SIZE) for c in (a, b))
        for offset, length in changed_ranges(before, after):
            yield Change(f"{a} -> {b}", address + offset, length)


@functools.lru_cache(maxsize=2)  # of a long hand-over they take a second, and the report asks again after the check
def claims(evidence: Evidence) -> tuple[Claim, ...]:
    """Who owns what in physical memory, whenever it changed, the most particular first.

    `rig.memory.ledger.split` and `account` name the owner of given bytes by them. Not in it is what counts
    in one interval only: the first 640 KiB (from the hand-over on), slab objects (up to machine_kexec), accessed and
    dirty bits.
    """
    freed = [Claim(part.start, part.last + 1, UNACCOUNTED) for part in evidence.given_back]
    return (*_particular_claims(evidence), *freed, *_symbol_claims(evidence), *_image_claims(evidence))


def slab_claims(evidence: Evidence) -> list[Claim]:
    """Slab objects that other CPUs may change until machine_crash_shutdown() stops them; later nobody may."""
    return [Claim(p, p + PAGE_SIZE, "slab object") for p in evidence.facts.slab_pages]


def _other_cpus_claims(evidence: Evidence) -> list[Claim]:
    """What other CPUs went on doing until machine_crash_shutdown() stopped them."""
    with contextlib.suppress(EvidenceError):  # no recording: then nothing of it is known
        spots = dict.fromkeys((write.start, write.end) for write in before_they_stopped(evidence))
        return [Claim(start, end, "another CPU, before it was stopped") for start, end in spots]
    return []


def _entries(evidence: Evidence, interval: Interval, parts: list[Part]) -> list[dict[str, Any]]:
    """The ledger of an interval. writers: functions that wrote an owner's bytes last, and how many.

    They are looked up for the hand-over, whose few instructions are quickly read, and for all that has no owner.
    """
    found = []
    for entry in account(parts):
        told = asdict(entry)
        if interval == TO_HANDOVER or (interval == TO_MACHINE_KEXEC and entry.owner == UNACCOUNTED):
            spots = [(p.address, p.address + p.length) for p in parts if p.owner == entry.owner]
            with contextlib.suppress(EvidenceError):  # no recording: then nobody is named
                told["writers"] = functions(evidence, interval, spots)
        found.append(told)
    return found


def _particular_claims(evidence: Evidence) -> list[Claim]:
    facts = evidence.facts
    claims = [Claim(*VGA_TEXT, "VGA text")]
    claims += [Claim(a, a + n, f"crash notes of CPU {cpu}") for cpu, (a, n) in enumerate(facts.crash_notes)]
    if facts.hypervisor:
        allocated = facts.hypervisor.allocated.items()
        claims += [Claim(a, a + n, f"{name} of the hypervisor") for name, (a, n) in allocated]
    if facts.vmcoreinfo:
        address, size = facts.vmcoreinfo
        claims.append(Claim(address, address + size, "vmcoreinfo"))
    claims += _crash_image_claims(evidence)
    if facts.control_memory:
        address, size = facts.control_memory
        claims.append(Claim(address, address + size, "the sabotage's own memory"))
    for checkpoint in (c for c in ORDER if c in facts.captured and c is not Checkpoint.CRASH_KERNEL):
        for cpu in evidence.cpus(checkpoint):
            claims += _stack(evidence, cpu)
    claims += _per_cpu(evidence)
    claims += [
        Claim(t, t + PAGE_SIZE, "pgd of the crashed task" if i == 0 else "page tables of the crashed task")
        for i, t in enumerate(facts.tables)
    ]
    claims += [Claim(t, t + PAGE_SIZE, "user page tables of the crashed task (PTI)") for t in facts.user_tables]
    claims += [Claim(t, t + PAGE_SIZE, "page tables in use on another CPU") for t in facts.other_tables]
    if facts.kimage is not None:
        claims += [Claim(p, p + PAGE_SIZE, "page of struct kimage (its own page tables)") for p in facts.kimage.pages]
    return claims


def _crash_image_claims(evidence: Evidence) -> Iterator[Claim]:
    """What the dying kernel itself writes into the crash region: the control page, and its copy of vmcoreinfo.

    The control page is known by what was executed in the crash region before the new image. The copy of vmcoreinfo is a
    page that struct kimage points to (1229384f5b85) and that begins with the same words.

    Raises EvidenceError when something changed in the crash region and there is no recording.
    """
    facts = evidence.facts
    region = facts.crash_region
    if region is None or Checkpoint.HANDOVER not in facts.captured:
        return
    if not any(pfn * PAGE_SIZE in region for pfn in evidence.pages(Checkpoint.HANDOVER)):
        return
    hand_over = HandOver(evidence)
    executed: dict[int, None] = {}
    for step in hand_over.trace.steps:
        with contextlib.suppress(NotMapped, EvidenceError):
            where = hand_over.tables.physical(Live.of(step.state), step.pc)
            if where in region:
                executed[where & ~(PAGE_SIZE - 1)] = None
    yield from (Claim(p, p + PAGE_SIZE, "control page") for p in executed)
    if facts.kimage is not None:
        memory = evidence.memory(Checkpoint.HANDOVER)
        for page in facts.kimage.pages:
            with contextlib.suppress(OutsideMemory):
                if page in region and memory.read(page, len(VMCOREINFO)) == VMCOREINFO:
                    yield Claim(page, page + PAGE_SIZE, "vmcoreinfo, the copy in the crash region")


def ad_claims(evidence: Evidence, a: Checkpoint, b: Checkpoint) -> list[Claim]:
    """Entries of known page tables in which only accessed and dirty bits were set: by the CPU (SDM vol. 3, 4.8)."""
    facts = evidence.facts
    if facts.mode is None:
        return []
    size = levels.MODES[facts.mode].entry_size
    depth = len(levels.MODES[facts.mode].levels) - 1  # as if all were PTEs: in others bit 6 means nothing
    before, after = evidence.memory(a), evidence.memory(b)
    kept = set(evidence.pages(b)) | (set() if a is evidence.base else set(evidence.pages(a)))
    found = []
    for table in {*facts.tables, *facts.user_tables, *facts.other_tables, *facts.handover_tables}:
        if table // PAGE_SIZE not in kept:
            continue
        changes = paging.entry_changes(
            facts.mode, before.read(table, PAGE_SIZE), after.read(table, PAGE_SIZE), level=depth
        )
        found += [
            Claim(
                table + e.index * size,
                table + (e.index + 1) * size,
                "accessed/dirty bits of page tables, set by the CPU",
            )
            for e in changes.ad_only
        ]
    return found


def _image_claims(evidence: Evidence) -> list[Claim]:
    """The sections of the kernel image, as /proc/iomem names them."""
    sections = {r.name: r for r in evidence.facts.iomem if r.name in IMAGE}
    whose = _whose(evidence)
    named = [Claim(r.start, r.last + 1, f"{whose} {IMAGE[name]}") for name, r in sections.items()]
    if "Kernel data" in sections and evidence.given_back:
        # arch/x86/kernel/vmlinux.lds.S: .vvar lies between .data and init; /proc/iomem doesn't name it
        init = min(part.start for part in evidence.given_back)
        named.append(Claim(sections["Kernel data"].last + 1, init, "kernel .vvar"))
    return named


def _symbol_claims(evidence: Evidence) -> list[Claim]:
    """The symbols of the kernel's .data and .bss on pages that changed, as far as kallsyms (or a vmlinux) has them."""
    facts = evidence.facts
    code = next((r for r in facts.iomem if r.name == "Kernel code"), None)
    if facts.text is None or code is None:
        return []
    claims = []
    writable = [r for r in facts.iomem if r.name in ("Kernel data", "Kernel bss")]
    for symbol in evidence.symbols:
        start = symbol.start - facts.text + code.start
        section = next((r for r in writable if start in r), None)
        if section is not None:
            end = start + symbol.end - symbol.start
            claims.append(Claim(start, min(end, section.last + 1), f"{_whose(evidence)} {symbol.name}"))
    return claims


def _whose(evidence: Evidence) -> str:
    """Whose symbols and sections they are."""
    return "kernel" if evidence.facts.hypervisor is None else "hypervisor"


def _physical(evidence: Evidence, virtual: int) -> int | None:
    """Where the crashed task's tables, as they were at `panic`, put a virtual address. None: nowhere."""
    facts = evidence.facts
    if facts.mode is None or facts.cr3 is None:
        raise EvidenceError("`panic` was never reached: no page tables")
    try:
        memory = evidence.memory(Checkpoint.PANIC)
        return paging.translate(memory, facts.mode, facts.cr3, virtual).physical
    except (NotMapped, OutsideMemory):
        return None


def _stack(evidence: Evidence, cpu: CpuState) -> Iterator[Claim]:
    """The stack that RSP points into: of a task when it lies in an aligned, mapped THREAD_SIZE, else one page of it."""
    if cpu.cr0 & 1 << 31 == 0 or cpu.segments["cs"].selector & 3:
        return  # paging off, or in user mode: RSP is no kernel stack
    size = THREAD_SIZE[evidence.facts.plan.guest.arch]
    rsp = cpu.general["rsp"]
    bottom = rsp & ~(size - 1)
    for virtual in range(bottom, bottom + size, PAGE_SIZE):
        if (physical := _physical(evidence, virtual)) is not None:
            yield Claim(physical, physical + PAGE_SIZE, f"kernel stack in use on CPU {cpu.cpu}")


def _per_cpu(evidence: Evidence) -> Iterator[Claim]:
    """The per-CPU areas, as far as they are certain.

    Each CPU's unit holds its crash notes, behind the static part. On x86_64 it begins where GS points in the kernel,
    but only up to 6.14: since 6.15 ("x86/percpu/64: Use relative percpu offsets") GS holds how far the unit is from
    where the image has it, which is no address of anything. There, and on i386, where FS is relative to a symbol that
    kallsyms doesn't show, it reaches at least from the first known thing in it (the GDT and the TSS are per-CPU
    variables, and crash notes lie behind the static part) to where it must still reach if the notes were its very last
    bytes.
    """
    facts = evidence.facts
    chunk = facts.per_cpu
    if chunk is None:
        return
    panicked = evidence.crashing_cpu(Checkpoint.PANIC)
    first = _unit_by_gs(evidence, panicked, chunk)
    for cpu in evidence.cpus(Checkpoint.PANIC):
        if cpu.cpu >= len(facts.crash_notes):
            continue
        notes, size = facts.crash_notes[cpu.cpu]
        owner = f"per-CPU area of CPU {cpu.cpu}"
        if first is not None:
            # GS of a CPU in user mode is the user's: go by the panicking CPU's, which is in the kernel
            start = first + (cpu.cpu - panicked.cpu) * chunk.unit
            yield Claim(start, start + chunk.used, owner)
            continue
        known = [_physical(evidence, v) for v in (cpu.gdt_base, cpu.segments["tr"].base)]
        inside = [k for k in known if k is not None and 0 <= notes - k < chunk.used]
        low = min([*inside, notes - chunk.static]) & ~(PAGE_SIZE - 1)
        yield Claim(low, max(notes + size, notes - chunk.used + chunk.unit), owner)


def _unit_by_gs(evidence: Evidence, panicked: CpuState, chunk: PerCpu) -> int | None:
    """Where the panicking CPU's unit begins, if GS points there: its crash notes then lie in it."""
    facts = evidence.facts
    if facts.plan.guest.arch is not Arch.AMD64 or panicked.cpu >= len(facts.crash_notes):
        return None
    base = _physical(evidence, panicked.segments["gs"].base)
    notes, _ = facts.crash_notes[panicked.cpu]
    return base if base is not None and 0 <= notes - base < chunk.used else None
