"""A whole `rig run`, from the command line to the verdict, beside its guest booted and crashed without the rig."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import REPEATS, Bare, Bench, booted, environment, require_restored, restored, rig, scratch
from rig.model import RunPlan
from rig.report.directories import runs_in
from rig.triggers import TRIGGERS, trigger_line

# Of each guest: the machine's other load comes and goes. At least as many as tell between what two samples a median
# lies, and then until that settles the bound, but not for ever.
TIMES = 5
MOST = 15

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
    """Seconds without the rig: start to first shell, trigger to the crash kernel's shell."""

    boot: float
    crash: float


@dataclass(frozen=True)
class Whole:
    """A whole `rig run`. evidence, peak: MiB."""

    seconds: float
    evidence: float
    peak: float


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
    """Each is the median; a ratio is that of the ratios, each of a pair measured one right after the other."""
    bench.say(f"run: {plan.id}: a template")
    whole(bench, plan, *UNTIL_HANDOVER)
    alone, warm = list[float](), list[Whole]()
    bares, early, cold = list[BareTimes](), list[Whole](), list[Whole]()

    def restore() -> tuple[Ratio]:
        alone.append(bare_restore(bench, plan))
        warm.append(whole(bench, plan, restores=True))
        return (Ratio("from a template", WARM, "the same, restored bare", warm, alone),)

    def boot() -> tuple[Ratio, Ratio]:
        bares.append(bare(bench, plan))
        early.append(whole(bench, plan, *UNTIL_HANDOVER, restores=True))
        cold.append(whole(bench, plan, "--no-template", restores=False))
        first, both = [one.boot for one in bares], [one.boot + one.crash for one in bares]
        return (
            Ratio("--until handover, from a template", HANDOVER, "one bare boot", early, first),
            Ratio("--no-template", WHOLE, "both boots bare", cold, both),
        )

    ratios = (*settled(bench, f"{plan.id}: boots", boot), *settled(bench, f"{plan.id}: from a template", restore))
    evidence = Samples(tuple(one.evidence for one in cold))
    peak = Samples(tuple(one.peak for one in cold))
    guest = plan.guest.name
    return [
        *(ratio.figure(guest) for ratio in ratios),
        Figure("run", "evidence", evidence.median, "MiB", guest, bound=EVIDENCE_MIB, noise=evidence.noise),
        Figure("run", "peak memory of rig", peak.median, "MiB", guest, bound=PEAK_MIB, noise=peak.noise),
    ]


@dataclass(frozen=True)
class Ratio:
    """Runs of the rig, and the seconds of what each of them is held against."""

    name: str
    bound: Bound
    beside: str
    runs: Sequence[Whole]
    times: Sequence[float]

    @property
    def seconds(self) -> Samples:
        return Samples(tuple(one.seconds for one in self.runs))

    @property
    def each(self) -> Samples:
        return self.seconds.over(Samples(tuple(self.times)))

    def figure(self, guest: str) -> Figure:
        own, bare, value = self.seconds, Samples(tuple(self.times)), self.each
        told = f"{self.beside}: {own.median:.1f} s to {bare.median:.1f} s, {len(value.values)} pairs"
        return Figure("run", self.name, value.median, "x", guest, told, self.bound, value.noise)


def settled(bench: Bench, what: str, turn: Callable[[], Sequence[Ratio]]) -> Sequence[Ratio]:
    """Turns until they settle their bounds, broken or kept alike. As it is looked after each turn, the doubt is larger
    than that of one interval; to both sides alike."""
    for number in range(1, MOST + 1):
        bench.say(f"run: {what}: {number} of {TIMES if number <= TIMES else f'at most {MOST}'}")
        ratios = turn()
        if number >= TIMES and all(ratio.each.settles(ratio.bound) for ratio in ratios):
            break
    return ratios


def bare(bench: Bench, plan: RunPlan) -> BareTimes:
    """Both boots without breakpoints, captures and checks."""
    with booted(bench, plan) as guest:
        guest.arm(bench)
        return BareTimes(guest.boot, _crash(bench, guest))


def bare_restore(bench: Bench, plan: RunPlan) -> float:
    """Seconds from the start of a QEMU that restores the guest to the crash kernel's shell, with nothing else."""
    with restored(bench, plan) as guest:
        return guest.boot + _crash(bench, guest)


def _crash(bench: Bench, guest: Bare) -> float:
    """Seconds from the trigger to the crash kernel's shell."""
    started = time.perf_counter()
    guest.vm.shell.send(trigger_line(TRIGGERS[guest.plan.scenario.trigger], "0" * 64))
    guest.vm.shell.wait_hello("crash", bench.deadline("the crash kernel's shell"))
    return time.perf_counter() - started


def whole(bench: Bench, plan: RunPlan, *words: str, restores: bool | None = None) -> Whole:
    """`rig run` as a user types it. restores: whether it is to go on from a template; None: it may, or make one.

    Raises MachineError when it does not, or does not pass.
    """
    with scratch() as results:
        options = ("--guest", plan.guest.name, "--results", str(results), *words)
        seconds = rig(bench, "run", plan.scenario.name, *options)
        (found,) = runs_in(results)
        if restores is not None:
            require_restored([found], restores)
        size = sum(f.stat().st_size for f in found.rglob("*") if f.is_file()) / (1 << 20)
        return Whole(seconds, size, environment(found)["peak_memory_mib"])
