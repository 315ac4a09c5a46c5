"""Many runs: what fits on this machine at a time, the workers, and their results in the order of the plans."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Capacity:
    """What all guests together may take at a time. cpus: of guests; each is a thread of QEMU's. memory: MiB."""

    cpus: int
    memory: int


def need(plan: RunPlan) -> int:
    """MiB that one run needs. What is skipped needs none."""
    return 0 if plan.skip else guest_need(plan.guest.memory)


def guest_need(memory: int) -> int:
    """MiB that a run with a guest of so much memory (MiB) needs: that memory, once more for the capture, and QEMU.

    Guest and capture take what the guest has touched of its memory. Of a large one that is no more than of a TOUCHED
    one, and a struct page (64 bytes at most) for each page.
    """
    return 2 * min(memory, TOUCHED + memory // 64) + OVERHEAD


def lack(plan: RunPlan, available: int) -> MachineError | None:
    """Why this guest can't run even alone; None when it can. available: MiB."""
    if need(plan) <= available:
        return None
    return MachineError(
        f"not enough memory: {plan.guest.name} needs {need(plan)} MiB, {available} MiB are available",
        hint="end other programs, or choose a guest with less memory",
    )


def capacity(wanted: int) -> Capacity:
    """This machine's. wanted: --jobs, 0 for as many CPUs as this process may use."""
    return Capacity(wanted or cores(), available_memory())


class Agenda:
    """What to run next: of those not yet begun, the first that fits beside those that run.

    First come those that take a whole dump, the longest, else the last one runs on alone; then the largest, while there
    is the most room. A guest larger than the capacity takes all of it, and so runs alone.
    """

    def __init__(self, plans: Sequence[RunPlan], capacity: Capacity) -> None:
        self._shares = [
            (0 if plan.skip else min(plan.guest.cpus, capacity.cpus), min(need(plan), capacity.memory))
            for plan in plans
        ]

        def rank(number: int) -> tuple[bool, bool, int, int]:
            cpus, memory = self._shares[number]
            plan = plans[number]
            return not plan.skip, plan.scenario.dump is Dump.HEADERS, -cpus, -memory

        self._pending = sorted(range(len(plans)), key=rank)
        self._cpus, self._memory = capacity.cpus, capacity.memory

    @property
    def empty(self) -> bool:
        """All of them were begun."""
        return not self._pending

    def begin(self) -> int | None:
        """The number of the plan that is begun now; None when none fits."""
        if not self._cpus:
            return None
        for place, number in enumerate(self._pending):
            cpus, memory = self._shares[number]
            if cpus <= self._cpus and memory <= self._memory:
                self._cpus -= cpus
                self._memory -= memory
                return self._pending.pop(place)
        return None

    def end(self, number: int) -> None:
        """This one runs no more."""
        cpus, memory = self._shares[number]
        self._cpus += cpus
        self._memory += memory


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
    plans: Sequence[RunPlan], run: Run, capacity: Capacity, progress: Progress, cancel: threading.Event
) -> list[Finished | None]:
    """Run all of them, as many at a time as fit; results in the order of `plans`, None where `cancel` came first.

    Returns only when every run has ended. The first exception other than Cancelled (a RequestError, a bug) cancels
    the others, waits for them, and is raised.
    """
    outcomes: list[Finished | None] = [None] * len(plans)
    names = numbered(plans)
    agenda, changed = Agenda(plans, capacity), threading.Condition()

    def take() -> int | None:
        with changed:
            while not agenda.empty and not cancel.is_set():
                if (number := agenda.begin()) is not None:
                    return number
                changed.wait()  # for one to end
        return None

    def work() -> None:
        while (number := take()) is not None:
            try:
                outcomes[number] = _one(names[number], plans[number], run, progress, cancel)
            finally:
                with changed:
                    agenda.end(number)
                    changed.notify_all()
            if not agenda.empty:
                _give_back_memory()

    count = min(capacity.cpus, len(plans))
    with ThreadPoolExecutor(max_workers=count, thread_name_prefix="run") as pool:
        futures = [pool.submit(work) for _ in range(count)]
    for future in futures:
        future.result()
    return outcomes


def _give_back_memory() -> None:
    """To the system, what the C library keeps of memory that nobody uses: it would grow from run to run."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def numbered(plans: Sequence[RunPlan]) -> list[str]:
    """Their ids; of those that are there more than once with a number, from 1 on."""
    times, seen = Counter(plan.id for plan in plans), Counter[str]()
    names = []
    for plan in plans:
        seen[plan.id] += 1
        names.append(f"{plan.id} #{seen[plan.id]}" if times[plan.id] > 1 else plan.id)
    return names


def _one(name: str, plan: RunPlan, run: Run, progress: Progress, cancel: threading.Event) -> Finished | None:
    """name: by which the run is shown."""
    progress.start(name)
    try:
        result, where = run(plan, lambda text: progress.say(name, text), cancel)
    except Cancelled:
        progress.end(name, "cancelled")
        return None
    except BaseException:
        cancel.set()
        progress.end(name, "broken off")
        raise
    progress.end(name, ending(result))
    return result, where


def ending(result: RunResult) -> str:
    """What progress says of a run that has ended."""
    expected = result.as_expected or result.verdict is Verdict.SKIP
    return result.verdict.value if expected else f"{result.verdict.value}, unexpected"
