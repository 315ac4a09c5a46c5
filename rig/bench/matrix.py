"""Many runs: side by side beside one after the other, and what each one more costs the machine's memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rig.bench.figures import Bound, Figure, Samples
from rig.bench.processes import Watcher
from rig.bench.setting import Bench, require_restored, scratch, started_rig, wait
from rig.errors import MachineError
from rig.pool import cores
from rig.report.directories import runs_in

SIDE_BY_SIDE = 2  # guests at a time, a CPU each
TIMES = 2  # in turns: the machine's other load comes and goes
# On each guest. So many that what the last cell takes, alone, is a small part.
SCENARIOS = ("panic", "panic-bug", "panic-null-write", "panic-thread")

THROUGHPUT = Bound(1.8, at_least=True)
EACH_MIB = Bound(300)


@dataclass(frozen=True)
class Matrix:
    """seconds of all cells. peak: MiB, of the rig and its guests together."""

    seconds: float
    peak: float


def measure(bench: Bench) -> list[Figure]:
    """The guests' cells: booted, from templates, and those side by side, in turns. The templates are made before,
    unmeasured."""
    enough = cores() >= SIDE_BY_SIDE
    _run(bench, "templates", SIDE_BY_SIDE if enough else 1, restores=None)
    booted, single, double = list[Matrix](), list[Matrix](), list[Matrix]()
    for number in range(1, TIMES + 1):
        turn = f"{number} of {TIMES}"
        booted.append(_run(bench, turn, 1, "--no-template", restores=False))
        single.append(_run(bench, turn, 1, restores=True))
        if enough:
            double.append(_run(bench, turn, SIDE_BY_SIDE, restores=True))
    beside = f"the same booted, one after the other, {_seconds(booted).median:.0f} s"
    faster = _seconds(booted).over(_seconds(single))
    templates = Figure("matrix", "from templates: faster", faster.median, "x", "", beside, THROUGHPUT, faster.noise)
    return [templates, _side_by_side(single, double), _each(bench, single, double)]


def _seconds(runs: Sequence[Matrix]) -> Samples:
    return Samples(tuple(one.seconds for one in runs))


def _side_by_side(single: Sequence[Matrix], double: Sequence[Matrix]) -> Figure:
    name = f"{SIDE_BY_SIDE} at a time: faster"
    beside = f"one after the other, {_seconds(single).median:.0f} s"
    if not double:
        return _lacking(name, beside, THROUGHPUT, "x")
    faster = _seconds(single).over(_seconds(double))
    return Figure("matrix", name, faster.median, "x", "", beside, THROUGHPUT, faster.noise)


def _each(bench: Bench, single: Sequence[Matrix], double: Sequence[Matrix]) -> Figure:
    largest = max(plan.guest.memory for plan in bench.plans)
    alone = Samples(tuple(one.peak for one in single))
    name, beside = f"memory of one more guest of {largest} MiB", f"the first, {alone.median:.0f} MiB with the rig"
    if not double:
        return _lacking(name, beside, EACH_MIB, "MiB")
    more = tuple((two.peak - one.peak) / (SIDE_BY_SIDE - 1) for one, two in zip(single, double, strict=True))
    each = Samples(more)
    return Figure("matrix", name, each.median, "MiB", "", beside, EACH_MIB, each.noise)


def _lacking(name: str, beside: str, bound: Bound, unit: str) -> Figure:
    missing = f"this process may use {cores()} CPU"
    return Figure("matrix", name, None, unit, "", beside, bound, missing=missing)


def _run(bench: Bench, turn: str, jobs: int, *words: str, restores: bool | None) -> Matrix:
    """turn: which one, for the user. restores: whether all cells are to go on from templates, or none; None: as they
    can. Raises MachineError when they do not, or one of them does not pass.
    """
    patterns = [f"{name}@{plan.guest.name}/{plan.kernel.name}" for name in SCENARIOS for plan in bench.plans]
    told = " ".join(words)
    bench.say(f"matrix: {turn}: {len(patterns)} cells, {jobs} at a time {told}".rstrip())
    with scratch() as results:
        started = time.perf_counter()
        line = ("matrix", *patterns, "--jobs", str(jobs), "--no-retry", "--results", str(results), *words)
        with started_rig([*line, *bench.words]) as process, Watcher(process.pid) as watcher:
            wait(bench, process)
        seconds = time.perf_counter() - started
        runs = list(runs_in(results))
        if restores is not None:
            require_restored(runs, restores)
    if len(runs) != len(patterns):
        raise MachineError(f"{len(runs)} cells were run, {len(patterns)} were asked for")
    return Matrix(seconds, watcher.peak)
