"""The way from machine_kexec to the new image's first instruction, judged on every instruction of it.

What was not seen to its end is no pass: a guest that died on the way fails a check when the trace and the tables show
why, and can't be judged otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rig.disassembly import length, width
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.handover import HandOver, Live, chunks, describe
from rig.memory.paging import NotMapped
from rig.memory.physical import OutsideMemory
from rig.model import CheckResult, CpuState, Verdict
from rig.trace import MAX_CODE, Change, Step, changes

PGE = 1 << 7  # in CR4
# What the way led to, by HandOver.back.
REACHED = {False: "the new image was entered", True: "machine_kexec had returned"}
UNREACHED = {False: "the new image was never entered", True: "machine_kexec never returned"}
# What decides which code and data an address means. LDT and TR are not used on the way.
PREPARED = ("cr0", "cr3", "gdtr", "idtr", "cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


def _result(name: str, hand_over: HandOver, failure: str, good: str, figures: Mapping[str, Any]) -> CheckResult:
    """fail with its reason; pass only for a hand-over that was seen to its end."""
    if failure:
        return CheckResult(name, Verdict.FAIL, failure, figures)
    if not hand_over.reached:
        return CheckResult(name, Verdict.ERROR, f"{good}, but {UNREACHED[hand_over.back]}", figures)
    return CheckResult(name, Verdict.PASS, good, figures)


def _place(hand_over: HandOver, step: Step) -> dict[str, Any]:
    return {"step": step.number, "pc": step.pc, "symbol": hand_over.name(step.pc)}


# ---------------------------------------------------------------- switch-is-safe


@dataclass(frozen=True)
class _Switch:
    """An instruction that changed what addresses mean. size: bytes of the instruction after it, at `address`."""

    step: Step
    new: CpuState
    address: int
    size: int


def switch_is_safe(evidence: Evidence) -> CheckResult:
    """Translate the instruction after each switch by the tables before and after it: same page, or same bytes.

    SDM vol. 3, 9.9.1: the code that switches paging on or off must be identity-mapped; what it asks for there holds for
    any change of CR3. Global translations outlive a change of CR3 (4.10.4.1): whether CR4.PGE was set is recorded.
    """
    return judge_switches(HandOver(evidence))


def judge_switches(hand_over: HandOver) -> CheckResult:
    judged = [_judge_switch(hand_over, switch) for switch in _switches(hand_over)]
    if not judged:
        raise EvidenceError("the trace has no switch of page tables")
    bad = [row for row in judged if row["problem"]]
    failure = ""
    if bad:
        first = bad[0]
        failure = f"after {first['register']} at {first['symbol']}, {first['next']:#x} is {first['problem']}"
    switches = "the one table switch" if len(judged) == 1 else f"each of {len(judged)} table switches"
    good = f"after {switches} the next instruction is the same in the old tables and the new"
    return _result("switch-is-safe", hand_over, failure, good, {"switches": judged})


def _switches(hand_over: HandOver) -> Iterator[_Switch]:
    steps = hand_over.trace.steps
    for step in steps:
        new = hand_over.after(step)
        if new is None or Live.of(step.state) == Live.of(new):
            continue
        address = new.general["rip"]
        follower = steps[step.number + 1] if step.number + 1 < len(steps) else None
        if follower is not None and follower.pc == address:
            size = len(follower.code)
        else:
            size = _size_before(hand_over, step.state, address)
        yield _Switch(step, new, address, size)


def _size_before(hand_over: HandOver, state: CpuState, address: int) -> int:
    """Bytes of an instruction that was never executed, as the tables of `state` show it; 1 when they don't."""
    code = b""
    for start, size in chunks(address, MAX_CODE):
        try:
            code += hand_over.tables.memory.read(hand_over.tables.physical(Live.of(state), start), size)
        except (NotMapped, OutsideMemory, EvidenceError):
            break
    return length(code, address, width(state))


def _judge_switch(hand_over: HandOver, switch: _Switch) -> dict[str, Any]:
    old, new = switch.step.state, switch.new
    before, after, problem, same = [], [], "", "same page"
    for address, size in chunks(switch.address, switch.size):
        places = [_physical(hand_over, state, address) for state in (old, new)]
        before.append(places[0])
        after.append(places[1])
        missing = [words for words, place in zip(("before", "after"), places, strict=True) if isinstance(place, str)]
        if missing:
            reason = next(place for place in places if isinstance(place, str))
            problem = problem or f"not mapped {' and '.join(missing)} it: {reason}"
        elif places[0] != places[1]:
            same = "same bytes"
            if len({_read(hand_over, int(place), size) for place in places}) > 1:
                problem = problem or f"{places[0]:#x} before and {places[1]:#x} after it, with other bytes"
    return {
        **_place(hand_over, switch.step),
        "register": _switched(old, new),
        "before": _setting(old),
        "after": _setting(new),
        "next": switch.address,
        "bytes": switch.size,
        "physical_before": before,
        "physical_after": after,
        "same": "" if problem else same,
        "global_pages": bool(old.cr4 & PGE),
        "problem": problem,
    }


def _read(hand_over: HandOver, physical: int, size: int) -> bytes:
    """Nothing where there is no RAM."""
    try:
        return hand_over.tables.memory.read(physical, size)
    except OutsideMemory:
        return b""


