"""kexec jump: into an image and back, after which everything must be as it was."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rig.checks.handover import judge_fetches, judge_interrupts, judge_switches
from rig.checks.ledger import THREAD_SIZE, ad_claims
from rig.checks.writers import TO_HANDOVER, TO_RETURN, Writers, recorded
from rig.control import way_of
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import HandOver, touches
from rig.kernel import kimage
from rig.memory import paging
from rig.memory.diff import changed_ranges
from rig.memory.ledger import UNACCOUNTED, Change, Claim, split
from rig.memory.paging import NotMapped
from rig.model import PAGE_SIZE, Arch, Checkpoint, CheckResult, CpuState, Segment, Verdict
from rig.operands import moves_string
from rig.trace import Step

SHOWN = 8  # places in figures
# What a function must leave as it found it (System V psABI): of i386's, rdi and rsi too.
CALLEE_SAVED = {
    Arch.AMD64: ("rbx", "rbp", "r12", "r13", "r14", "r15"),
    Arch.I386: ("rbx", "rbp", "rsi", "rdi"),
}
IF = 1 << 9


# ---------------------------------------------------------------- jump-returns


def jump_returns(evidence: Evidence) -> CheckResult:
    """By user space's own word: reboot(2) returned 0, and the boot id is the one from before.

    Next time the kernel enters the image where that has asked for (kimage->start, as relocate_kernel returns it): must
    be in one of the image's segments, and reboot(2) must return 0 again. After sabotage there is no second time.

    A guest that dies on the way has failed. One that hangs can't be judged: too slow and stuck look the same.
    """
    facts, name = evidence.facts, "jump-returns"
    if facts.died and facts.broke_off is not None:
        summary = f"the guest died in phase {facts.broke_off.phase}: {facts.broke_off.message}"
        return CheckResult(name, Verdict.FAIL, summary)
    ended = facts.jump_ended
    if ended is None:
        raise EvidenceError("user space was not heard of after the kexec jump")
    entry = _next_entry(evidence)
    figures = {"status": ended.status, "again": ended.again, "boot_id": ended.boot_id[1], "next_entry": entry}
    assert facts.kimage is not None
    wrong = []
    if ended.status:
        wrong.append(f"reboot(2) failed: errno {ended.status}")
    if ended.boot_id[0] != ended.boot_id[1]:
        wrong.append("another kernel answers: its boot id is not the one from before")
    if not any(mem <= entry < mem + size for mem, size in facts.kimage.segments):
        wrong.append(f"the image is to be entered at {entry:#x} next time, which is outside of it")
    if ended.again:
        wrong.append(f"entered again, reboot(2) failed: errno {ended.again}")
    if wrong:
        return CheckResult(name, Verdict.FAIL, "; ".join(wrong), figures)
    if facts.plan.scenario.sabotage and ended.again is None:
        return CheckResult(name, Verdict.PASS, "the image returned", figures)
    if ended.again is None:
        raise EvidenceError("the image returned once; whether it does so again was not seen")
    return CheckResult(name, Verdict.PASS, f"the image returned, and again when entered at {entry:#x}", figures)


def _next_entry(evidence: Evidence) -> int:
    """kimage->start after the jump."""
    facts = evidence.facts
    assert facts.kimage is not None
    arch = facts.plan.guest.arch
    at = _physical(evidence, kimage.start_at(facts.kimage, arch))
    return int.from_bytes(evidence.memory(Checkpoint.RETURNED).read(at, arch.word), "little")


def _physical(evidence: Evidence, virtual: int) -> int:
    """By the tables that were live at machine_kexec. EvidenceError when they don't map it."""
    facts = evidence.facts
    assert facts.mode is not None
    assert facts.cr3 is not None
    try:
        return paging.translate(evidence.memory(evidence.base), facts.mode, facts.cr3, virtual).physical
    except NotMapped as problem:
        raise EvidenceError(f"not mapped at {evidence.base}: {problem}") from problem


# ---------------------------------------------------------------- way-back-is-safe


def way_back_is_safe(evidence: Evidence) -> CheckResult:
    """What switch-is-safe, interrupts-off and executes-nx-safe judge, from the image's entry to the return of
    machine_kexec.
    """
    way = HandOver(evidence, back=True)
    results = [judge(way) for judge in (judge_switches, judge_interrupts, judge_fetches)]
    verdict = Verdict.worst(result.verdict for result in results)
    said = [result.summary for result in results if result.verdict is verdict]
    return CheckResult(
        "way-back-is-safe", verdict, "; ".join(said), {result.name: dict(result.figures) for result in results}
    )


