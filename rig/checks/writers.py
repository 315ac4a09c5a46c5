"""Who wrote it: from changed bytes to the instructions of the recording."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rig.disassembly import disassemble, width
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import KeptMemory, Tables, Touch, touches
from rig.model import MACHINE_KEXEC, PAGE_SIZE, Checkpoint, Symbol
from rig.trace import Step

Interval = tuple[Checkpoint, Checkpoint]
NMI = 2  # vector (SDM vol. 3, table 6-1); nmi_shootdown_cpus(), arch/x86/kernel/reboot.c
SHOWN = 8  # instructions that figures tell
CALLERS = 4  # of each

TO_MACHINE_KEXEC: Interval = (Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC)
TO_HANDOVER: Interval = (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER)
TO_RETURN: Interval = (Checkpoint.HANDOVER, Checkpoint.RETURNED)


def _writes(steps: Iterable[Step], tables: Tables) -> Iterator[Touch]:
    """In order, page by page. What bytes that are no instruction wrote is not known."""
    for step in steps:
        with contextlib.suppress(EvidenceError):
            yield from (touch for touch in touches((step,), tables) if touch.write)


class Writers:
    """Who wrote what, to be asked many times.

    Of the crashing CPU's recorded instructions.
    """

    def __init__(self, steps: Sequence[Step], tables: Tables) -> None:
        self.steps = steps
        self._by_page: Mapping[int, list[Touch]] = defaultdict(list)
        for write in _writes(steps, tables):
            self._by_page[write.start // PAGE_SIZE].append(write)

    def last(self, start: int, end: int) -> Iterator[tuple[Step, int, int]]:
        """(step, start, end): who wrote the physical bytes [start, end) last. Bytes that nobody wrote are not told."""
        for page in range(start // PAGE_SIZE, (end - 1) // PAGE_SIZE + 1):
            todo = [(max(start, page * PAGE_SIZE), min(end, (page + 1) * PAGE_SIZE))]
            for write in reversed(self._by_page.get(page, ())):
                rest: list[tuple[int, int]] = []
                for low, high in todo:
                    first, behind = max(low, write.start), min(high, write.end)
                    if first >= behind:
                        rest.append((low, high))
                        continue
                    yield write.step, first, behind
                    rest += [(a, b) for a, b in ((low, first), (behind, high)) if a < b]
                if not (todo := rest):
                    break


@functools.lru_cache(maxsize=2)
def recorded(evidence: Evidence, interval: Interval) -> Writers | None:
    """All writes of the crashing CPU between two checkpoints; None when that was not recorded (Evidence.recording).

    Quick for TO_HANDOVER; for TO_MACHINE_KEXEC ten thousand instructions are read: half a second. Raises EvidenceError
    when there is no recording.
    """
    facts = evidence.facts
    if interval == TO_HANDOVER:
        steps = evidence.trace.steps
    elif interval == TO_MACHINE_KEXEC:
        hand_over = facts.symbols.get(MACHINE_KEXEC)
        steps = tuple(itertools.takewhile(lambda step: step.pc != hand_over, evidence.recording.steps))
    elif interval == TO_RETURN:
        steps = evidence.way_back.steps
    else:
        return None

    # the crashed task's as they were first; the image's own are filled in later on some kernels
    first = KeptMemory(evidence, evidence.base)
    later = KeptMemory(evidence, Checkpoint.HANDOVER) if Checkpoint.HANDOVER in facts.captured else first
    return Writers(steps, Tables(later, evidence.crashing_cpu(evidence.base), (first,))) if steps else None


@functools.lru_cache(maxsize=2)
def before_they_stopped(evidence: Evidence) -> tuple[Touch, ...]:
    """What the other CPUs wrote from `panic` on, until the NMI by which the crash path stops them; and nobody later.

    Left out is what the crashing CPU wrote as well, up to machine_kexec, and all of a CPU of which no such NMI was
    recorded. What is mapped only by tables that weren't in use at `panic` is left out, too.
    """
    own = recorded(evidence, TO_MACHINE_KEXEC)
    panic = KeptMemory(evidence, Checkpoint.PANIC)
    found: list[Touch] = []
    for cpu in evidence.cpus(Checkpoint.PANIC):
        other = evidence.other_cpu(cpu.cpu) if cpu.cpu != evidence.facts.crashing_cpu else None
        if own is None or other is None:
            continue
        stopped = next((event.before for event in other.events if event.vector == NMI), 0)
        written = _writes(other.steps[:stopped], Tables(panic, cpu, (panic,)))
        found += [write for write in written if not any(own.last(write.start, write.end))]
    return tuple(found)


def writer(
    evidence: Evidence, first_seen: Checkpoint | None, ranges: Sequence[tuple[int, int]]
) -> tuple[str, list[dict[str, Any]]]:
    """Who wrote the physical bytes [start, end) that were first seen changed at a checkpoint (None: in the dump only).

    The first instruction as "symbol+offset", or in words why none can be named; and the instructions that wrote them
    last, in order, SHOWN at most. Never raises EvidenceError: what changed has changed, whoever it was.
    """
    if first_seen is None:
        return "nobody: memory is unchanged, the dump shows something else", []
    captured = [c for c in Checkpoint if c in evidence.facts.captured]
    interval = next((a, b) for a, b in pairwise(captured) if b is first_seen)
    between = f"between {interval[0]} and {interval[1]}"
    if first_seen is Checkpoint.CRASH_KERNEL:
        return f"the new image, {between}: its instructions are not recorded", []
    try:
        writers = recorded(evidence, interval)
    except EvidenceError as problem:
        return f"unknown, {between}: {problem.message}", []
    if writers is None:
        return f"unknown, {between}: not recorded", []
    told = _instructions(evidence, writers, ranges)
    if not told:
        return f"no instruction of CPU {evidence.facts.crashing_cpu}, {between}: another CPU, device or debugger", []
    return told[0]["symbol"], told


def functions(evidence: Evidence, interval: Interval, ranges: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Bytes by the function that wrote them last, the most first; none when the interval was not recorded.

    What no instruction of the crashing CPU wrote is left out. Raises EvidenceError when there is no recording.
    """
    count: Counter[str] = Counter()
    if (writers := recorded(evidence, interval)) is not None:
        for start, end in ranges:
            for step, low, high in writers.last(start, end):
                count[evidence.symbol_at(step.pc).rsplit("+", 1)[0]] += high - low
    return dict(count.most_common())


