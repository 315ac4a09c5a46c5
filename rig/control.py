"""The control page: which memory the kernel hands over from, and what it does with it. Pure over evidence.

The control page is found by what happens, not by what a version is known to do: it is where instructions lie that are
executed after the first change of the tables (a CR3 load, or paging turned off).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from capstone import x86_const as x86

from rig import operands
from rig.disassembly import width
from rig.errors import EvidenceError
from rig.evidence import Evidence
from rig.kernel.symbols import MACHINE_KEXEC
from rig.memory import paging
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CpuState, PagingMode
from rig.operands import Access
from rig.trace import MAX_CODE, Step, Trace

# Where control does not go on behind an instruction.
_ENDS = frozenset({x86.X86_INS_JMP, x86.X86_INS_RET, x86.X86_INS_HLT, x86.X86_INS_INT3, x86.X86_INS_UD2})
WORD = 8  # bytes: more than that no single MOV of a general register writes


@dataclass(frozen=True)
class Map:
    """The tables that addresses go through. mode: None with paging off; then cr3 has no meaning and is 0."""

    mode: PagingMode | None
    cr3: int

    @classmethod
    def of(cls, state: CpuState) -> Map:
        return cls(state.paging, state.cr3 if state.paging is not None else 0)


@dataclass(frozen=True)
class Touch:
    """A part of an access that lies in one page. physical: address of its first byte."""

    step: Step
    physical: int
    size: int
    write: bool
    stack: bool


class Way:
    """What was executed from machine_kexec on, together with memory as of `handover`, which its page tables lie in.

    entry: virtual address of machine_kexec; a trace that begins earlier is read from the last time it was there.
    """

    def __init__(self, trace: Trace, memory: Memory, entry: int) -> None:
        self.steps = trace.steps[max((n for n, step in enumerate(trace.steps) if step.pc == entry), default=0) :]
        self.memory = memory
        self._pages: dict[tuple[Map, int], int] = {}

    @cached_property
    def first_switch(self) -> int:
        """The index of the first step after the tables were changed. EvidenceError when they never were."""
        start = Map.of(self.steps[0].state)
        for index, step in enumerate(self.steps):
            if Map.of(step.state) != start:
                return index
        raise EvidenceError(
            "the hand-over trace ends before the tables were ever changed",
            hint="the kernel died, or this is not the way to the new image: see the last lines of the trace",
        )

    @cached_property
    def switched(self) -> tuple[Step, ...]:
        """The steps after the first change of the tables."""
        return self.steps[self.first_switch :]

    @cached_property
    def control_pages(self) -> tuple[int, ...]:
        """Physical addresses of the pages that hold the code executed after the first change of the tables, ascending.

        :raise EvidenceError: tables that are not in the evidence, or don't map what was executed
        """
        return tuple(sorted({page for step in self.switched for page in self._code(step)}))

    def _code(self, step: Step) -> Iterator[int]:
        for virtual in {step.pc, step.pc + len(step.code) - 1}:
            yield self.physical(step.state, virtual) & ~(PAGE_SIZE - 1)

    def physical(self, state: CpuState, virtual: int) -> int:
        """Through the tables that are live in `state`. EvidenceError when they don't map it."""
        key = Map.of(state), virtual & ~(PAGE_SIZE - 1)
        if key not in self._pages:
            self._pages[key] = _translate(self.memory, *key)
        return self._pages[key] + virtual % PAGE_SIZE

    def touches(self, steps: Iterable[Step]) -> Iterator[Touch]:
        """Data accesses, cut at page boundaries; without those that the evidence has no tables for."""
        for step in steps:
            for access in operands.accesses(step):
                for virtual, size in _pieces(access):
                    with contextlib.suppress(EvidenceError):
                        physical = self.physical(step.state, virtual)
                        yield Touch(step, physical, size, access.write, access.stack)

    def on(self, page: int) -> Iterator[tuple[int, Step]]:
        """(offset, step) of every instruction that begins on a physical page, before the switch as well."""
        for step in self.steps:
            with contextlib.suppress(EvidenceError):
                at = self.physical(step.state, step.pc)
                if at & ~(PAGE_SIZE - 1) == page:
                    yield at - page, step

    @cached_property
    def copying(self) -> tuple[Step, ...]:
        """The steps that copy the image to its place: string moves after the switch.

        kdump's image is where it belongs from the start, so nothing is copied: then the last step before the entry
        stands for them, for its tables are the ones that the new image is entered with.
        """
        found = tuple(s for s in self.switched if operands.moves_string(s))
        return found or self.switched[-1:]

    @cached_property
    def copying_maps(self) -> tuple[Map, ...]:
        """The tables that the copy goes through, once each."""
        return tuple(dict.fromkeys(Map.of(step.state) for step in self.copying))


def way_of(evidence: Evidence) -> Way:
    """The way to the new image. EvidenceError when the new image was not reached, or the trace is broken."""
    entry = evidence.facts.symbols.get(MACHINE_KEXEC)
    if entry is None:
        raise EvidenceError(f"where {MACHINE_KEXEC} is was never learned")
    return Way(evidence.trace, evidence.memory(Checkpoint.HANDOVER), entry)


