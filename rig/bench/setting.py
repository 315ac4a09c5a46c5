"""What all families work with: the guests, the clock, guests booted bare, and the rig as a user starts it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from rig import unfinished
from rig.bench.figures import Samples
from rig.errors import Cancelled, MachineError
from rig.guest import arming
from rig.loads import LOADS
from rig.model import Options, RunPlan
from rig.prepare import Artefacts, prepare
from rig.vm.deadline import POLL, Deadline
from rig.vm.qemu import Vm

REPEATS = 5  # of what takes a fraction of a second


@dataclass(frozen=True)
class Bench:
    """plans: the benchmark on each guest. words: of the rig's command line, for the catalogue and the accelerator."""

    plans: Sequence[RunPlan]
    options: Options
    words: Sequence[str]
    say: Callable[[str], None]
    cancel: threading.Event

    def check(self) -> None:
        """Raises Cancelled when the user asked to stop."""
        if self.cancel.is_set():
            raise Cancelled("cancelled: nothing was measured to the end")

    def alternate(
        self, *acts: Callable[[], object], times: int = REPEATS, clock: Callable[[], float] = time.perf_counter
    ) -> list[Samples]:
        """Seconds (the clock's) of each act, taken in turns, so that what else the machine does meets them all alike.

        Each is done once before, unmeasured: what is read from disk or imported then is so only once.
        """
        for act in acts:
            act()
        taken: list[list[float]] = [[] for _ in acts]
        for _ in range(times):
            for act, seconds in zip(acts, taken, strict=True):
                self.check()
                seconds.append(timed(act, clock))
        return [Samples(tuple(seconds)) for seconds in taken]

    def deadline(self, what: str) -> Deadline:
        return Deadline.after(self.options.deadline, what)


def timed(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds; of wall time, unless the clock is another one."""
    started = clock()
    act()
    return clock() - started


@dataclass(frozen=True)
class Bare:
    """A guest booted as `rig run` boots it, with nothing of the rig around it. boot: seconds from QEMU's start to its
    shell."""

    vm: Vm
    artefacts: Artefacts
    plan: RunPlan
    boot: float

    def arm(self, bench: Bench) -> arming.Self:
        """Load the crash kernel."""
        load, cmdline = LOADS[self.plan.scenario.load], self.artefacts.crash_cmdline
        return arming.arm(self.vm.shell, load, cmdline, bench.deadline("the crash kernel to be loaded"))


@contextlib.contextmanager
def booted(bench: Bench, plan: RunPlan) -> Iterator[Bare]:
    """The guest of a plan, at its shell."""
    with _artefacts(bench, plan, template=False) as artefacts:
        started = time.perf_counter()
        with Vm(artefacts.machine, cancel=bench.cancel) as vm:
            vm.shell.wait_hello("first", bench.deadline("the first shell"))
            yield Bare(vm, artefacts, plan, time.perf_counter() - started)


@contextlib.contextmanager
def restored(bench: Bench, plan: RunPlan) -> Iterator[Bare]:
    """The same guest, armed, from the template that an earlier `rig run` of the plan has made. MachineError when there
    is none."""
    with _artefacts(bench, plan, template=True) as artefacts:
        if artefacts.template is None:
            raise MachineError(f"no template was made of {plan.id}", hint="`rig run` says why, in a note")
        started = time.perf_counter()
        with Vm(artefacts.machine, cancel=bench.cancel, standing=artefacts.template.standing) as vm:
            vm.cont()
            yield Bare(vm, artefacts, plan, time.perf_counter() - started)


@contextlib.contextmanager
def _artefacts(bench: Bench, plan: RunPlan, *, template: bool) -> Iterator[Artefacts]:
    options = replace(bench.options, template=template)
    with scratch() as folder, prepare(plan, options, folder, lambda _: None, bench.cancel) as found:
        yield found


def scratch() -> contextlib.AbstractContextManager[Path]:
    """A directory that is gone afterwards."""
    return unfinished.temporary("bench")


@contextlib.contextmanager
def started_rig(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """`rig ...` as a user starts it, in a process of its own. When the block is left early it ends, guests and all."""
    command = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "rig", *words]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield process
            if process.wait():
                out.seek(0)
                raise MachineError(f"`rig {' '.join(words)}` exited with {process.returncode}:\n{out.read()}")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()


def rig(bench: Bench, *words: str | os.PathLike[str]) -> float:
    """Seconds from the command line to the end of a rig that must pass. MachineError when it does not."""
    line = [os.fspath(word) for word in words]
    started = time.perf_counter()
    with started_rig([*line, *bench.words]) as process:
        wait(bench, process)
    return time.perf_counter() - started


def wait(bench: Bench, process: subprocess.Popen[str]) -> None:
    """Until it ends, and no longer: Popen.wait with a timeout looks only now and then. Raises Cancelled."""
    descriptor = os.pidfd_open(process.pid)
    try:
        while not select.select([descriptor], [], [], POLL)[0]:
            bench.check()
    finally:
        os.close(descriptor)


def require_restored(runs: Iterable[Path], wanted: bool) -> None:
    """MachineError when one of these runs went on from a template where it was not to, or did not where it was to."""
    for run in runs:
        told = environment(run)["template"]
        if told["used"] is not wanted:
            words = "went on from a template" if told["used"] else f"booted its guest: {told['why']}"
            raise MachineError(f"{run.name} {words}")


def environment(run: Path) -> dict[str, Any]:
    """What a run's result says of the circumstances."""
    told: dict[str, Any] = msgspec.json.decode((run / "result.json").read_bytes())["environment"]
    return told
