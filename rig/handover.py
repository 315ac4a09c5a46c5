"""The hand-over with the memory that it ran in: what the checks on it, and its listing, start from. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rig import operands
from rig.disassembly import disassemble, width
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.memory import levels, paging
from rig.memory.paging import NotMapped, Translation
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CpuState, PagingMode
from rig.trace import Event, Step, Trace, after

PG, PSE, SMEP, NXE = 1 << 31, 1 << 4, 1 << 20, 1 << 11  # CR0.PG, CR4.PSE, CR4.SMEP, EFER.NXE

# SDM vol. 3, table 6-1.
EXCEPTIONS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip
PAGE_FAULT = 14


@dataclass(frozen=True)
class Live:
    """What a CPU translates addresses by. None for a mode: paging is off."""

    mode: PagingMode | None
    root: int  # physical address of the table at CR3; 0 with paging off
    pse: bool
    nx: bool

    @classmethod
    def of(cls, state: CpuState) -> Live:
        """CR4.PSE has a meaning in 2-level paging only, EFER.NXE in all others (SDM vol. 3, 4.1.3, 4.1.4)."""
        mode = state.paging
        if mode is None:
            return cls(None, 0, pse=False, nx=False)
        short = mode is PagingMode.TWO_LEVEL
        root = levels.root(mode, state.cr3)
        return cls(mode, root, pse=not short or bool(state.cr4 & PSE), nx=not short and bool(state.efer & NXE))


class KeptMemory:
    """Evidence of memory, telling what was not kept (EvidenceError) from what there was not (OutsideMemory)."""

    def __init__(self, evidence: Evidence, checkpoint: str) -> None:
        self._memory = evidence.memory(checkpoint)
        self._ram = evidence.facts.ram

    def read(self, address: int, size: int) -> bytes:
        try:
            return self._memory.read(address, size)
        except OutsideMemory as problem:
            if any(start <= problem.address < start + length for start, length, _ in self._ram):
                raise EvidenceError(f"the page at {problem.address:#x} was not kept") from problem
            raise


class Tables:
    """Translations by the tables that were live at a step, each looked up once.

    memory: what tables are looked up in. old: a state with those tables that were live first. They may have been
    changed after they were used: they are looked up in all of `versions`, the best known first.
    """

    def __init__(self, memory: Memory, old: CpuState, versions: Sequence[Memory]) -> None:
        self.memory = memory
        self._versions = versions
        self._old = Live.of(old)
        self._found: dict[tuple[Live, int], tuple[Translation | NotMapped, ...]] = {}

    @property
    def pages(self) -> int:
        """How many pages were translated so far, once for each set of tables."""
        return len(self._found)

    def lookups(self, live: Live, virtual: int) -> tuple[Translation | NotMapped, ...]:
        """What becomes of the page of a virtual address, the best known version of the tables first. Paging is on."""
        key = live, virtual & ~(PAGE_SIZE - 1)
        if key not in self._found:
            old = (live.mode, live.root) == (self._old.mode, self._old.root)
            memories = self._versions if old else (self.memory,)
            self._found[key] = tuple(_lookup(memory, *key) for memory in memories)
        return self._found[key]

    def physical(self, live: Live, virtual: int) -> int:
        """:raise NotMapped: in all versions of the tables"""
        if live.mode is None:
            return virtual
        lookups = self.lookups(live, virtual)
        for found in lookups:
            if isinstance(found, Translation):
                return found.physical + virtual % PAGE_SIZE
        assert isinstance(lookups[0], NotMapped)
        raise NotMapped(virtual, lookups[0].reason)

    def fetch_problem(self, state: CpuState, virtual: int) -> str:
        """Why a CPU in that state can't fetch an instruction from the page of an address; empty when it can.

        The page must be present, not NX at any level if EFER.NXE is set, and with CR4.SMEP no page of user space's
        unless the CPU runs user code (SDM vol. 3, 4.6). With paging off there is nothing to forbid it.
        """
        live = Live.of(state)
        if live.mode is None:
            return ""
        smep = bool(state.cr4 & SMEP) and not state.segments["cs"].selector & 3
        problems = [_forbidden(found, live, smep) for found in self.lookups(live, virtual)]
        return problems[0] if all(problems) else ""


@dataclass(frozen=True)
class Touch:
    """A part of a data access that lies in one page: physical bytes [start, end)."""

    step: Step
    start: int
    end: int
    write: bool
    stack: bool


def touches(steps: Iterable[Step], tables: Tables) -> Iterator[Touch]:
    """Data accesses in order, page by page; without those that the evidence has no tables for.

    :raise EvidenceError: bytes that are no instruction
    """
    for step in steps:
        live = Live.of(step.state)
        for access in operands.accesses(step):
            for virtual, size in chunks(access.virtual, access.size):
                with contextlib.suppress(EvidenceError, NotMapped):
                    physical = tables.physical(live, virtual)
                    yield Touch(step, physical, physical + size, access.write, access.stack)


def chunks(address: int, size: int) -> Iterator[tuple[int, int]]:
    """(address, size) of the parts of a range, one a page."""
    end = address + size
    while address < end:
        cut = min(end - address, PAGE_SIZE - address % PAGE_SIZE)
        yield address, cut
        address += cut


def _lookup(memory: Memory, live: Live, page: int) -> Translation | NotMapped:
    assert live.mode is not None
    try:
        return paging.translate(memory, live.mode, live.root, page, pse=live.pse, nx=live.nx)
    except NotMapped as problem:
        return problem


def _forbidden(found: Translation | NotMapped, live: Live, smep: bool) -> str:
    if isinstance(found, NotMapped):
        return found.reason
    if live.nx and not found.executable:
        return "NX in its " + ", ".join(f"{name} {value:#x}" for name, _, value in found.path if value & levels.NX)
    return "a page of user space's, with CR4.SMEP set" if smep and found.user else ""


class HandOver:
    """The hand-over of a run: what was executed, with names for it. back: the way back from a kexec jump instead.

    reached: what it leads to, the new image or the return of machine_kexec, was.

    :raise EvidenceError: there is no trace
    """

    def __init__(self, evidence: Evidence, *, back: bool = False) -> None:
        self.evidence = evidence
        self.back = back
        self.trace: Trace = evidence.way_back if back else evidence.trace
        self.final = evidence.final_state(back=back)
        self.reached = (Checkpoint.RETURNED if back else Checkpoint.HANDOVER) in evidence.facts.captured

    @cached_property
    def tables(self) -> Tables:
        """As they were where the hand-over ended, those live at its start also as they were then.

        :raise EvidenceError: the hand-over's end was not seen, or what is needed was not kept
        """
        end = KeptMemory(self.evidence, self.evidence.way_back_end if self.back else self.evidence.hand_over_end)
        before = KeptMemory(self.evidence, Checkpoint.HANDOVER if self.back else Checkpoint.MACHINE_KEXEC)
        return Tables(end, self.trace.steps[0].state, (end, before))

    def after(self, step: Step) -> CpuState | None:
        """See rig.trace.after."""
        return after(self.trace, step.number, self.final)

    @cached_property
    def fatal(self) -> Event | None:
        """The exception that the guest died of: the first of those after its last instruction."""
        events = (event for event in self.trace.events if event.before == len(self.trace.steps))
        return None if self.reached else next(events, None)

    def name(self, address: int) -> str:
        """Where an instruction that was executed is: symbol+offset, control page+offset, else the bare address."""
        return self._names.get(address) or self.evidence.symbol_at(address)

    @cached_property
    def _names(self) -> Mapping[int, str]:
        states = {step.pc: step.state for step in self.trace.steps}
        states |= {e.state.general["rip"]: e.state for e in self.trace.events if e.state.general["rip"] not in states}
        names = {pc: self.evidence.symbol_at(pc) for pc in states}
        control = dict(self._on_control_pages({pc: states[pc] for pc, name in names.items() if name == f"{pc:#x}"}))
        image = self.evidence.facts.kimage
        for mem, size in image.segments if image and self.back else ():
            names |= {pc: f"image+{p - mem:#x}" for pc, p in control.items() if mem <= p < mem + size}
            control = {pc: p for pc, p in control.items() if not mem <= p < mem + size}
        several = len({physical // PAGE_SIZE for physical in control.values()}) > 1
        for pc, physical in control.items():
            page = f" {physical & ~(PAGE_SIZE - 1):#x}" if several else ""
            names[pc] = f"control page{page}+{physical % PAGE_SIZE:#x}"
        return names

    def _on_control_pages(self, states: Mapping[int, CpuState]) -> Iterator[tuple[int, int]]:
        """(address, physical address) of code that lies in pages of the image, or in what is reserved for it."""
        facts = self.evidence.facts
        own = {page // PAGE_SIZE for page in facts.kimage.pages} if facts.kimage else set()
        for pc, state in states.items():
            try:
                physical = self.tables.physical(Live.of(state), pc)
            except (EvidenceError, NotMapped):
                continue  # it keeps its bare address
            # for a plain kexec nothing is reserved: what is no kernel's code can only be a control page
            if physical // PAGE_SIZE in own or facts.plain or (facts.crash_region and physical in facts.crash_region):
                yield pc, physical

    def where(self, step: Step) -> str:
        """An instruction by its name, address and text."""
        return f"{self.name(step.pc)} ({step.pc:#x}: {self.text(step)})"

    def text(self, step: Step) -> str:
        """An instruction's disassembly, and how often it was repeated."""
        text = disassemble(step.code, step.pc, width(step.state))
        if any(gap.before == step.number + 1 for gap in self.trace.gaps):
            return f"{text} (x {step.repeats}, and more that was not recorded)"
        return f"{text} (x {step.repeats})" if step.repeats > 1 else text


