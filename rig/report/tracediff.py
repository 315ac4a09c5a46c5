"""Two hand-overs side by side: which instructions only one of them executed, and what changed control registers. Pure.

No two boots have the same addresses, and no two builds the same offsets. So an instruction is known by the function it
is in and its own words, from which addresses of the kernel's own are taken out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from rig import bits
from rig.disassembly import disassemble, width
from rig.handover import HandOver
from rig.report.listing import describe_change
from rig.trace import Change, Step, changes

KERNEL_SPAN = 64 << 20  # bytes from the start of the kernel's text in which its code and data lie
TEXT_ALIGN = 2 << 20  # of its start; machine_kexec is linked near it
CONTEXT = 2  # instructions around a difference; differences closer than twice that are one hunk
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")
_PAGE = re.compile(r"^control page 0x[0-9a-f]+")
_NEAR = re.compile(r"-?0x[0-9a-f]+\(%rip\)|\(%rip\)")
_TARGET = re.compile(r"^((?:j|call|loop)\w*) (0x[0-9a-f]+)$")
_NUMBER = re.compile(r"(\$?)(?<!\w)(-?(?:0x[0-9a-f]+|[0-9]{10,}))")  # capstone has some of the largest in decimal
_TAKES_ADDRESS = ("mov", "push", "cmp", "add", "sub", "lea", "ljmp")  # other immediates are masks and factors


@dataclass(frozen=True)
class Instruction:
    """where: symbol+offset. changed: the registers that it changed, in words. key: what it is known by."""

    number: int
    where: str
    text: str
    changed: str
    key: str


@dataclass(frozen=True)
class Way:
    """A hand-over. controls: of each change of control registers, IF, descriptor tables, segments: key and words."""

    instructions: tuple[Instruction, ...]
    controls: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Line:
    """mark: "-" executed before only, "+" after only, " " both (as it was after)."""

    mark: str
    instruction: Instruction


@dataclass(frozen=True)
class ControlPair:
    """The same change on both sides; empty on the side that lacks it."""

    before: str
    after: str

    @property
    def same(self) -> bool:
        return bool(self.before and self.after)


@dataclass(frozen=True)
class WayDifference:
    """steps: instructions executed, the iterations of a string instruction being one. hunks: see CONTEXT."""

    steps: tuple[int, int]
    hunks: tuple[tuple[Line, ...], ...]
    controls: tuple[ControlPair, ...]

    @property
    def removed(self) -> int:
        return self._marked("-")

    @property
    def inserted(self) -> int:
        return self._marked("+")

    def _marked(self, mark: str) -> int:
        return sum(line.mark == mark for hunk in self.hunks for line in hunk)


# ---------------------------------------------------------------- one side


def way(hand_over: HandOver) -> Way:
    """What is compared of a hand-over."""
    by_step: dict[int, list[str]] = defaultdict(list)
    controls = []
    for change in changes(hand_over.trace, hand_over.final):
        words = describe_change(change)
        by_step[change.step.number].append(words)
        controls.append((_control_key(change), f"{hand_over.name(change.step.pc)}: {words}"))
    text = hand_over.evidence.facts.text
    kernel = hand_over.trace.steps[0].pc & -TEXT_ALIGN if text is None else text
    steps = (_instruction(hand_over, step, "; ".join(by_step[step.number]), kernel) for step in hand_over.trace.steps)
    return Way(tuple(steps), tuple(controls))


def _instruction(hand_over: HandOver, step: Step, changed: str, kernel: int) -> Instruction:
    where = hand_over.name(step.pc)
    text = disassemble(step.code, step.pc, width(step.state))
    if target := _TARGET.match(text):
        known = f"{target[1]} {function(hand_over.name(int(target[2], 16)))}"
    else:
        known = without_addresses(text, kernel)
    return Instruction(step.number, where, hand_over.text(step), changed, f"{function(where)}: {known}")


def function(name: str) -> str:
    """A name without its offset; "?" of a bare address."""
    if name.startswith("0x"):
        return "?"
    return _PAGE.sub("control page", _OFFSET.sub("", name))


def without_addresses(text: str, kernel: int) -> str:
    """An instruction without what the kernel's place decides: RIP-relative distances, addresses in the kernel's image.

    kernel: where its text starts in this boot.
    """
    size = 1 << (64 if kernel >> 32 else 32)

    def shown(found: re.Match[str]) -> str:
        inside = (int(found[2], 0) - kernel) % size < KERNEL_SPAN
        constant = found[1] and not text.startswith(_TAKES_ADDRESS)
        return f"{found[1]}?" if inside and not constant else found[0]

    return _NUMBER.sub(shown, _NEAR.sub("?(%rip)", text))


def _control_key(change: Change) -> str:
    """What a change does, whatever the addresses are."""
    name, before, after = change.name, change.before, change.after
    if name in bits.REGISTERS:
        return f"{name} {bits.flipped(name, before[0], after[0])}"
    if name == "if":
        return f"if {after[0]}"
    if name in ("gdtr", "idtr"):
        return f"{name} {after[1]:#x}"
    return name if name == "cr3" else f"{name} {after[0]:#x}"


# ---------------------------------------------------------------- both


def compare_ways(before: Way, after: Way) -> WayDifference:
    old, new = before.instructions, after.instructions
    return WayDifference((len(old), len(new)), tuple(_hunks(old, new)), tuple(_controls(before, after)))


def _hunks(old: Sequence[Instruction], new: Sequence[Instruction]) -> Iterator[tuple[Line, ...]]:
    matcher = SequenceMatcher(None, [one.key for one in old], [one.key for one in new], autojunk=False)
    for group in matcher.get_grouped_opcodes(CONTEXT):
        hunk: list[Line] = []
        for word, old_start, old_end, start, end in group:
            if word == "equal":
                hunk += [Line(" ", one) for one in new[start:end]]
                continue
            hunk += [Line("-", one) for one in old[old_start:old_end]]
            hunk += [Line("+", one) for one in new[start:end]]
        yield tuple(hunk)


def _controls(before: Way, after: Way) -> Iterator[ControlPair]:
    old, new = before.controls, after.controls
    matcher = SequenceMatcher(None, [key for key, _ in old], [key for key, _ in new], autojunk=False)
    for word, old_start, old_end, start, end in matcher.get_opcodes():
        if word == "equal":
            pairs = zip(old[old_start:old_end], new[start:end], strict=True)
            yield from (ControlPair(one, other) for (_, one), (_, other) in pairs)
        else:
            yield from (ControlPair(words, "") for _, words in old[old_start:old_end])
            yield from (ControlPair("", words) for _, words in new[start:end])
