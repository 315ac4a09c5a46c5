"""Many runs: side by side beside one after the other, and what each one more costs the machine's memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rig.bench.figures import Bound, Figure
from rig.bench.processes import Watcher
from rig.bench.setting import Bench, environment, scratch, started_rig, wait
from rig.errors import MachineError
from rig.pool import cores
from rig.report.directories import runs_in

SIDE_BY_SIDE = 2  # guests at a time, a CPU each
SCENARIOS = ("panic", "panic-null-write")  # on each guest

THROUGHPUT = Bound(1.8, at_least=True)
EACH_MIB = Bound(300)


@dataclass(frozen=True)
class Matrix:
    """seconds of all cells. peak: MiB, of the rig and its guests together. restored: how many cells went on from a
    template."""

    seconds: float
    peak: float
    restored: int


def measure(bench: Bench) -> list[Figure]:
    """The guests' cells: booted, from templates, and those side by side. The templates are made before, unmeasured."""
    booted = _run(bench, 1, "--no-template")
    _run(bench, min(SIDE_BY_SIDE, cores()))
    single = _run(bench, 1)
    double = _run(bench, SIDE_BY_SIDE) if cores() >= SIDE_BY_SIDE else None
    cells = len(bench.plans) * len(SCENARIOS)
    if booted.restored or any(one.restored != cells for one in (single, double) if one is not None):
        raise MachineError("cells went on from a template where they were not to, or did not where they were to")
    beside = f"the same booted, one after the other, {booted.seconds:.0f} s"
    templates = Figure("matrix", "from templates: faster", booted.seconds / single.seconds, "x", "", beside, THROUGHPUT)
    return [templates, _side_by_side(single, double), _each(bench, single, double)]


def _side_by_side(single: Matrix, double: Matrix | None) -> Figure:
    name, beside = f"{SIDE_BY_SIDE} at a time: faster", f"one after the other, {single.seconds:.0f} s"
    if double is None:
        return _lacking(name, beside, THROUGHPUT, "x")
    return Figure("matrix", name, single.seconds / double.seconds, "x", "", beside, THROUGHPUT)


def _each(bench: Bench, single: Matrix, double: Matrix | None) -> Figure:
    largest = max(plan.guest.memory for plan in bench.plans)
    name, beside = f"memory of one more guest of {largest} MiB", f"the first, {single.peak:.0f} MiB with the rig"
    if double is None:
        return _lacking(name, beside, EACH_MIB, "MiB")
    each = (double.peak - single.peak) / (SIDE_BY_SIDE - 1)
    return Figure("matrix", name, each, "MiB", "", beside, EACH_MIB)


def _lacking(name: str, beside: str, bound: Bound, unit: str) -> Figure:
    missing = f"this process may use {cores()} CPU"
    return Figure("matrix", name, None, unit, "", beside, bound, missing=missing)


def _run(bench: Bench, jobs: int, *words: str) -> Matrix:
    """MachineError when one of the cells does not pass."""
    patterns = [f"{name}@{plan.guest.name}/{plan.kernel.name}" for name in SCENARIOS for plan in bench.plans]
    told = " ".join(words)
    bench.say(f"matrix: {len(patterns)} cells, {jobs} at a time {told}".rstrip())
    with scratch() as results:
        started = time.perf_counter()
        line = ("matrix", *patterns, "--jobs", str(jobs), "--no-retry", "--results", str(results), *words)
        with started_rig([*line, *bench.words]) as process, Watcher(process.pid) as watcher:
            wait(bench, process)
        seconds = time.perf_counter() - started
        used = [environment(run)["template"]["used"] for run in runs_in(results)]
    if len(used) != len(patterns):
        raise MachineError(f"{len(used)} cells were run, {len(patterns)} were asked for")
    return Matrix(seconds, watcher.peak, sum(used))
