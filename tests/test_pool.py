from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rig import pool
from rig.errors import Cancelled, MachineError, RequestError
from rig.model import (
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


def make_plan(name: str, memory: int = 512) -> RunPlan:
    return RunPlan(SCENARIO, replace(GUEST, name=name, memory=memory), KERNEL, KERNEL)


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


@pytest.mark.parametrize(
    ("memory", "wanted", "cores", "available", "expected"),
    [
        # 512 MiB need 1224
        ([512, 512, 512], 0, 8, 100_000, 3),  # no more than there are plans
        ([512, 512, 512], 0, 2, 100_000, 2),
        ([512, 512, 512], 3, 2, 100_000, 3),  # --jobs may go beyond the cores
        ([512, 512, 512], 3, 2, 3 * 1224 - 1, 2),  # but not beyond the memory
        ([512, 512, 512], 0, 8, 1224, 1),
        ([512, 1024], 0, 8, 2248 + 1223, 1),  # the largest of them together must fit
        ([512, 1024], 0, 8, 2248 + 1224, 2),
    ],
)
def test_workers(memory: list[int], wanted: int, cores: int, available: int, expected: int) -> None:
    plans = [make_plan(str(i), size) for i, size in enumerate(memory)]
    assert pool.workers(plans, wanted, cores, available) == expected


def test_a_large_guest_needs_what_it_touches_of_its_memory() -> None:
    small, large, larger = (pool.need(make_plan("a", memory=memory)) for memory in (1024, 5120, 65536))
    assert (small, large) == (2 * 1024 + pool.OVERHEAD, 2 * (pool.TOUCHED + 80) + pool.OVERHEAD)
    # of 64 GiB the struct pages alone are 1 GiB
    assert larger - large == 2 * (1024 - 80)


def test_not_even_one_fits() -> None:
    with pytest.raises(MachineError) as raised:
        pool.workers([make_plan("a")], 0, 8, 1223)
    assert raised.value.message == "not enough memory: one guest needs 1224 MiB, 1223 MiB are available"
    assert raised.value.exit_code == 3


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
    outcomes = pool.run_all(plans, run, 3, log, threading.Event())
    assert [outcome and outcome[0].id for outcome in outcomes] == [plan.id for plan in plans]
    assert [line[1:] for line in log.lines if line[0] == "panic@b/k"] == [("start",), ("boot",), ("end", "pass")]


def test_what_is_unexpected_is_said() -> None:
    def run(plan: RunPlan, listener: pool.Listener, cancel: threading.Event) -> pool.Finished:
        return replace(make_result(plan), verdict=Verdict.FAIL, surprise="pgd-survives failed"), Path()

    log = Log()
    pool.run_all([make_plan("a")], run, 1, log, threading.Event())
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
        pool.run_all([make_plan(name) for name in "abc"], run, 2, log, threading.Event())
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

    outcomes = pool.run_all([make_plan(name) for name in "abc"], run, 1, Log(), cancel)
    assert [outcome is None for outcome in outcomes] == [False, True, True]
