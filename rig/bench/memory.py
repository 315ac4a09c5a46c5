"""Memory images: their copy, comparison and hashing, beside cmp, numpy and plain reading; and how it grows with size.

The images are all noise, in memory, so nothing is gained by what they hold; a sparse one is what a guest leaves.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import Bench, booted
from rig.errors import EvidenceError, MachineError
from rig.memory.snapshot import Snapshot
from rig.model import PAGE_SIZE, Checkpoint
from rig.pool import available_memory
from rig.recorder import Recorder
from rig.vm.machine import ram_ranges

MIB = 1 << 20
SIZE = 512  # MiB, of the guest that the goals are about
SIZES = (256, 512, 1024, 2048, 4096)  # MiB
LARGE = 4096  # MiB, of a guest that touches a small part of it
RESERVE = 2048  # MiB left to everybody else
_PIECE = 16 * MIB

COMPARISON = Bound(1.3)
CAPTURE = Bound(2.0)
HASHING = Bound(2.0, at_least=True)  # GB/s
# The dearest GiB over the cheapest one: were it quadratic, it would be 16.
LINEAR = Bound(2.0)
# Of a guest's memory, what it may take of the host's in all: QEMU, what the guest touched, and that once more.
SPARSE = Bound(0.33)


def measure(bench: Bench) -> list[Figure]:
    return [*dense(bench, SIZE), *growth(bench, SIZES), *_sparse_guest(bench)]


# ---------------------------------------------------------------- an image of noise


@contextlib.contextmanager
def noise(size: int) -> Iterator[int]:
    """A file in memory of so many bytes. No page of it is like another one in the same piece."""
    with os.fdopen(os.memfd_create("rig-noise"), "wb") as file:
        piece = np.random.default_rng(1).bytes(min(_PIECE, size))
        for start in range(0, size, len(piece)):
            file.write(piece[: size - start])
        file.flush()
        yield file.fileno()


def _path(fd: int) -> Path:
    """By which another program can open it."""
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


def require_memory(megabytes: int) -> None:
    """MachineError when the machine has not so much (MiB) to spare."""
    if (available := available_memory()) < megabytes + RESERVE:
        raise MachineError(f"{megabytes + RESERVE} MiB of memory are needed, {available} MiB are available")


# ---------------------------------------------------------------- beside cmp and numpy


def dense(bench: Bench, megabytes: int) -> list[Figure]:
    """Two images that differ in their last byte, so that cmp has to read them to their ends."""
    size = megabytes * MIB
    require_memory(4 * megabytes)
    bench.say(f"memory: images of {megabytes} MiB")
    with noise(size) as before, noise(size) as after:
        last = os.pread(after, 1, size - 1)
        os.pwrite(after, bytes([last[0] ^ 1]), size - 1)
        return [*_comparison(bench, before, after, megabytes), *_capture(bench, before, megabytes)]


def _comparison(bench: Bench, before: int, after: int, megabytes: int) -> list[Figure]:
    snapshot = Snapshot(before, megabytes * MIB)

    def ours() -> None:
        found = snapshot.changed(other=after).tolist()
        if found != [megabytes * MIB // PAGE_SIZE - 1]:
            raise EvidenceError(f"the comparison found the pages {found} to differ, and not the last one alone")

    def cmp() -> None:
        done = subprocess.run(["cmp", "-s", _path(before), _path(after)], check=False)
        if done.returncode != 1:
            raise MachineError(f"cmp exited with {done.returncode} for two files that differ")

    own, their = bench.alternate(ours, cmp)
    name, beside = f"comparison of {megabytes} MiB", "cmp of two such files in memory"
    return [ratio(own.over(their), name, beside, COMPARISON)]


def _capture(bench: Bench, image: int, megabytes: int) -> list[Figure]:
    size = megabytes * MIB
    words = np.frombuffer(os.pread(image, size, 0), np.uint64)
    snapshot = Snapshot(image, size)
    if snapshot.kept != size:
        raise EvidenceError(f"of {size} bytes of noise {snapshot.kept} were kept")

    def capture() -> None:
        Snapshot(image, size).close()

    own, file, numpy, hashing, reading = bench.alternate(
        capture, lambda: _dd(image), words.copy, snapshot.hashes, lambda: np.bitwise_or.reduce(words)
    )
    speed = Samples(tuple(size / 1e9 / seconds for seconds in hashing.values))
    return [
        ratio(own.over(file), f"capture of {megabytes} MiB", "dd into another file in memory", CAPTURE),
        # Not bound: where huge pages are at hand, as they are from the second time on, they make numpy's copy cheap;
        # in the one capture of a run they are not.
        ratio(own.over(numpy), "the same, beside huge pages", "numpy's copy, again and again"),
        Figure("memory", f"hashing of every page, {megabytes} MiB", speed.median, "GB/s", "", "", HASHING, speed.noise),
        ratio(hashing.over(reading), "the same, beside plain reading", "numpy reading as much once"),
    ]


def _dd(image: int) -> None:
    with os.fdopen(os.memfd_create("rig-copy"), "wb") as copied:
        command = ["dd", "bs=1M", "status=none", f"if={_path(image)}", f"of={_path(copied.fileno())}"]
        if subprocess.run(command, check=False).returncode:
            raise MachineError(f"`{' '.join(command)}` failed", hint="dd is in the package coreutils")


def ratio(samples: Samples, name: str, beside: str, bound: Bound | None = None) -> Figure:
    return Figure("memory", name, samples.median, "x", beside=beside, bound=bound, noise=samples.noise)


# ---------------------------------------------------------------- growth


def growth(bench: Bench, sizes: Sequence[int]) -> list[Figure]:
    """CPU seconds for each GiB at each size (MiB), and the dearest one over the cheapest: the sizes are measured one
    after the other, and meanwhile the machine's load may change. A size that the machine has no
    memory for is missing, and the comparison with it."""
    figures = [_at_size(bench, megabytes) for megabytes in sizes]
    name, beside = "the dearest GiB of these", "the cheapest"
    found = [figure.value for figure in figures if figure.value is not None]
    if len(found) < len(figures):
        missing = "not every size was"
        return [*figures, Figure("memory", name, None, "x", beside=beside, bound=LINEAR, missing=missing)]
    spread = max(figure.noise or 0 for figure in figures)
    return [
        *figures,
        Figure("memory", name, max(found) / min(found), "x", beside=beside, bound=LINEAR, noise=spread),
    ]


def _at_size(bench: Bench, megabytes: int) -> Figure:
    name = f"capture, compare, hash {megabytes} MiB"
    try:
        require_memory(2 * megabytes)
    except MachineError as lack:
        return Figure("memory", name, None, "s/GiB", missing=lack.message)
    bench.say(f"memory: an image of {megabytes} MiB")
    with noise(megabytes * MIB) as image:
        (taken,) = bench.alternate(_all_of(bench, image, megabytes * MIB), times=3, clock=time.process_time)
    costs = Samples(tuple(seconds / megabytes * 1024 for seconds in taken.values))
    return Figure("memory", name, costs.median, "s/GiB", noise=costs.noise)


def _all_of(bench: Bench, image: int, size: int) -> Callable[[], None]:
    def act() -> None:
        snapshot = Snapshot(image, size)
        bench.check()  # of a large image each of these takes seconds
        changed = snapshot.changed(other=image)
        bench.check()
        if len(changed) or len(snapshot.hashes()) != size // PAGE_SIZE:
            raise EvidenceError("an image differs from itself")
        snapshot.close()

    return act


# ---------------------------------------------------------------- a large guest that touches little


@dataclass(frozen=True)
class Cost:
    """What a guest and its capture take of the host, MiB. qemu: without the guest's memory."""

    qemu: float
    touched: float
    captured: float

    @property
    def total(self) -> float:
        return self.qemu + self.touched + self.captured


