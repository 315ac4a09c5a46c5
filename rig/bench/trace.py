"""The hand-over's recording, from `panic` on: how fast instructions are recorded and read, and by single steps instead.

Of QEMU's own log under TCG; under KVM the rig itself has nothing but single steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rig import trace
from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import Bare, Bench, booted, timed
from rig.errors import GuestError, MachineError
from rig.guest.arming import Self
from rig.kernel.symbols import MACHINE_KEXEC, PANIC_SYMBOLS
from rig.live import attached
from rig.model import RunPlan
from rig.triggers import TRIGGERS, trigger_line
from rig.vm import tracing
from rig.vm.gdbstub import GdbStub

SPEED = Bound(5000, at_least=True)  # instructions a second
FASTER = Bound(2.5, at_least=True)  # that speed, over the 2,000 single steps a second of an idle machine
STEPS = 500  # taken one by one: enough to tell their speed
READINGS = 5


@dataclass(frozen=True)
class Recorded:
    """steps: how many instructions, iterations of string instructions counted one by one. recording, stepping: seconds
    for all of them, and for one single step."""

    text: str
    cpu: int
    steps: int
    recording: float
    stepping: float


def measure(bench: Bench) -> list[Figure]:
    """Of the last guest."""
    plan = bench.plans[-1]
    bench.say(f"trace: {plan.guest.name} boots, to be panicked")
    with booted(bench, plan) as bare:
        if bare.artefacts.machine.accel != "tcg":
            raise MachineError("QEMU records instructions under TCG only", hint="give --accel tcg")
        found = _panic(bench, bare, bare.arm(bench))
    return figures(bench, plan, found)


def figures(bench: Bench, plan: RunPlan, found: Recorded) -> list[Figure]:
    """Reading is measured several times; a guest panics only once."""
    (reading,) = bench.alternate(lambda: trace.parse(found.text, found.cpu), times=READINGS)
    both = Samples(tuple(found.steps / (found.recording + seconds) for seconds in reading.values))
    ratios = Samples(tuple(speed * found.stepping for speed in both.values))
    read = Samples(tuple(found.steps / seconds for seconds in reading.values))
    guest, beside = plan.guest.name, f"{1 / found.stepping:,.0f} single steps a second over the gdbstub"
    return [
        Figure("trace", "instructions recorded and read", both.median, "/s", guest, "", SPEED, both.noise),
        Figure("trace", "the same: faster", ratios.median, "x", guest, beside, FASTER, ratios.noise),
        Figure("trace", "recorded alone", found.steps / found.recording, "/s", guest, larger_is_better=True),
        Figure("trace", "read alone", read.median, "/s", guest, noise=read.noise, larger_is_better=True),
    ]


def _panic(bench: Bench, bare: Bare, known: Self) -> Recorded:
    """From `panic` to machine_kexec it is recorded, from there on stepped."""
    vm = bare.vm
    name = next((each for each in PANIC_SYMBOLS if each in known.symbols), None)
    if name is None or MACHINE_KEXEC not in known.symbols:
        raise GuestError(f"the kernel has no {' or '.join(PANIC_SYMBOLS)}, or no {MACHINE_KEXEC}")
    with attached(vm) as gdb:
        gdb.set_breakpoint(known.symbols[name])
        gdb.resume()
        vm.shell.send(trigger_line(TRIGGERS[bare.plan.scenario.trigger], "0" * 64))
        stop = gdb.wait_stop(bench.deadline("the panic"))
        gdb.remove_breakpoint(known.symbols[name])
        bench.say("trace: recording")
        parts: list[str] = []
        started = time.perf_counter()
        with tracing.logged(vm, parts.append):
            gdb.set_breakpoint(known.symbols[MACHINE_KEXEC])
            gdb.continue_until_stop(bench.deadline(MACHINE_KEXEC))
            gdb.remove_breakpoint(known.symbols[MACHINE_KEXEC])
        (text,) = parts
        recording = time.perf_counter() - started
        bench.say("trace: single steps")
        stepping = timed(lambda: _step(bench, gdb)) / STEPS
    steps = sum(step.repeats for step in trace.parse(text, stop.cpu).steps)
    return Recorded(text, stop.cpu, steps, recording, stepping)


def _step(bench: Bench, gdb: GdbStub) -> None:
    """Each step has its registers read."""
    for _ in range(STEPS):
        bench.check()
        gdb.step()