# ---------------------------------------------------------------- context-preserved


def context_preserved(evidence: Evidence) -> CheckResult:
    """Memory and registers at `machine-kexec` against `returned`, all RAM, byte by byte.

    What differs must be accounted for by the recording: a function of the kernel's wrote it last, outside the code on
    the control page; or it lies in the control page, in the swap page that pages are exchanged through, on the stack
    below machine_kexec's frame, or is an accessed or dirty bit of a page table, which the CPU sets. Where the old
    contents of the image's pages were kept, the image must be as it left itself. All other bytes that relocate_kernel
    wrote it must have put back.

    Registers: those that a function must preserve, the stack pointer, CR0, CR3, CR4, EFER, GDTR, IDTR, all segment
    registers, and IF.
    """
    name = "context-preserved"
    if Checkpoint.RETURNED not in evidence.facts.captured:
        raise EvidenceError("machine_kexec was not seen to return")
    rows, changed = _account(evidence)
    wrong = list(_registers(evidence))
    lost = [row for row in rows if row.owner == UNACCOUNTED]
    unaccounted = sum(row.bytes for row in lost)
    figures: dict[str, Any] = {
        "bytes_changed": sum(size for _, size in changed),
        "pages_changed": len({address // PAGE_SIZE for address, _ in changed}),
        "pages_swapped": len(evidence.copied.destinations),
        "owners": [row.told() for row in rows],
        "unaccounted": unaccounted,
        "registers": wrong,
    }
    problems = [f"{row['register']} was {row['before']}, is {row['after']}" for row in wrong]
    if lost:
        where = ", ".join(f"{a:#x}+{n}" for row in lost for a, n in row.places[:SHOWN])
        problems.append(
            f"bytes that are not as they were, and that the kernel did not write: {unaccounted}, at {where}"
        )
    if problems:
        return CheckResult(name, Verdict.FAIL, "; ".join(problems), figures)
    summary = (
        f"registers as before, {figures['pages_swapped']} pages swapped in and out; {figures['bytes_changed']} bytes in"
        f" {figures['pages_changed']} pages of RAM differ, all accounted for"
    )
    return CheckResult(name, Verdict.PASS, summary, figures)


@dataclass(frozen=True)
class _Row:
    owner: str
    places: tuple[tuple[int, int], ...]  # physical address, bytes

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.places)

    def told(self) -> dict[str, Any]:
        return {"owner": self.owner, "bytes": self.bytes, "addresses": [f"{a:#x}+{n}" for a, n in self.places[:SHOWN]]}


def _account(evidence: Evidence) -> tuple[list[_Row], list[tuple[int, int]]]:
    """Who owns what changed, the most bytes first; and what changed: (physical address, bytes)."""
    base = evidence.base
    before, after = evidence.memory(base), evidence.memory(Checkpoint.RETURNED)
    kept = {int(page) for page in evidence.copied.sources}
    changed = [
        (pfn * PAGE_SIZE + offset, size)
        for pfn in sorted(evidence.pages(Checkpoint.RETURNED))
        for offset, size in changed_ranges(*(m.read(pfn * PAGE_SIZE, PAGE_SIZE) for m in (before, after)))
    ]
    claims, writers = _claims(evidence), _writers(evidence)
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for address, size in changed:
        if address & ~(PAGE_SIZE - 1) in kept:
            continue
        for owner, start, length in split(Change("", address, size), claims):
            spots = [(owner, start, length)]
            if owner == UNACCOUNTED:
                spots = list(_written(evidence, writers, start, start + length))
            for whose, at, count in spots:
                found[whose].append((at, count))
    for owner, at, count in _image(evidence):
        found[owner].append((at, count))
    return sorted((_Row(o, tuple(p)) for o, p in found.items()), key=lambda row: (-row.bytes, row.owner)), changed


def _writers(evidence: Evidence) -> list[Writers]:
    """Of the way back, then of the way out: who wrote last is asked first."""
    return [found for way in (TO_RETURN, TO_HANDOVER) if (found := recorded(evidence, way)) is not None]


def _claims(evidence: Evidence) -> list[Claim]:
    way = way_of(evidence)
    claims = [Claim(p, p + PAGE_SIZE, "control page") for p in way.control_pages]
    known = {*way.control_pages, *map(int, evidence.copied.destinations), *map(int, evidence.copied.sources)}
    moved = touches((step for step in way.switched if moves_string(step)), way.tables)
    pages = Counter(touch.start & ~(PAGE_SIZE - 1) for touch in moved if touch.write)
    # there is one, which all exchanges go through; a second page that is no page of the image's is none of theirs
    through = Counter({page: times for page, times in pages.items() if page not in known}).most_common(1)
    claims += [Claim(p, p + PAGE_SIZE, "swap page") for p, _ in through]
    claims += list(_dead_stack(evidence))
    return [*claims, *ad_claims(evidence, evidence.base, Checkpoint.RETURNED)]


def _dead_stack(evidence: Evidence) -> Iterator[Claim]:
    """What lies below the stack pointer at machine_kexec's first instruction means nothing once it has returned."""
    top = evidence.crashing_cpu(evidence.base).general["rsp"]
    bottom = top & ~(THREAD_SIZE[evidence.facts.plan.guest.arch] - 1)
    for virtual in range(bottom, top, PAGE_SIZE):
        try:
            start = _physical(evidence, virtual)
        except EvidenceError:
            continue  # a guard page, or another stack than a task's
        yield Claim(start, start + min(PAGE_SIZE, top - virtual), "stack below machine_kexec's frame")


def _written(evidence: Evidence, writers: Iterable[Writers], start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """(owner, address, bytes): the function that wrote a byte last, unless it is on the control page or the image's."""
    todo = [(start, end)]
    for way in writers:
        rest: list[tuple[int, int]] = []
        for low, high in todo:
            spots = sorted((first, behind, step) for step, first, behind in way.last(low, high))
            for first, behind, step in spots:
                yield _author(evidence, step), first, behind - first
            edges = [low, *(e for first, behind, _ in spots for e in (first, behind)), high]
            rest += [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        todo = rest
    for low, high in todo:
        yield UNACCOUNTED, low, high - low


def _author(evidence: Evidence, step: Step) -> str:
    """The kernel's function that an instruction belongs to; UNACCOUNTED on the control page and in the image."""
    name = evidence.symbol_at(step.pc)
    return UNACCOUNTED if name == f"{step.pc:#x}" else f"written by {name.rsplit('+', 1)[0]}"


def _image(evidence: Evidence) -> Iterator[tuple[str, int, int]]:
    """What the image did to itself, and what else became of it on the way to where it is kept: in its source pages."""
    facts = evidence.facts
    assert facts.kimage is not None
    way = HandOver(evidence, back=True)
    segments = facts.kimage.segments
    # it runs at its physical address; the kernel's code that lies there before and after runs elsewhere
    own = [step for step in way.trace.steps if any(mem <= step.pc < mem + size for mem, size in segments)]
    writes = [Claim(t.start, t.end, "written by the image, in itself") for t in touches(own, way.tables) if t.write]
    at_entry, after = evidence.memory(Checkpoint.HANDOVER), evidence.memory(Checkpoint.RETURNED)
    for destination, source in zip(evidence.copied.destinations, evidence.copied.sources, strict=True):
        there, here = int(destination), int(source)
        for offset, size in changed_ranges(at_entry.read(there, PAGE_SIZE), after.read(here, PAGE_SIZE)):
            for owner, start, length in split(Change("", there + offset, size), writes):
                yield owner, start - there + here, length


def _registers(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Registers that are not as they were, in words."""
    before, after = (evidence.crashing_cpu(c) for c in (evidence.base, Checkpoint.RETURNED))
    arch = evidence.facts.plan.guest.arch
    old, new = _preserved(before, arch), _preserved(after, arch)
    old["rsp"] = hex(before.general["rsp"] + arch.word)  # the return address is popped
    for name, value in old.items():
        if new[name] != value:
            yield {"register": name, "before": value, "after": new[name]}


def _preserved(cpu: CpuState, arch: Arch) -> dict[str, str]:
    return {
        **{name: hex(cpu.general[name]) for name in (*CALLEE_SAVED[arch], "rsp")},
        **{name: hex(cpu.register(name)) for name in ("cr0", "cr3", "cr4", "efer")},
        "gdtr": f"{cpu.gdt_base:#x} limit {cpu.gdt_limit:#x}",
        "idtr": f"{cpu.idt_base:#x} limit {cpu.idt_limit:#x}",
        **{name: _segment(segment) for name, segment in cpu.segments.items()},
        "IF": str(bool(cpu.general["rflags"] & IF)),
    }


def _segment(segment: Segment) -> str:
    return f"{segment.selector:#x} base {segment.base:#x} limit {segment.limit:#x} flags {segment.flags:#x}"