def _sparse_guest(bench: Bench) -> list[Figure]:
    """The last of the guests, as one that can have so much memory, with that much."""
    plan = bench.plans[-1]
    large = replace(plan, guest=replace(plan.guest, memory=LARGE))
    bench.say(f"memory: {plan.guest.name} with {LARGE} MiB")
    with booted(bench, large) as bare:
        vm, spec = bare.vm, bare.artefacts.machine
        vm.stop()
        with Recorder(vm.ram, ram_ranges(spec), vm.pmemsave) as recorder:
            before = _resident(os.getpid(), "Anonymous")
            recorder.capture(Checkpoint.PANIC)
            captured = _resident(os.getpid(), "Anonymous") - before
            (again,) = bench.alternate(lambda: recorder.capture(Checkpoint.MACHINE_KEXEC), times=3)
        touched = os.fstat(vm.ram_fd).st_blocks * 512 / MIB
        cost = Cost(_resident(vm.pid, "Anonymous"), touched, captured)
    beside = f"{LARGE} MiB: QEMU {cost.qemu:.0f}, touched {cost.touched:.0f}, captured {cost.captured:.0f} MiB"
    name = f"memory that a guest of {LARGE} MiB and its capture take"
    return [
        Figure("memory", name, cost.total / LARGE, "x", plan.guest.name, beside, SPARSE),
        Figure("memory", f"comparison of such a guest's {LARGE} MiB", again.median, "s", plan.guest.name),
    ]


def _resident(pid: int, field: str) -> float:
    """MiB, of a line of /proc/PID/smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) / 1024
    raise MachineError(f"/proc/{pid}/smaps_rollup has no line {field}")
