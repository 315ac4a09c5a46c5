"""What the families do without a guest, at small sizes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from rig.bench import FAMILIES, matrix, measure, memory, processes, run, walk
from rig.bench.figures import Figure, Samples
from rig.bench.setting import Bench, require_restored, rig, started_rig, wait
from rig.errors import Cancelled, EvidenceError, MachineError
from rig.memory.image import PagesMemory
from rig.memory.paging import walk as page_walk
from rig.model import Options, PagingMode, RunPlan


@pytest.fixture
def bench() -> Bench:
    return Bench([], Options(), [], lambda _: None, threading.Event())


def test_every_family_can_be_measured(bench: Bench) -> None:
    for name in FAMILIES:
        assert callable(__import__(f"rig.bench.{name}", fromlist=["measure"]).measure)
    with pytest.raises(KeyError):
        measure("figures", bench)


def test_dense_images(bench: Bench) -> None:
    found = {figure.name: figure for figure in memory.dense(bench, 4)}
    comparison = found["comparison of 4 MiB"]
    assert comparison.value is not None
    assert comparison.value > 0
    assert comparison.bound == memory.COMPARISON
    assert comparison.beside.startswith("cmp")
    assert found["capture of 4 MiB"].bound == memory.CAPTURE
    assert found["hashing of every page, 4 MiB"].unit == "GB/s"
    assert len(found) == 5, "no two have the same name: a baseline knows them by it"


def test_growth_and_a_size_that_there_is_no_memory_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    *each, spread = memory.growth(bench, (1, 2))
    values = [figure.value for figure in each if figure.value]
    assert len(values) == 2
    assert spread.value == max(values) / min(values)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2 + memory.RESERVE - 1)
    *each, spread = memory.growth(bench, (1, 2))
    assert [figure.value is None for figure in (*each, spread)] == [False, True, True]
    assert "MiB of memory are needed" in each[1].missing


def test_what_takes_turns_is_done_once_unmeasured(bench: Bench) -> None:
    done: list[str] = []
    taken = bench.alternate(lambda: done.append("a"), lambda: done.append("b"), times=2)
    assert "".join(done) == "ababab"
    assert [len(samples.values) for samples in taken] == [2, 2]
    bench.cancel.set()
    with pytest.raises(Cancelled):
        bench.alternate(lambda: None)


def test_walks_that_differ_are_told() -> None:
    # a 2-level pgd whose second entry maps 4 MiB at 4 MiB
    pgd = bytearray(4096)
    pgd[4:8] = (0x400000 | 0x83).to_bytes(4, "little")
    space = page_walk(PagesMemory({0: bytes(pgd)}), PagingMode.TWO_LEVEL, 0)
    walk.require_same(space, np.array([(0x400000, 0x400000, 0x400000)], np.uint64))
    for wrong in ([(0x400000, 0x800000, 0x400000)], [(0x400000, 0x400000, 0x1000)], np.zeros((0, 3))):
        with pytest.raises(EvidenceError, match="volatility3"):
            walk.require_same(space, np.array(wrong, np.uint64))


def test_memory_of_a_process_and_its_children() -> None:
    """A child with 32 MiB of its own, and 16 MiB in a memfd that nobody has mapped."""
    code = (
        "import os; fd = os.memfd_create('held'); os.write(fd, bytes(16 << 20)); held = bytearray(b'x') * (32 << 20);"
        "print('ready', flush=True); input()"
    )
    command = ["sh", "-c", f'"{sys.executable}" -c "{code}"; true']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        assert shell.stdout.readline() == b"ready\n"
        pids = list(processes.family(shell.pid))
        assert len(pids) == 2
        assert 32 < sum(map(processes.proportional, pids)) < 64
        assert processes.unmapped_files(pids) == 16
        shell.stdin.write(b"\n")
    assert processes.proportional(shell.pid) == 0


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Set what a shell runs instead of Python."""

    def pretend(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return pretend


def test_a_rig_that_fails_is_told_with_its_words(bench: Bench, python: Callable[[str], None]) -> None:
    python('echo "no scenario is called $4"; exit 2')
    with pytest.raises(MachineError, match=r"(?s)`rig run nosuch` exited with 2.*no scenario is called nosuch"):
        rig(bench, "run", "nosuch")
    python('test "$*" = "-m rig run panic"')
    assert rig(bench, "run", "panic") > 0


def test_a_cancelled_rig_ends(bench: Bench, python: Callable[[str], None]) -> None:
    python("exec sleep 60")
    bench.cancel.set()
    with pytest.raises(Cancelled), started_rig(["run", "panic"]) as process:
        wait(bench, process)
    assert process.returncode is not None
    assert not os.path.exists(f"/proc/{process.pid}")


def test_ratios_are_of_pairs() -> None:
    figure: Figure = memory.ratio(Samples((2.0, 4.0)).over(Samples((1.0, 4.0))), "n", "b")
    assert (figure.value, figure.holds) == (1.5, None)


@pytest.mark.parametrize("cpus", [1, 2])
def test_matrix_is_measured_in_turns(bench: Bench, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = dataclasses.replace(bench, plans=[cast(RunPlan, SimpleNamespace(guest=SimpleNamespace(memory=512)))])
    booted = iter([matrix.Matrix(seconds, 400) for seconds in (80, 90)])
    single = iter([matrix.Matrix(seconds, peak) for seconds, peak in ((40, 300), (50, 310))])
    double = iter([matrix.Matrix(seconds, peak) for seconds, peak in ((20, 500), (20, 500))])
    order: list[str] = []

    def pretend(_: Bench, turn: str, jobs: int, *words: str, restores: bool | None) -> matrix.Matrix:
        order.append(f"{jobs}{''.join(words)}")
        assert restores is (None if turn == "templates" else not words)
        if turn == "templates":
            return matrix.Matrix(100, 400)
        return next(booted if words else double if jobs > 1 else single)

    monkeypatch.setattr(matrix, "_run", pretend)
    monkeypatch.setattr(matrix, "cores", lambda: cpus)
    templates, beside, each = matrix.measure(bench)
    assert order == [str(cpus), *["1--no-template", "1", "2"][: cpus + 1] * 2]
    assert templates.value == pytest.approx((80 / 40 + 90 / 50) / 2)
    assert templates.holds
    assert templates.noise
    if cpus == 1:
        assert beside.missing == each.missing == "this process may use 1 CPU"
    else:
        assert beside.value == pytest.approx((40 / 20 + 50 / 20) / 2)
        assert each.value == pytest.approx((200 + 190) / 2)


def test_runs_that_did_not_go_on_as_they_were_to(tmp_path: Path) -> None:
    """One that went on from a template, and one that booted its guest."""
    told: dict[str, dict[str, object]] = {
        "restored": {"used": True, "key": "0123", "made": "2026-11-01T00:00:00+00:00"},
        "booted": {"used": False, "why": "there was none"},
    }
    for name, template in told.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"environment": {"template": template}}))
    restored, booted = tmp_path / "restored", tmp_path / "booted"
    require_restored([restored], True)
    require_restored([booted], False)
    with pytest.raises(MachineError, match="booted booted its guest: there was none"):
        require_restored([restored, booted], True)
    with pytest.raises(MachineError, match="restored went on from a template"):
        require_restored([booted, restored], False)


