from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rig import pool
from rig.errors import Cancelled, RequestError
from rig.model import (
    Dump,
    Kernel,
    KernelIdentity,
    RunPlan,
    RunResult,
    Scenario,
    Verdict,
)
from tests.forge import GUEST

DEADLINE = 20.0  # seconds; a test that waits this long has failed
SCENARIO = Scenario(name="panic", description="", trigger="t", checks=("c",), guests=("a",))
KERNEL = Kernel(name="k", description="", package="p")


def make_plan(name: str, memory: int = 512, cpus: int = 1) -> RunPlan:
    return RunPlan(SCENARIO, replace(GUEST, name=name, memory=memory, cpus=cpus), KERNEL, KERNEL)


def room(cpus: int) -> pool.Capacity:
    return pool.Capacity(cpus, PLENTY)


def make_result(plan: RunPlan) -> RunResult:
    kernel = KernelIdentity("k", "6.1", "00")
    return RunResult(
        plan.id,
        "panic",
        plan.guest.name,
        kernel,
        kernel,
        Verdict.PASS,
        Verdict.PASS,
        checks=(),
        phases=(),
        environment={},
    )


class Log:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def start(self, run: str) -> None:
        self.lines.append((run, "start"))

    def say(self, run: str, text: str) -> None:
        self.lines.append((run, text))

    def end(self, run: str, outcome: str) -> None:
        self.lines.append((run, "end", outcome))


SMALL = 2 * 512 + pool.OVERHEAD  # MiB that a guest of 512 needs
PLENTY = 100_000


def begun(agenda: pool.Agenda) -> list[int]:
    """What is begun before any ends."""
    return list(iter(agenda.begin, None))


@pytest.mark.parametrize(
    ("guests", "cpus", "memory", "expected"),
    [  # (CPUs, MiB) of each guest; the numbers of those that run at first
        ([(1, 512)] * 3, 2, PLENTY, [0, 1]),
        ([(1, 512)] * 3, 8, PLENTY, [0, 1, 2]),
        ([(1, 512)] * 3, 8, 2 * SMALL, [0, 1]),  # no more than fit into memory
        ([(1, 512)] * 3, 8, 2 * SMALL - 1, [0]),
        ([(1, 512), (4, 512), (2, 512)], 4, PLENTY, [1]),  # one with all CPUs has them for itself
        ([(1, 512), (3, 512), (2, 512)], 4, PLENTY, [1, 0]),  # the largest first; what fits beside it
        ([(4, 512), (1, 512)], 2, PLENTY, [0]),  # larger than the machine: alone
        ([(1, 512), (1, 1024)], 2, 2 * 1024 + pool.OVERHEAD + SMALL, [1, 0]),
        ([(1, 512), (1, 1024)], 2, 2 * 1024 + pool.OVERHEAD + SMALL - 1, [1]),
        ([(1, 1024)], 2, 100, [0]),  # not even one fits: what to do about that is not the agenda's
    ],
)
def test_what_runs_side_by_side(guests: list[tuple[int, int]], cpus: int, memory: int, expected: list[int]) -> None:
    plans = [make_plan(str(number), size, count) for number, (count, size) in enumerate(guests)]
    assert begun(pool.Agenda(plans, pool.Capacity(cpus, memory))) == expected


def test_what_ends_makes_room_and_whole_dumps_and_skips_come_first() -> None:
    dump = replace(SCENARIO, dump=Dump.RAW)
    plans = [
        make_plan("usual"),
        make_plan("wide", cpus=2),
        replace(make_plan("dump"), scenario=dump),
        replace(make_plan("skipped", cpus=2), skip="there is none"),
    ]
    agenda = pool.Agenda(plans, pool.Capacity(2, PLENTY))
    assert begun(agenda) == [3, 2, 0]  # two CPUs are not free beside the dump
    agenda.end(0)
    assert begun(agenda) == []
    agenda.end(2)
    assert begun(agenda) == [1]
    assert agenda.empty


def test_a_large_guest_needs_what_it_touches_of_its_memory() -> None:
    small, large, larger = (pool.need(make_plan("a", memory=memory)) for memory in (1024, 5120, 65536))
    assert (small, large) == (2 * 1024 + pool.OVERHEAD, 2 * (pool.TOUCHED + 80) + pool.OVERHEAD)
    # of 64 GiB the struct pages alone are 1 GiB
    assert larger - large == 2 * (1024 - 80)


