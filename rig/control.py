"""The control page: which memory the kernel hands over from, and what it does with it. Pure over evidence.

The control page is found by what happens, not by what a version is known to do: it is where instructions lie that are
executed after the first change of the tables (a CR3 load, or paging turned off).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from rig import operands
from rig.disassembly import width
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import HandOver, Live, Touch, touches
from rig.kernel.symbols import MACHINE_KEXEC
from rig.memory.paging import NotMapped
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CpuState
from rig.trace import MAX_CODE, Step

WORD = 8  # bytes: more than that no single MOV of a general register writes


class Way:
    """What was executed from machine_kexec on, together with memory as of `handover`.

    entry: virtual address of machine_kexec; a trace that begins earlier is read from the last time it was there.

    :raise EvidenceError: the new image was not reached, or the trace is broken
    """

    def __init__(self, evidence: Evidence, entry: int) -> None:
        hand_over = HandOver(evidence)
        steps = hand_over.trace.steps
        self.steps = steps[max((n for n, step in enumerate(steps) if step.pc == entry), default=0) :]
        self.memory: Memory = evidence.memory(Checkpoint.HANDOVER)
        self.tables = hand_over.tables

    @cached_property
    def first_switch(self) -> int:
        """The index of the first step after the tables were changed. EvidenceError when they never were."""
        start = Live.of(self.steps[0].state)
        for index, step in enumerate(self.steps):
            if Live.of(step.state) != start:
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
        try:
            return self.tables.physical(Live.of(state), virtual)
        except NotMapped as problem:
            raise EvidenceError(f"with CR3 {state.cr3:#x}: {problem}") from problem

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
    def copying_maps(self) -> tuple[Live, ...]:
        """The tables that the copy goes through, once each."""
        return tuple(dict.fromkeys(Live.of(step.state) for step in self.copying))


def way_of(evidence: Evidence) -> Way:
    """The way to the new image. EvidenceError when the new image was not reached, or the trace is broken."""
    entry = evidence.facts.symbols.get(MACHINE_KEXEC)
    if entry is None:
        raise EvidenceError(f"where {MACHINE_KEXEC} is was never learned")
    return Way(evidence, entry)


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
    instructions = reachable(blob, executed, width(way.switched[-1].state))
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


def reachable(blob: bytes, executed: Mapping[int, bytes], bits: int) -> dict[int, int]:
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
        instruction = operands.decode(executed.get(at) or blob[at : at + MAX_CODE], at, bits)
        found[at] = instruction.size
        if not instruction.ends:
            todo.append(at + instruction.size)
        if instruction.branch is not None:
            todo.append(at + instruction.branch)
    return found


def _uses(way: Way, page: int, instructions: Mapping[int, int]) -> tuple[tuple[int, int] | None, list[int]]:
    """The copying of code to the page, and the offsets of what else is accessed there, the stack aside.

    Copied it was by a string instruction or a loop that wrote to where instructions are executed later. What was
    written until then and meets that copy belongs to it: memcpy() moves head and tail by themselves.
    """
    arrived = min(step.number for _, step in way.on(page))
    spots: defaultdict[int, list[Touch]] = defaultdict(list)
    for touch in touches(way.steps, way.tables):
        if touch.start & ~(PAGE_SIZE - 1) == page and not touch.stack:
            spots[touch.step.pc].append(replace(touch, start=touch.start - page, end=touch.end - page))
    copies: list[Touch] = []
    others: list[Touch] = []
    for spot in spots.values():
        early = [t for t in spot if t.write and t.step.number < arrived]
        on_code = any(t.start <= at < t.end for t in early for at in instructions)
        (copies if on_code and sum(t.end - t.start for t in early) > WORD else others).extend(spot)
    if not copies:
        return None, [t.start for t in others]
    start, end = min(t.start for t in copies), max(t.end for t in copies)
    done = max(t.step.number for t in copies)
    data = []
    for touch in others:
        if touch.step.number < done and start <= touch.end and touch.start <= end:
            start, end = min(start, touch.start), max(end, touch.end)
        else:
            data.append(touch.start)
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