# Of what the rig is held against 10 s, these seconds: how many turns settle a bound of 1.15, or how many are taken.
@pytest.mark.parametrize(
    ("seconds", "turns"),
    [
        ([11.0], run.TIMES),  # all below 11.5
        ([12.0], run.TIMES),  # all above
        ([12.0, 11.0, 11.0, 11.0, 11.0, 11.0, 11.0, 11.0, 11.0], 9),  # of five to eight the outermost ones count
        ([11.0, 12.0], run.MOST),
    ],
)
def test_turns_are_taken_until_they_settle_a_bound(bench: Bench, seconds: list[float], turns: int) -> None:
    said: list[str] = []
    bench = dataclasses.replace(bench, say=said.append)
    given = itertools.cycle(seconds)
    runs, times = list[run.Whole](), list[float]()

    def turn() -> Sequence[run.Ratio]:
        runs.append(run.Whole(next(given), 1.0, 1.0))
        times.append(10.0)
        return [run.Ratio("from a template", run.WARM, "bare", runs, times)]

    (ratio,) = run.settled(bench, "panic", turn)
    assert len(said) == len(runs) == turns
    figure = ratio.figure("pae")
    assert figure.value == ratio.each.median
    assert figure.beside == f"bare: {ratio.seconds.median:.1f} s to 10.0 s, {turns} pairs"
    assert said[0] == f"run: panic: 1 of {run.TIMES}"
    assert turns <= run.TIMES or said[-1] == f"run: panic: {turns} of at most {run.MOST}"