def _physical(hand_over: HandOver, state: CpuState, virtual: int) -> int | str:
    """Physical address, or why there is none."""
    try:
        return hand_over.tables.physical(Live.of(state), virtual)
    except NotMapped as problem:
        return problem.reason


def _switched(old: CpuState, new: CpuState) -> str:
    if (old.paging is None) != (new.paging is None):
        return f"CR0.PG={int(new.paging is not None)}"
    if old.cr3 != new.cr3:
        return f"CR3={new.cr3:#x}"
    return f"CR4={new.cr4:#x}" if old.cr4 != new.cr4 else f"EFER={new.efer:#x}"


def _setting(state: CpuState) -> dict[str, Any]:
    return {"paging": str(state.paging or "off"), "cr3": state.cr3}


# ---------------------------------------------------------------- interrupts-off


def interrupts_off(evidence: Evidence) -> CheckResult:
    """EFLAGS.IF before each instruction, from the first one that changes CR0.PG, CR3, GDTR, IDTR or a segment on."""
    return judge_interrupts(HandOver(evidence))


def judge_interrupts(hand_over: HandOver) -> CheckResult:
    all_changes = list(changes(hand_over.trace, hand_over.final))
    first = next((change for change in all_changes if _prepares(change)), None)
    if first is None:
        raise EvidenceError("the trace has no change of tables or segments")
    start = first.step.number
    enabled = [step for step in hand_over.trace.steps[start:] if _interrupt_flag(step.state)]
    taken = [event for event in hand_over.trace.events if event.maskable]
    cleared = [c for c in all_changes if c.name == "if" and c.after == (0,) and c.step.number < start]
    figures: dict[str, Any] = {
        "first_change": {
            **_place(hand_over, first.step),
            "what": first.name,
            "instruction": hand_over.text(first.step),
        },
        # none: off since before machine_kexec
        "cleared": _place(hand_over, cleared[-1].step) if cleared else None,
        "enabled": [_place(hand_over, step) for step in enabled[:10]],
        "interrupts": [{"before_step": event.before, "what": describe(event)} for event in taken],
    }
    failure = ""
    if enabled:
        failure = f"interrupts were on at {hand_over.where(enabled[0])}, step {enabled[0].number}"
    elif hand_over.reached and hand_over.final is not None and _interrupt_flag(hand_over.final):
        failure = f"interrupts were on when {REACHED[hand_over.back]}"
    if failure:
        failure += f"; {first.name} is changed from step {start} on"
        failure += f", and {len(taken)} interrupts were taken" if taken else ""
    good = f"IF=0 from before {hand_over.name(first.step.pc)}, which changes {first.name}, on"
    return _result("interrupts-off", hand_over, failure, good, figures)


def _prepares(change: Change) -> bool:
    """Whether a change is one of tables or segments; of CR0, PG counts only."""
    if change.name == "cr0":
        return bool((change.before[0] ^ change.after[0]) >> 31)
    return change.name in PREPARED


def _interrupt_flag(state: CpuState) -> bool:
    return bool(state.general["rflags"] >> 9 & 1)


# ---------------------------------------------------------------- executes-nx-safe


def executes_nx_safe(evidence: Evidence) -> CheckResult:
    """All pages of all instructions, and of the one that a guest that died was to execute next."""
    return judge_fetches(HandOver(evidence))


def judge_fetches(hand_over: HandOver) -> CheckResult:
    steps = hand_over.trace.steps
    fetches = [(step.number, step.state, step.pc, len(step.code)) for step in steps]
    if not hand_over.reached and (end := hand_over.after(steps[-1])) is not None:
        fetches.append((len(steps), end, end.general["rip"], 1))
    refused = list(_refused(hand_over, fetches))
    enabled = sorted({bool(step.state.efer >> 11 & 1) for step in steps if step.state.paging is not None})
    nx = {(): "no paging", (False,): "NX not enabled", (True,): "NX enabled"}.get(tuple(enabled), "NX partly enabled")
    figures: dict[str, Any] = {
        "instructions": sum(step.repeats for step in steps),
        "paging_off": sum(step.repeats for step in steps if step.state.paging is None),
        "translated_pages": hand_over.tables.pages,
        "nx": nx,
        "not_recorded": [gap.what for gap in hand_over.trace.gaps],
        "refused": refused[:10],
    }
    failure = ""
    if refused:
        first = refused[0]
        failure = f"{first['pc']:#x} ({first['symbol']}), step {first['step']}, can't be executed: {first['problem']}"
    good = f"{figures['instructions']} instructions in {hand_over.tables.pages} pages, all executable ({nx})"
    return _result("executes-nx-safe", hand_over, failure, good, figures)


def _refused(hand_over: HandOver, fetches: Sequence[tuple[int, CpuState, int, int]]) -> Iterator[dict[str, Any]]:
    """Of (step, state, address, bytes), those that the tables don't let the CPU fetch."""
    for number, state, pc, size in fetches:
        for address, _ in chunks(pc, size):
            if problem := hand_over.tables.fetch_problem(state, address):
                yield {"step": number, "pc": pc, "symbol": hand_over.name(pc), "problem": problem}
                break
