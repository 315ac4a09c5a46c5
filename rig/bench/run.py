"""A whole `rig run`, from the command line to the verdict, beside its guest booted and crashed without the rig."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import REPEATS, Bare, Bench, booted, environment, restored, rig, scratch
from rig.errors import MachineError
from rig.model import RunPlan
from rig.report.directories import runs_in
from rig.triggers import TRIGGERS, trigger_line

TIMES = 5  # of each guest: the machine's other load comes and goes

# Bounds of the project's own goals.
WHOLE = Bound(1.25)
WARM = Bound(1.15)
HANDOVER = Bound(0.25)
IMPORT_SECONDS = Bound(0.3)
EVIDENCE_MIB = Bound(10.0)
PEAK_MIB = Bound(1536.0)

UNTIL_HANDOVER = ("--until", "handover")
IMPORTED = "import rig.cli, rig.commands.runs, rig.conductor"  # what `rig run` needs before QEMU is started


@dataclass(frozen=True)
class BareTimes:
    """Seconds without the rig: start to first shell, trigger to the crash kernel's shell; of a restored guest both."""

    boot: float
    crash: float
    restored: float


@dataclass(frozen=True)
class Whole:
    """A whole `rig run`. evidence, peak: MiB. template: whether it went on from one."""

    seconds: float
    evidence: float
    peak: float
    template: bool


def measure(bench: Bench) -> list[Figure]:
    """One guest after the other: side by side they would take each other's time."""
    return [_imports(bench), *(figure for plan in bench.plans for figure in _of_guest(bench, plan))]


def _imports(bench: Bench) -> Figure:
    bench.say("run: imports")

    def python(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)

    importing, nothing = bench.alternate(lambda: python(IMPORTED), lambda: python("pass"), times=2 * REPEATS)
    seconds = Samples(tuple(own - bare for own, bare in zip(importing.values, nothing.values, strict=True)))
    beside = f"a Python that imports nothing, {nothing.median:.2f} s"
    return Figure("run", "imports", seconds.median, "s", "", beside, IMPORT_SECONDS, seconds.noise)


def _of_guest(bench: Bench, plan: RunPlan) -> list[Figure]:
    """Each is the median; a ratio is that of the ratios, each of a pair from the same round."""
    bench.say(f"run: {plan.id}: a template")
    whole(bench, plan, *UNTIL_HANDOVER)
    bares: list[BareTimes] = []
    cold, warm, early = list[Whole](), list[Whole](), list[Whole]()
    for number in range(1, TIMES + 1):
        bench.say(f"run: {plan.id}: {number} of {TIMES}: bare boots")
        bares.append(bare(bench, plan))
        bench.say(f"run: {plan.id}: {number} of {TIMES}: the same with rig run")
        warm.append(whole(bench, plan))  # first: what it is held against is the last of the bare boots
        early.append(whole(bench, plan, *UNTIL_HANDOVER))
        cold.append(whole(bench, plan, "--no-template"))
    guest = plan.guest.name
    if any(one.template for one in cold) or not all(one.template for one in (*warm, *early)):
        raise MachineError(f"{plan.id} went on from a template where it was not to, or did not where it was to")

    def ratio(name: str, runs: Sequence[Whole], beside: str, times: Sequence[float], bound: Bound) -> Figure:
        seconds, bare = Samples(tuple(one.seconds for one in runs)), Samples(tuple(times))
        value, told = seconds.over(bare), f"{beside}: {seconds.median:.1f} s to {bare.median:.1f} s"
        return Figure("run", name, value.median, "x", guest, told, bound, value.noise)

    evidence = Samples(tuple(one.evidence for one in cold))
    peak = Samples(tuple(one.peak for one in cold))
    return [
        ratio("--until handover, from a template", early, "one bare boot", [one.boot for one in bares], HANDOVER),
        ratio("from a template", warm, "the same, restored bare", [one.restored for one in bares], WARM),
        ratio("--no-template", cold, "both boots bare", [one.boot + one.crash for one in bares], WHOLE),
        Figure("run", "evidence", evidence.median, "MiB", guest, bound=EVIDENCE_MIB, noise=evidence.noise),
        Figure("run", "peak memory of rig", peak.median, "MiB", guest, bound=PEAK_MIB, noise=peak.noise),
    ]


def bare(bench: Bench, plan: RunPlan) -> BareTimes:
    """Both boots without breakpoints, captures and checks; and the second one of a guest restored."""
    with booted(bench, plan) as guest:
        guest.arm(bench)
        boot, crash = guest.boot, _crash(bench, guest)
    with restored(bench, plan) as guest:
        return BareTimes(boot, crash, guest.boot + _crash(bench, guest))


def _crash(bench: Bench, guest: Bare) -> float:
    """Seconds from the trigger to the crash kernel's shell."""
    started = time.perf_counter()
    guest.vm.shell.send(trigger_line(TRIGGERS[guest.plan.scenario.trigger], "0" * 64))
    guest.vm.shell.wait_hello("crash", bench.deadline("the crash kernel's shell"))
    return time.perf_counter() - started


def whole(bench: Bench, plan: RunPlan, *words: str) -> Whole:
    """`rig run` as a user types it. MachineError when it does not pass."""
    with scratch() as results:
        options = ("--guest", plan.guest.name, "--results", str(results), *words)
        seconds = rig(bench, "run", plan.scenario.name, *options)
        (found,) = runs_in(results)
        size = sum(f.stat().st_size for f in found.rglob("*") if f.is_file()) / (1 << 20)
        told = environment(found)
        return Whole(seconds, size, told["peak_memory_mib"], told["template"]["used"])
