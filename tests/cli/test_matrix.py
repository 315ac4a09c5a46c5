from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rig import cli, conductor
from rig.errors import MachineError
from rig.model import Options, Phase, RunPlan, RunResult
from tests.cli.pretended import ROOT, Conductor, result

THREE = [f"panic@{guest}/debian-6.1" for guest in ("i386", "pae", "x86_64")]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RIG_CACHE", str(tmp_path / "cache"))


def test_a_matrix_is_planned_run_and_timed(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def run(plan: RunPlan, options: Options, _listener: object, _cancel: object) -> tuple[RunResult, Path]:
        asked.append((plan.id, options.refused_is_error))
        return replace(result(plan), phases=(Phase("boot", 7.0),)), tmp_path

    conductor(run)
    assert cli.main(["matrix", "quick", "--plan"]) == 0
    assert "is not known" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--jobs", "1"]) == 0
    assert asked[:3] == [(f"panic@{guest}/debian-6.1", True) for guest in ("i386", "pae", "x86_64")]
    assert f"{len(asked)} cells: {len(asked)} pass" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--plan", "--json"]) == 0
    assert {cell["seconds"] for cell in json.loads(capsys.readouterr().out)["cells"]} == {7.0}
    assert cli.main(["matrix", "quick", "--plan", "--json", "--shard", "2/3"]) == 0
    part = json.loads(capsys.readouterr().out)["cells"]
    assert 0 < len(part) < len(set(asked))
    assert {cell["id"] for cell in part} < {cell for cell, _ in asked}


# From here on with the real conductor but for `run`: what died is recorded by it.


def passed(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
    return replace(result(plan), environment=dict(options.remarks)), options.results


def broken(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
    if plan.guest.name == "pae":
        raise ZeroDivisionError("in the middle\nof the night")
    if plan.guest.name == "x86_64":
        raise MachineError("the evidence can't be kept: no space left", hint="make room")
    return passed(plan, options)


def ids_and_verdicts(out: str) -> dict[str, str]:
    return {run["result"]["id"]: run["result"]["verdict"] for run in json.loads(out)["runs"]}


def test_a_cell_that_the_rig_fails_in_is_that_cells_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(conductor, "run", broken)
    assert cli.main(["matrix", "panic", "--json", "--results", str(tmp_path / "r")]) == 3
    runs = [run["result"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert [run["verdict"] for run in runs] == ["pass", "error", "error"]
    bug, full = (run["error"] for run in runs[1:])
    assert bug["message"].startswith(
        "the rig itself failed: ZeroDivisionError: in the middle of the night; in broken ("
    )
    assert (full["kind"], full["message"]) == ("MachineError", "the evidence can't be kept: no space left")
    assert runs[1]["environment"]["retry_of"] == "panic_pae_debian-6.1"
    for name in ("panic_pae_debian-6.1", "panic_pae_debian-6.1.2"):
        assert "in the middle" in (tmp_path / "r" / name / "traceback.txt").read_text()
        assert (tmp_path / "r" / name / "report.html").exists()
    # One scenario is no night: there a bug ends the rig.
    assert cli.main(["run", "panic", "--guest", "pae"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_guest_that_never_fits_is_an_error_that_names_need_and_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(conductor, "run", passed)
    monkeypatch.setattr("rig.pool.available_memory", lambda: 2000)
    line = ["matrix", "machines@x86_64-5g/*", "panic@pae/*", "--no-retry", "--json", "--results", str(tmp_path / "r")]
    assert cli.main(line) == 3
    runs = {run["result"]["id"]: run["result"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert runs["panic@pae/debian-6.1"]["verdict"] == "pass"
    assert (
        "x86_64-5g needs 2408 MiB, 2000 MiB are available" in runs["machines@x86_64-5g/debian-6.1"]["error"]["message"]
    )


def test_killed_and_resumed_no_finished_cell_is_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """kill -9 in the middle of the second cell; then the rest of it, in this process."""
    script = textwrap.dedent(
        f"""
        import sys, time
        from rig import cli, conductor
        from rig.model import Failure
        def run(plan, options, listener, cancel):
            if plan.guest.name == "pae":
                print("READY", file=sys.stderr, flush=True)
                time.sleep(60)
            return conductor.record(plan, options, Failure("GuestDied", "QEMU died", "boot"))
        conductor.run = run
        cli.main(["matrix", "panic", "--jobs", "1", "--results", {str(tmp_path / "r")!r}])
        """
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        assert any("READY" in line for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    seen = []

    def run(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
        seen.append((plan.id, options.remarks.get("retry_because")))
        return passed(plan, options)

    monkeypatch.setattr(conductor, "run", run)
    line = ["matrix", "panic", "--jobs", "1", "--results", str(tmp_path / "r"), "--resume"]
    assert cli.main([*line, "--no-retry", "--json"]) == 3
    out, err = capsys.readouterr()
    assert seen == [(name, None) for name in THREE[1:]]
    assert ids_and_verdicts(out) == dict(zip(THREE, ("error", "pass", "pass"), strict=True))
    assert "rig: 1 of 3 cells are finished" in err
    seen.clear()
    assert cli.main(line) == 0
    assert seen[-1] == (THREE[0], "In phase boot: QEMU died")  # its second attempt was still due
    assert "3 cells: 3 pass; 1 retried" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--results", str(tmp_path / "r"), "--resume"]) == 2
    assert "is of another matrix: panic, not quick" in capsys.readouterr().err


def test_stopped_it_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(plan: RunPlan, options: Options, _tell: object, cancel: threading.Event) -> tuple[RunResult, Path]:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wait(20)
        return passed(plan, options)  # it had ended already

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(conductor, "run", run)
    assert cli.main(["matrix", "panic", "--jobs", "1", "--results", str(tmp_path / "r")]) == 130
    for number, handler in handlers.items():  # a cancelled command leaves its own
        signal.signal(number, handler)
    out, err = capsys.readouterr()
    assert "1 cell: 1 pass" in out
    assert err.endswith("rig: cancelled: 2 of 3 cells are left; the same command with --resume goes on from here\n")


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4"])
def test_shards_that_are_none(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["matrix", f"--shard={shard}", "--plan"])
    assert raised.value.code == 2
    assert f"{shard!r} is not K/N" in capsys.readouterr().err
