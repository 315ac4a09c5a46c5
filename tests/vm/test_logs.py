"""QEMU's log, a file a thread: what was recorded, and what QEMU said by itself."""

from __future__ import annotations

from pathlib import Path

from rig.trace import parse
from rig.vm.logs import ThreadLogs
from rig.vm.tracing import together
from tests.forged_trace import KERNEL, Did, at, block, dump, trace_line


def test_recordings_are_kept_apart_from_the_rest(tmp_path: Path) -> None:
    logs = ThreadLogs(tmp_path / "logs")
    logs.create()
    first, second = tmp_path / "logs/99", tmp_path / "logs/100"  # in the order of numbers, not of names
    first.write_text("reset\n")
    marks = logs.marks()
    first.write_text("reset\nAAAA\n")
    second.write_text("BB\n")
    assert logs.grown(marks) == 8
    assert logs.take(marks, most=7) == ["AAAA\n", "BB"]
    second.write_text("BB\nTriple fault\n")
    assert logs.rest() == "reset\nTriple fault\n"
    assert logs.text() == "reset\nAAAA\nBB\nTriple fault\n"
    assert (logs.take(logs.marks(), most=9), logs.grown(logs.marks())) == ([], 0)
    logs.remove()
    assert list(tmp_path.iterdir()) == []


def test_code_that_another_cpu_met_first_is_known() -> None:
    own = trace_line(KERNEL, 0) + dump(at(KERNEL))
    other = block(Did(at(KERNEL), b"\x40"), number=1)
    trace = parse(together([own, other]), 0)
    assert [(step.code, trace.others) for step in trace.steps] == [(b"\x40", 1)]
