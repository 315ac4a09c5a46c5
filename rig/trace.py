"""The hand-over, instruction by instruction: the recording's format, and what it says. Pure.

The recording is QEMU's own log (`-d exec,cpu,in_asm,int,nochain`, one instruction per translation block), kept as it
came: of each instruction the bytes that were fetched for it, and all of the CPU's registers before it. Where QEMU
can't log (KVM), rig.vm.tracing writes the same lines from single steps.

    IN:
    0xffffffff8106a395:  41 54                    pushq    %r12

    Trace 0: 0x7f8944000200 [0000000000000000/ffffffff8106a395/0040c2b0/ff000201]
    RAX=0000000000000000 RBX=...                  as in `info registers`

The format is that of log_cpu_exec() in QEMU's accel/tcg/cpu-exec.c, target_disas() and x86_cpu_dump_state().
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rig.errors import EvidenceError, ProtocolError
from rig.model import CpuState
from rig.vm import registers

_BLOCK = re.compile(r"^Trace ([0-9]{1,9}): \S+ \[[0-9a-f]+/([0-9a-f]{1,16})/.*$", re.MULTILINE)
_EXECUTED = re.compile(r"\nTrace \d+: \S+ \[[0-9a-f]+/([0-9a-f]{1,16})/")  # begins with what re looks for quickly
_CODE = re.compile(r"^0x([0-9a-f]{1,16}):\s+(?:OBJD-T: )?((?:[0-9a-f]{2} ?)+)(?: |$)", re.MULTILINE)
_CODE_BLOCK = re.compile(r"\A[^\n]*\n(?:0x[0-9a-f]+:.*\n)+")
# Interrupts and exceptions as they are delivered, the registers after it (do_interrupt_all(), QEMU's
# target/i386/tcg/seg_helper.c).
_EVENT = re.compile(r"^ *[0-9]+: v=([0-9a-f]{2}) e=([0-9a-f]{1,16}) i=([0-9]) .*$", re.MULTILINE)
_EVENT_SIGN = ": v="  # in each of them, and in nothing else: hardly any instruction is followed by one
_RULE = "----------------"  # before what was translated next
_UNDONE = "Stopped execution of TB chain before"  # the block just logged was left again before it ran
_REPEATS = re.compile(rb"[\x66\x67\x26\x2e\x36\x3e\x64\x65]*[\xf2\xf3]")  # REP prefixes, others before them
# Written by the rig where it let the CPU run unrecorded: what it did meanwhile, in words.
GAP = "rig: not recorded here: "
_GAP = re.compile(rf"^{GAP}(.*)$", re.MULTILINE)
CUT = "rig: the recording is cut here: it grew too large"  # written by rig.vm.tracing
MAX_CODE = 15  # bytes of an instruction (SDM vol. 2, 2.3.11)


@dataclass(frozen=True)
class Step:
    """One instruction. state: before it was executed. code: its bytes, as fetched.

    repeats: how often it was executed in a row; above 1 for string instructions only, whose iterations are one step.
    """

    number: int  # from 0
    state: CpuState
    code: bytes
    repeats: int = 1

    @property
    def pc(self) -> int:
        """Virtual address; with paging off, physical."""
        return self.state.general["rip"]


@dataclass(frozen=True)
class Event:
    """An interrupt or exception that the CPU took, or tried to. before: the number of the step that follows it.

    state: as the CPU was before it was delivered; of a fault, with the address of the instruction that can't be
    executed, and in CR2 what it could not reach.
    """

    before: int
    vector: int
    error: int
    software: bool
    state: CpuState

    @property
    def maskable(self) -> bool:
        """Whether IF=0 would have held it back: what a device or another CPU sent, but no NMI (SDM vol. 3, 6.3.1)."""
        return self.vector >= 32 and not self.software


@dataclass(frozen=True)
class Gap:
    """Instructions that were not recorded: those of the copying of an image. before: the number of the step that
    follows. Interrupts and exceptions are recorded all the same."""

    before: int
    what: str


@dataclass(frozen=True)
class Trace:
    """What one CPU executed, in order: from `panic` on, or from the first instruction of machine_kexec.

    others: instructions that other CPUs executed meanwhile. What changes in a gap counts as the doing of the step
    before it.
    """

    cpu: int
    steps: tuple[Step, ...]
    events: tuple[Event, ...]
    others: int
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Change:
    """A register that an instruction changed. name: cr0, cr3, cr4, efer, if, gdtr, idtr, or a segment register.

    before, after: the value; of gdtr, idtr (base, limit); of segments (selector, base, limit, flags).
    """

    step: Step
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def parse(text: str, cpu: int, start: int | None = None) -> Trace:
    """Read a recording. cpu: the one that panicked. start: leave out all before the instruction at that address.

    :raise EvidenceError: it was cut, has no instruction of that CPU, or an instruction without its bytes or registers
    """
    if is_cut(text):
        raise EvidenceError("the recording of the hand-over is cut: the guest executed far more than a hand-over takes")
    steps: list[Step] = []
    events: list[Event] = []
    gaps: list[Gap] = []
    others = 0
    begun = start is None
    code: dict[int, bytes] = {}
    pieces = _BLOCK.split(text)
    _learn_code(pieces[0], code)
    for number, address, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        own = int(number) == cpu
        others += not own
        begun = begun or (own and int(address, 16) == start)
        if own and begun:
            if _UNDONE not in body:
                _add(steps, int(address, 16), body, code, cpu)
            if _EVENT_SIGN in body:
                events += _events(len(steps), body, cpu)
        gaps += [Gap(len(steps), what) for what in _GAP.findall(body)]
        _learn_code(body, code)
    if not steps:
        raise EvidenceError(f"the hand-over trace has no instruction of CPU {cpu}")
    return Trace(cpu, tuple(steps), tuple(events), others, tuple(gaps))


# For a run, which is looked at while the new kernel boots and judged right afterwards, by the very same recording.
parsed = functools.lru_cache(maxsize=1)(parse)


def gap(what: str) -> str:
    """The line that stands in a recording for what was not recorded."""
    return f"{_RULE}\n{GAP}{what}\n"


def is_cut(text: str) -> bool:
    """Whether a recording ends before what it was to record."""
    return CUT in text[-2 * len(CUT) :]


def code_of(text: str) -> str:
    """Of a recording, only what says which bytes instructions have: QEMU tells that once, and later ones rest on it."""
    blocks = {block: None for part in text.split("IN:")[1:] for block in _CODE_BLOCK.findall(part)}
    return "".join(f"IN:{block}" for block in blocks)


def addresses(text: str) -> list[int]:
    """The addresses of all instructions in a recording, whoever executed them, in order and once each."""
    return list(dict.fromkeys(int(address, 16) for address in _EXECUTED.findall(f"\n{text}")))


def _learn_code(body: str, code: dict[int, bytes]) -> None:
    """Bytes of instructions translated here. Long ones go on in the next line."""
    for block in body.split("IN:")[1:]:
        parts = [(int(address, 16), bytes.fromhex(digits)) for address, digits in _CODE.findall(block)]
        if parts:
            code[parts[0][0]] = b"".join(blob for _, blob in parts)


def _add(steps: list[Step], address: int, body: str, code: dict[int, bytes], cpu: int) -> None:
    if address not in code:
        raise EvidenceError(f"the hand-over trace does not say what instruction is at {address:#x}")
    blob = code[address]
    if steps and steps[-1].pc == address and _REPEATS.match(blob):
        steps[-1] = replace(steps[-1], repeats=steps[-1].repeats + 1)
        return
    # up to what follows the registers: another instruction's bytes, or the registers at an interrupt
    text = body.split(_RULE, 1)[0]
    state = _registers(_EVENT.split(text, maxsplit=1)[0] if _EVENT_SIGN in text else text, cpu, f"{address:#x}")
    if state.general["rip"] != address:
        raise EvidenceError(f"the hand-over trace mixes CPUs: registers of {state.general['rip']:#x} at {address:#x}")
    steps.append(Step(len(steps), state, blob))


def _events(before: int, body: str, cpu: int) -> Iterator[Event]:
    _, *parts = _EVENT.split(body)
    for vector, error, software, rest in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        state = _registers(rest.split(_RULE, 1)[0], cpu, f"interrupt {vector}")
        yield Event(before, int(vector, 16), int(error, 16), software == "1", state)


def _registers(text: str, cpu: int, where: str) -> CpuState:
    try:
        return registers.parse_one(cpu, text)
    except ProtocolError as problem:
        raise EvidenceError(f"the hand-over trace is broken at {where}: {problem}") from problem


# ---------------------------------------------------------------- what it says


def after(trace: Trace, number: int, final: CpuState | None) -> CpuState | None:
    """The state after a step, before any interrupt that followed it; of a fault in it, as the instruction left it.

    final: the state after the last step: at `handover`, or of the guest's death.
    """
    for event in trace.events:
        if event.before == number + 1:
            return event.state
    return trace.steps[number + 1].state if number + 1 < len(trace.steps) else final


def changes(trace: Trace, final: CpuState | None) -> Iterator[Change]:
    """Every change of what paging, interrupts and segments rest on, with the instruction that made it.

    What the delivery of an interrupt changes is not among them: see Trace.events.
    """
    for step in trace.steps:
        new = after(trace, step.number, final)
        if new is None:
            continue
        old_values, new_values = watched(step.state), watched(new)
        for name, value in old_values.items():
            if new_values[name] != value:
                yield Change(step, name, value, new_values[name])


def watched(state: CpuState) -> dict[str, tuple[int, ...]]:
    """The registers that `changes` looks at, by name."""
    return {
        "cr0": (state.cr0,),
        "cr3": (state.cr3,),
        "cr4": (state.cr4,),
        "efer": (state.efer,),
        "if": (state.general["rflags"] >> 9 & 1,),
        "gdtr": (state.gdt_base, state.gdt_limit),
        "idtr": (state.idt_base, state.idt_limit),
        **{name: (s.selector, s.base, s.limit, s.flags) for name, s in state.segments.items()},
    }
