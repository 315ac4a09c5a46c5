"""Commands in which the user takes part: `rig run --stop-at`, `rig shell`."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from rig import cli, terminal
from rig.model import Checkpoint, Options, RunPlan, RunResult
from rig.stop_at import Attachment, StopAt
from tests.cli.pretended import Conductor, result, words


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Stdin is a pipe; yields the end that the user writes to."""
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "__stdin__", stdin)
        yield write
    os.close(write)


@pytest.fixture
def held(conductor: Conductor) -> list[StopAt]:
    """What the runs were told to stop at."""
    stops: list[StopAt] = []

    def run(
        plan: RunPlan, options: Options, _listener: object, _cancel: object, stop: StopAt
    ) -> tuple[RunResult, Path]:
        stops.append(stop)
        assert stop.folder.is_dir()
        stop.tell(Attachment(plan.id, stop.checkpoint, "gdb G", "qmp-shell Q", "tail -f C", ("CPU 0 at 0x1",)))
        return result(plan), options.results / plan.slug

    conductor(run)  # type: ignore[arg-type]  # only held runs are given the last one
    return stops


@pytest.mark.usefixtures("user")
def test_a_held_run_says_how_to_get_at_the_guest(held: list[StopAt], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic --guest pae --stop-at handover")) == 0
    out, err = capsys.readouterr()
    assert [stop.checkpoint for stop in held] == [Checkpoint.HANDOVER]
    assert not held[0].folder.exists()
    assert "panic@pae/debian-6.1: pass" in out
    assert "panic@pae/debian-6.1: held at handover\n  CPU 0 at 0x1\n" in err
    assert "\n    gdb G\n    qmp-shell Q\n    tail -f C\n  Enter lets the run go on" in err


@pytest.mark.usefixtures("user", "held")
def test_with_json_it_says_so_on_one_line_of_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic --guest pae --stop-at armed --json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["runs"][0]["result"]["verdict"] == "pass"
    (line,) = [line for line in err.splitlines() if line.startswith("{")]
    assert json.loads(line)["held"]["gdb"] == "gdb G"


@pytest.mark.usefixtures("user")
def test_several_guests_are_refused(held: list[StopAt], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic --stop-at armed")) == 2
    assert "choose one with --guest: i386, pae, x86_64" in capsys.readouterr().err
    assert not held


# ---------------------------------------------------------------- rig shell


class Shell:
    def run(self, script: str, _deadline: object) -> str:
        return f"ran {script}"


def test_a_shell_runs_what_stdin_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def booted(plan: RunPlan, _options: Options, arm: bool, *_: object) -> Iterator[tuple[object, object]]:
        seen.append((plan.id, arm))
        yield SimpleNamespace(shell=Shell()), SimpleNamespace(release="6.1.0")

    monkeypatch.setattr(terminal, "booted", booted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("uname\n"))
    assert cli.main(words("shell pae")) == 0
    assert capsys.readouterr().out == "ran uname\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("uname\n"))
    assert cli.main(words("shell pae --arm dump-raw --kernel debian-6.5 --json")) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "ran uname\n"
    assert seen == [("panic@pae/debian-6.1", False), ("dump-raw@pae/debian-6.5", True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shell pae", "stdin is neither a terminal nor a script"),
        ("shell pea", "did you mean 'pae'?"),
        ("shell pae --arm pnic", "did you mean 'panic'?"),
        ("shell pae-nopae", "CPU flag pae"),
    ],
)
def test_no_guest_boots_for_a_wrong_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    monkeypatch.setattr(terminal, "booted", lambda *_: pytest.fail("a guest was started"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert cli.main(words(line)) == 2
    assert message in capsys.readouterr().err
