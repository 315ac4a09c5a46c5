"""What the rig costs, beside what a bare boot of the same guest costs, taken right before. Ratios, with bounds."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec

from rig.errors import MachineError
from rig.guest import arming
from rig.loads import LOADS
from rig.model import Checkpoint, Options, RunPlan
from rig.prepare import prepare
from rig.recorder import Recorder
from rig.report.directories import runs_in
from rig.triggers import TRIGGERS, trigger_line
from rig.vm.deadline import Deadline
from rig.vm.qemu import Vm, ram_ranges

RUNS = 3  # of each guest: the machine's other load comes and goes

# Bounds of the project's own goals.
RUN_RATIO = 1.25
CAPTURE_SECONDS = 1.0
COMPARE_SECONDS = 0.5
EVIDENCE_MIB = 10.0
PEAK_MIB = 1536.0


@dataclass(frozen=True)
class Figure:
    """One measured value. bound: the most it may be; None: it is shown only."""

    guest: str
    name: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound


@dataclass(frozen=True)
class _Bare:
    """Seconds of a boot without the rig's looking, and of a capture and a comparison in between."""

    boot: float
    crash: float
    capture: float
    compare: float


@dataclass(frozen=True)
class _Whole:
    """A whole `rig run`. evidence, peak: MiB."""

    seconds: float
    evidence: float
    peak: float


def measure(plan: RunPlan, options: Options, say: Callable[[str], None], cancel: threading.Event) -> list[Figure]:
    """All figures of one guest: bare boots, then the whole command as a user runs it, with a warm cache; RUNS times.

    Each is the median; the ratio is that of the ratios, each of one pair taken right after another.
    """
    guest, memory = plan.guest.name, plan.guest.memory
    pairs: list[tuple[_Bare, _Whole]] = []
    for number in range(1, RUNS + 1):
        with tempfile.TemporaryDirectory(prefix="rig-bench-") as folder:
            say(f"{plan.id}: {number} of {RUNS}: bare boots")
            bare = _bare(plan, options, Path(folder), cancel)
            say(f"{plan.id}: {number} of {RUNS}: the same with rig run")
            pairs.append((bare, _whole(plan, options, Path(folder) / "results")))

    def median(value: Callable[[_Bare, _Whole], float]) -> float:
        return statistics.median(value(bare, whole) for bare, whole in pairs)

    return [
        Figure(guest, "bare: start to first shell", median(lambda b, _: b.boot), "s"),
        Figure(guest, "bare: trigger to crash kernel's shell", median(lambda b, _: b.crash), "s"),
        Figure(guest, "rig run, from command line to verdict", median(lambda _, w: w.seconds), "s"),
        Figure(guest, "rig run / both bare boots", median(lambda b, w: w.seconds / (b.boot + b.crash)), "x", RUN_RATIO),
        Figure(guest, f"capture of {memory} MiB", median(lambda b, _: b.capture), "s", CAPTURE_SECONDS),
        Figure(guest, f"comparison of {memory} MiB", median(lambda b, _: b.compare), "s", COMPARE_SECONDS),
        Figure(guest, "evidence", median(lambda _, w: w.evidence), "MiB", EVIDENCE_MIB),
        Figure(guest, "peak memory of rig", median(lambda _, w: w.peak), "MiB", PEAK_MIB),
    ]


def _bare(plan: RunPlan, options: Options, folder: Path, cancel: threading.Event) -> _Bare:
    """Both boots without breakpoints and checks; a capture and a comparison in between, while the guest is held."""

    def deadline(what: str) -> Deadline:
        return Deadline.after(options.deadline, what)

    with contextlib.ExitStack() as stack:
        artefacts = stack.enter_context(prepare(plan, replace(options, template=False), folder, lambda _: None, cancel))
        spec = artefacts.machine
        times = [time.monotonic()]
        vm = stack.enter_context(Vm(spec, cancel=cancel))
        vm.shell.wait_hello("first", deadline("the first shell"))
        times.append(time.monotonic())
        arming.arm(
            vm.shell, LOADS[plan.scenario.load], artefacts.crash_cmdline, deadline("the crash kernel to be loaded")
        )
        vm.stop()
        recorder = stack.enter_context(Recorder(vm.ram_fd, spec.ram_size, ram_ranges(spec), vm.pmemsave))
        times.append(time.monotonic())
        recorder.capture(Checkpoint.PANIC)
        times.append(time.monotonic())
        recorder.capture(Checkpoint.MACHINE_KEXEC)
        times.append(time.monotonic())
        vm.cont()
        vm.shell.send(trigger_line(TRIGGERS[plan.scenario.trigger], "0" * 64))
        vm.shell.wait_hello("crash", deadline("the crash kernel's shell"))
        times.append(time.monotonic())
    boot, _, capture, compare, crash = (b - a for a, b in pairwise(times))
    return _Bare(boot, crash, capture, compare)


def _whole(plan: RunPlan, options: Options, results: Path) -> _Whole:
    """`rig run` as a user types it. MachineError when it does not pass."""
    command = [sys.executable, "-m", "rig", "run", plan.scenario.name, "--guest", plan.guest.name]
    command += ["--accel", options.accel, "--results", str(results)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise MachineError(f"`{' '.join(command)}` exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    (found,) = runs_in(results)
    size = sum(f.stat().st_size for f in found.rglob("*") if f.is_file()) / (1 << 20)
    environment = msgspec.json.decode((found / "result.json").read_bytes())["environment"]
    return _Whole(seconds, size, environment["peak_memory_mib"])


def lines(figures: Sequence[Figure]) -> list[str]:
    """The table for people."""
    out = []
    for figure in figures:
        bound = (
            "" if figure.bound is None else f"at most {figure.bound:g}: {'holds' if figure.holds else 'DOES NOT HOLD'}"
        )
        out.append(f"{figure.guest:8} {figure.name:40} {figure.value:8.2f} {figure.unit:4} {bound}".rstrip())
    return out