def describe(event: Event) -> str:
    """An interrupt or exception in words."""
    if event.software:
        return f"int {event.vector:#x}"
    if event.vector == PAGE_FAULT:
        return f"#PF at CR2 {event.state.cr2:#x}: {_page_fault(event)} (error code {event.error:#x})"
    if event.vector in EXCEPTIONS:
        return f"{EXCEPTIONS[event.vector]} (vector {event.vector}, error code {event.error:#x})"
    return f"interrupt {event.vector:#x}"


def _page_fault(event: Event) -> str:
    """A page fault's error code (SDM vol. 3, 4.7), whose bit for a fetch is set with NX or SMEP only."""
    error, state = event.error, event.state
    fetch = error & 1 << 4 or state.cr2 == state.general["rip"]
    access = "instruction fetch" if fetch else "write" if error & 1 << 1 else "read"
    if error & 1 << 3:
        return f"{access}, reserved bit set in the tables"
    return f"{access}, {'not permitted' if error & 1 else 'page not present'}"


def last_words(hand_over: HandOver) -> str:
    """What a guest that died in the hand-over executed last, and the exception that it died of."""
    last = hand_over.trace.steps[-1]
    words = f"the last of {len(hand_over.trace.steps)} instructions was {hand_over.where(last)}"
    if hand_over.fatal is None:
        return words
    at = hand_over.fatal.state.general["rip"]
    return f"{words}; then, at {at:#x}: {describe(hand_over.fatal)}"