def _translate(memory: Memory, tables: Map, virtual: int) -> int:
    if tables.mode is None:
        return virtual
    try:
        return paging.translate(memory, tables.mode, tables.cr3, virtual).physical
    except paging.NotMapped as problem:
        raise EvidenceError(f"with CR3 {tables.cr3:#x}: {problem}") from problem


def _pieces(access: Access) -> Iterator[tuple[int, int]]:
    start, end = access.virtual, access.virtual + access.size
    while start < end:
        stop = min(end, (start | PAGE_SIZE - 1) + 1)
        yield start, stop - start
        start = stop


# ---------------------------------------------------------------- what lies where on the control page


@dataclass(frozen=True)
class Layout:
    """The control page as it was used. All but `page` are offsets into it, in bytes.

    code: [start, end) of all instructions that were executed on it or that those can branch to. copied: what was copied
    there in the trace; None when nothing was. data: the lowest byte that is accessed as data and is no part of the
    image; None when there is none. stack_low: the lowest stack pointer; None without a stack.
    overwritten: where an instruction that was executed is no longer in memory as it was executed.
    """

    page: int
    code: tuple[int, int]
    copied: tuple[int, int] | None
    data: int | None
    stack_low: int | None
    overwritten: tuple[int, ...]


def lay_out(way: Way, image_size: int = 0) -> Layout:
    """Find out. image_size: bytes from the page's start that are the image by the kernel's symbols, its data included.

    :raise EvidenceError: control code on several pages, or not in the evidence
    """
    if len(way.control_pages) != 1:
        told = ", ".join(f"{p:#x}" for p in way.control_pages)
        raise EvidenceError(f"control code was executed on {len(way.control_pages)} pages ({told}): not one to judge")
    (page,) = way.control_pages
    try:
        blob = way.memory.read(page, PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"the control page {page:#x} was not kept") from problem
    executed = {at: step.code for at, step in way.on(page)}
    instructions = reachable(blob, executed, width(way.switched[-1].state) == 64)
    code = min(instructions), max(at + size for at, size in instructions.items())
    copied, data = _uses(way, page, instructions)
    inside = {at for start, size in instructions.items() for at in range(start, start + size)}
    # Only an image whose size the symbols tell has data of its own between its instructions.
    behind = [at for at in data if not image_size or at in inside or at >= image_size]
    return Layout(
        page=page,
        code=code,
        copied=copied,
        data=min(behind, default=None),
        stack_low=_lowest_stack(way, page),
        overwritten=tuple(sorted(at for at, b in executed.items() if blob[at : at + len(b)] != b[: PAGE_SIZE - at])),
    )


def reachable(blob: bytes, executed: Mapping[int, bytes], wide: bool) -> dict[int, int]:
    """Offset -> bytes of each instruction that was executed or can be reached from those by direct branches.

    Instructions that were executed are taken as they were then, the others from the page. What only an indirect branch
    leads to is not found (the way back of a kexec jump), nor is anything beyond the page.
    """
    found: dict[int, int] = {}
    todo = list(executed)
    while todo:
        at = todo.pop()
        if at in found or not 0 <= at < len(blob):
            continue
        instruction = operands.decode(executed.get(at) or blob[at : at + MAX_CODE], at, wide)
        found[at] = instruction.size
        if instruction.id not in _ENDS:
            todo.append(at + instruction.size)
        if x86.X86_GRP_BRANCH_RELATIVE in instruction.groups:
            todo.append(instruction.operands[0].imm)
    return found


def _uses(way: Way, page: int, instructions: Mapping[int, int]) -> tuple[tuple[int, int] | None, list[int]]:
    """The copying of code to the page, and the offsets of what else is accessed there, the stack aside.

    Copied it was by a string instruction or a loop that wrote to where instructions are executed later. What was
    written until then and meets that copy belongs to it: memcpy() moves head and tail by themselves.
    """
    arrived = min(step.number for _, step in way.on(page))
    spots: defaultdict[int, list[Touch]] = defaultdict(list)
    for touch in way.touches(way.steps):
        if touch.physical & ~(PAGE_SIZE - 1) == page and not touch.stack:
            spots[touch.step.pc].append(replace(touch, physical=touch.physical - page))
    copies: list[Touch] = []
    others: list[Touch] = []
    for touches in spots.values():
        early = [t for t in touches if t.write and t.step.number < arrived]
        on_code = any(t.physical <= at < t.physical + t.size for t in early for at in instructions)
        (copies if on_code and sum(t.size for t in early) > WORD else others).extend(touches)
    if not copies:
        return None, [t.physical for t in others]
    start, end = min(t.physical for t in copies), max(t.physical + t.size for t in copies)
    done = max(t.step.number for t in copies)
    data = []
    for touch in others:
        if touch.step.number < done and start <= touch.physical + touch.size and touch.physical <= end:
            start, end = min(start, touch.physical), max(end, touch.physical + touch.size)
        else:
            data.append(touch.physical)
    return (start, end), data


def _lowest_stack(way: Way, page: int) -> int | None:
    """A stack pointer at the page's very end is an empty stack on it."""
    found = []
    for step in way.switched:
        with contextlib.suppress(EvidenceError):
            last = way.physical(step.state, step.state.general["rsp"] - 1)
            if last & ~(PAGE_SIZE - 1) == page:
                found.append(last + 1 - page)
    return min(found, default=None)
