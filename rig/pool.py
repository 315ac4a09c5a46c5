"""Many runs: how many fit on this machine at once, the workers, and their results in the order of the plans."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rig.errors import Cancelled, MachineError
from rig.model import Dump, RunPlan, RunResult, Verdict
from rig.progress import Progress

Finished = tuple[RunResult, Path]  # a run's result and its directory
Listener = Callable[[str], None]
Run = Callable[[RunPlan, Listener, threading.Event], Finished]

OVERHEAD = 200  # MiB for QEMU itself, and the captures being read
# MiB of a guest's memory that count in any case. Without a load of its own one of 512 touches 260, one of 5120 470.
TOUCHED = 1024
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def need(plan: RunPlan) -> int:
    """MiB that one run needs: the guest's memory, once more for the capture, and QEMU.

    Guest and capture take what the guest has touched of its memory. Of a large one that is no more than of a TOUCHED
    one, and a struct page (64 bytes at most) for each page.
    """
    memory = plan.guest.memory
    return 2 * min(memory, TOUCHED + memory // 64) + OVERHEAD


def workers(plans: Sequence[RunPlan], wanted: int, cores: int, available: int) -> int:
    """How many of these may run at once. wanted: --jobs, 0 for as many as `cores`. available: MiB.

    Whatever is wanted, no more than fit into memory, the largest together.

    :raise MachineError: not even the largest one fits
    """
    needs = sorted((need(plan) for plan in plans), reverse=True)
    if needs[0] > available:
        raise MachineError(
            f"not enough memory: one guest needs {needs[0]} MiB, {available} MiB are available",
            hint="end other programs, or choose a guest with less memory",
        )
    fitting = max(n for n in range(1, len(needs) + 1) if sum(needs[:n]) <= available)
    return min(wanted or cores, fitting)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """MiB that can be used without swapping: the machine's, or what a container's limit (cgroup v2) leaves."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min([machine, *_container_memory(cgroup)]) // (1 << 20)


def _container_memory(cgroup: Path) -> list[int]:
    """Bytes left below the container's limit; empty without one (the root of a machine's cgroups has no such file)."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except FileNotFoundError:
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]


def run_all(
    plans: Sequence[RunPlan], run: Run, jobs: int, progress: Progress, cancel: threading.Event
) -> list[Finished | None]:
    """Run all of them, `jobs` at a time; results in the order of `plans`, None where `cancel` came first.

    Returns only when every run has ended. The first exception other than Cancelled (a RequestError, a bug) cancels
    the others, waits for them, and is raised.
    """

    def work(plan: RunPlan) -> Finished | None:
        if cancel.is_set():
            return None
        progress.start(plan.id)
        try:
            result, where = run(plan, lambda text: progress.say(plan.id, text), cancel)
        except Cancelled:
            progress.end(plan.id, "cancelled")
            return None
        except BaseException:
            cancel.set()
            progress.end(plan.id, "broken off")
            raise
        expected = result.as_expected or result.verdict is Verdict.SKIP
        progress.end(plan.id, result.verdict.value if expected else f"{result.verdict.value}, unexpected")
        return result, where

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="run") as pool:
        # Those that take a whole dump, the longest, first: else the last one runs on alone.
        order = sorted(range(len(plans)), key=lambda number: plans[number].scenario.dump is Dump.HEADERS)
        futures: dict[int, Future[Finished | None]] = {number: pool.submit(work, plans[number]) for number in order}
    return [futures[number].result() for number in range(len(plans))]
