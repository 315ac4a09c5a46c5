"""A whole `rig run`, from the command line to the verdict, beside its guest booted and crashed without the rig."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import REPEATS, Bench, booted, rig, scratch
from rig.model import RunPlan
from rig.report.directories import runs_in
from rig.triggers import TRIGGERS, trigger_line

TIMES = 3  # of each guest: the machine's other load comes and goes

# Bounds of the project's own goals.
WHOLE = Bound(1.25)
IMPORT_SECONDS = Bound(0.3)
EVIDENCE_MIB = Bound(10.0)
PEAK_MIB = Bound(1536.0)

IMPORTED = "import rig.cli, rig.commands.runs, rig.conductor"  # what `rig run` needs before QEMU is started


@dataclass(frozen=True)
class BareTimes:
    """Seconds: start to first shell, trigger to the crash kernel's shell."""

    boot: float
    crash: float

    @property
    def both(self) -> float:
        return self.boot + self.crash


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
    """Each is the median; the ratio is that of the ratios, each of one pair taken right after another."""
    bares: list[BareTimes] = []
    wholes: list[Whole] = []
    for number in range(1, TIMES + 1):
        bench.say(f"run: {plan.id}: {number} of {TIMES}: bare boots")
        bares.append(bare(bench, plan))
        bench.say(f"run: {plan.id}: {number} of {TIMES}: the same with rig run")
        wholes.append(whole(bench, plan))
    guest = plan.guest.name
    both = Samples(tuple(one.both for one in bares))
    seconds = Samples(tuple(one.seconds for one in wholes))
    ratios = seconds.over(both)
    evidence = Samples(tuple(one.evidence for one in wholes))
    peak = Samples(tuple(one.peak for one in wholes))
    beside = f"the guest booted and crashed bare, {both.median:.1f} s"
    return [
        Figure("run", "from command line to verdict", ratios.median, "x", guest, beside, WHOLE, ratios.noise),
        Figure("run", "seconds of it", seconds.median, "s", guest, noise=seconds.noise),
        Figure("run", "evidence", evidence.median, "MiB", guest, bound=EVIDENCE_MIB, noise=evidence.noise),
        Figure("run", "peak memory of rig", peak.median, "MiB", guest, bound=PEAK_MIB, noise=peak.noise),
    ]


def bare(bench: Bench, plan: RunPlan) -> BareTimes:
    """Both boots without breakpoints, captures and checks."""
    with booted(bench, plan) as guest:
        guest.arm(bench)
        started = time.perf_counter()
        guest.vm.shell.send(trigger_line(TRIGGERS[plan.scenario.trigger], "0" * 64))
        guest.vm.shell.wait_hello("crash", bench.deadline("the crash kernel's shell"))
        return BareTimes(guest.boot, time.perf_counter() - started)


def whole(bench: Bench, plan: RunPlan, *words: str) -> Whole:
    """`rig run` as a user types it. MachineError when it does not pass."""
    with scratch() as results:
        options = ("--guest", plan.guest.name, "--results", str(results), *words)
        seconds = rig(bench, "run", plan.scenario.name, *options)
        (found,) = runs_in(results)
        size = sum(f.stat().st_size for f in found.rglob("*") if f.is_file()) / (1 << 20)
        environment = _environment(found)
        return Whole(seconds, size, environment["peak_memory_mib"])


def _environment(found: Path) -> dict[str, float]:
    told: dict[str, float] = msgspec.json.decode((found / "result.json").read_bytes())["environment"]
    return told