def test_not_even_one_fits() -> None:
    lack = pool.lack(make_plan("a"), SMALL - 1)
    assert lack is not None
    assert lack.message == "not enough memory: a needs 1224 MiB, 1223 MiB are available"
    assert lack.exit_code == 3
    assert pool.lack(make_plan("a"), SMALL) is None
    assert pool.lack(replace(make_plan("a"), skip="there is none"), 0) is None


def test_available_memory_of_a_machine_and_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000000 kB\nMemAvailable:   4194304 kB\nHugePages_Total:  0\n")
    assert pool.available_memory(meminfo, tmp_path) == 4096
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1048576\n")
    assert pool.available_memory(meminfo, tmp_path) == 4096
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    assert pool.available_memory(meminfo, tmp_path) == 1023
    (tmp_path / "memory.max").write_text("4096\n")
    assert pool.available_memory(meminfo, tmp_path) == 0


def test_available_memory_of_this_machine() -> None:
    assert 0 < pool.available_memory() < 1 << 30
    assert pool.cores() >= 1


def test_results_come_in_the_order_of_the_plans() -> None:
    plans = [make_plan(name) for name in "abc"]
    c_done = threading.Event()

    def run(plan: RunPlan, listener: pool.Listener, cancel: threading.Event) -> pool.Finished:
        listener("boot")
        if plan.guest.name == "c":
            c_done.set()
        assert c_done.wait(DEADLINE)  # the last one ends first
        return make_result(plan), Path(plan.slug)

    log = Log()
    outcomes = pool.run_all(plans, run, room(3), log, threading.Event())
    assert [outcome and outcome[0].id for outcome in outcomes] == [plan.id for plan in plans]
    assert [line[1:] for line in log.lines if line[0] == "panic@b/k"] == [("start",), ("boot",), ("end", "pass")]


def test_what_is_unexpected_is_said() -> None:
    def run(plan: RunPlan, listener: pool.Listener, cancel: threading.Event) -> pool.Finished:
        return replace(make_result(plan), verdict=Verdict.FAIL, surprise="pgd-survives failed"), Path()

    log = Log()
    pool.run_all([make_plan("a")], run, room(1), log, threading.Event())
    assert log.lines[-1] == ("panic@a/k", "end", "fail, unexpected")


@pytest.mark.parametrize("error", [RequestError("no such image"), ZeroDivisionError()])
def test_the_first_error_cancels_the_rest_and_is_raised(error: Exception) -> None:
    running = threading.Event()
    ended = []

    def run(plan: RunPlan, listener: pool.Listener, cancel: threading.Event) -> pool.Finished:
        if plan.guest.name == "a":
            running.set()
            assert cancel.wait(DEADLINE)
            ended.append("a")
            raise Cancelled("stopped")
        assert running.wait(DEADLINE)
        raise error

    log = Log()
    with pytest.raises(type(error)):
        pool.run_all([make_plan(name) for name in "abc"], run, room(2), log, threading.Event())
    assert ended == ["a"]  # it was waited for
    assert not any(line[0] == "panic@c/k" for line in log.lines)  # it never started
    assert ("panic@a/k", "end", "cancelled") in log.lines


def test_cancelled_runs_leave_none() -> None:
    cancel = threading.Event()

    def run(plan: RunPlan, listener: pool.Listener, stop: threading.Event) -> pool.Finished:
        if plan.guest.name == "b":
            cancel.set()
            raise Cancelled("stopped")
        return make_result(plan), Path()

    outcomes = pool.run_all([make_plan(name) for name in "abc"], run, room(1), Log(), cancel)
    assert [outcome is None for outcome in outcomes] == [False, True, True]


def test_runs_that_are_repeated_are_told_apart() -> None:
    one, other = make_plan("a"), make_plan("b")
    assert pool.numbered([one, other, one]) == [f"{one.id} #1", other.id, f"{one.id} #2"]


# A process in which the C library keeps 50 MiB that nobody uses; prints by how many MiB it gets smaller.
KEEPS = """
from rig import pool
def used():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [b"x" * (1 << 16) for _ in range(800)]
del blocks[:-1]
before = used()
pool._give_back_memory()
print((before - used()) >> 20)
"""


def test_between_runs_memory_that_nobody_uses_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) >= 40