def callers(symbols: Sequence[Symbol], steps: Sequence[Step], step: Step) -> list[int]:
    """Addresses of what led into the function that a step is in, into that one, and so on, CALLERS at most.

    A function is entered at its first instruction. The way ends at machine_kexec, which everybody knows, and where a
    function was entered before the recording began, or has no symbol. steps: the recording that `step` is from.
    """
    found: list[int] = []
    index = step.number - steps[0].number
    while len(found) < CALLERS:
        function = next((s for s in symbols if s.start <= steps[index].pc < s.end), None)
        if function is None or function.name == MACHINE_KEXEC:
            break
        entered = (n for n in range(index, 0, -1) if steps[n].pc == function.start)
        index = next((n - 1 for n in entered if not function.start <= steps[n - 1].pc < function.end), -1)
        if index < 0:
            break
        found.append(steps[index].pc)
    return found


def _instructions(evidence: Evidence, writers: Writers, ranges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The first SHOWN of those that wrote these bytes last."""
    spots: dict[int, tuple[Step, list[tuple[int, int]]]] = {}
    for start, end in ranges:
        for step, low, high in writers.last(start, end):
            spots.setdefault(step.number, (step, []))[1].append((low, high))
    return [
        {
            "step": number,
            "address": step.pc,
            "symbol": evidence.symbol_at(step.pc),
            "called_from": [evidence.symbol_at(pc) for pc in callers(evidence.symbols, writers.steps, step)],
            "instruction": disassemble(step.code, step.pc, width(step.state)),
            "physical": min(low for low, _ in where),
            "bytes": sum(high - low for low, high in where),
        }
        for number, (step, where) in sorted(spots.items())[:SHOWN]
    ]
