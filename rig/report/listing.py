"""The hand-over as text, an instruction a line, behind it the registers that it changed. Pure over evidence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rig import bits
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import HandOver, describe, last_words
from rig.trace import Change, Event, Step, changes


@dataclass(frozen=True)
class ChangeRow:
    """An instruction that changed control registers, segments or IF."""

    step: str
    where: str
    instruction: str
    changes: str


@dataclass(frozen=True)
class Listing:
    """lines: all of it, without line ends. ending: how it ended, one line. instructions: executed, repeats included."""

    lines: tuple[str, ...]
    rows: tuple[ChangeRow, ...]
    ending: str
    instructions: int


def hand_over_listing(evidence: Evidence) -> Listing | None:
    """None when there is no trace that could be read: the checks say why. Of a kexec jump with the way back."""
    try:
        out = make(HandOver(evidence))
    except EvidenceError:
        return None
    try:
        back = make(HandOver(evidence, back=True))
    except EvidenceError:
        return out  # none was recorded
    instructions = out.instructions + back.instructions
    return Listing((*out.lines, "", *back.lines), (*out.rows, *back.rows), f"{out.ending} {back.ending}", instructions)


def make(hand_over: HandOver) -> Listing:
    """The listing of a hand-over that was recorded, up to its end or the guest's."""
    by_step: dict[int, list[str]] = defaultdict(list)
    for change in changes(hand_over.trace, hand_over.final):
        by_step[change.step.number].append(describe_change(change))
    events: dict[int, list[Event]] = defaultdict(list)
    for event in hand_over.trace.events:
        events[event.before].append(event)
    gaps = {gap.before: f"{'...':>6} not recorded: {gap.what}" for gap in hand_over.trace.gaps}
    lines = []
    for step in hand_over.trace.steps:
        lines += [_event_line(event) for event in events[step.number]]
        lines += [gaps[step.number]] if step.number in gaps else []
        lines.append(_line(hand_over, step, by_step.get(step.number, [])))
    lines += [_event_line(event) for event in events[len(hand_over.trace.steps)]]
    ending = _ending(hand_over)
    rows = (
        ChangeRow(str(number), hand_over.name(step.pc), hand_over.text(step), "; ".join(words))
        for number, words in by_step.items()
        for step in (hand_over.trace.steps[number],)
    )
    instructions = sum(step.repeats for step in hand_over.trace.steps)
    return Listing((*_heading(hand_over), *lines, ending), tuple(rows), ending, instructions)


def describe_change(change: Change) -> str:
    """A change in one clause: "CR4 0x6f0 -> 0x20 (PSE 1->0, ...)"."""
    name, before, after = change.name, change.before, change.after
    if name in bits.REGISTERS:
        return f"{name.upper()} {before[0]:#x} -> {after[0]:#x} ({bits.flipped(name, before[0], after[0])})"
    if name == "if":
        return f"IF {before[0]} -> {after[0]}"
    if name in ("gdtr", "idtr"):
        return f"{name.upper()} {before[0]:#x}+{before[1]:#x} -> {after[0]:#x}+{after[1]:#x}"
    if name == "cr3":
        return f"CR3 {before[0]:#x} -> {after[0]:#x}"
    parts = zip(("selector", "base", "limit", "flags"), before, after, strict=True)
    return f"{name.upper()} " + ", ".join(f"{part} {old:#x} -> {new:#x}" for part, old, new in parts if old != new)


def _heading(hand_over: HandOver) -> tuple[str, ...]:
    trace = hand_over.trace
    others = f"; other CPUs executed {trace.others} meanwhile" if trace.others else ""
    way = "way back" if hand_over.back else "hand-over"
    return (f"The {way} on CPU {trace.cpu}: {len(trace.steps)} steps{others}.", "")


def _line(hand_over: HandOver, step: Step, changed: list[str]) -> str:
    line = f"{step.number:6} {step.pc:#18x} {hand_over.name(step.pc):32} {step.code.hex(' '):24} {hand_over.text(step)}"
    return f"{line:<120} ; {'; '.join(changed)}" if changed else line


def _event_line(event: Event) -> str:
    return f"{'*** ':>7}{describe(event)}, at {event.state.general['rip']:#x}"


def _ending(hand_over: HandOver) -> str:
    if hand_over.reached and hand_over.final is not None:
        where = f"{hand_over.final.general['rip']:#x}"
        return f"machine_kexec returned to {where}." if hand_over.back else f"The new image was entered at {where}."
    missed = "machine_kexec never returned" if hand_over.back else "The new image was never entered"
    return f"{missed}: {last_words(hand_over)}."
