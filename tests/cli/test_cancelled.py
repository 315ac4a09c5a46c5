"""Commands that are stopped by a signal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rig import cli
from rig.commands import stock
from rig.commands.common import cancel_on_signal
from rig.errors import Cancelled
from rig.model import Options, RunPlan, RunResult
from tests.cli.pretended import CHECKS, ROOT, Conductor, result, words


def test_cancelled_before_anything_was_written(conductor: Conductor, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_plan: RunPlan, _options: Options, _listener: object, cancel: threading.Event) -> tuple[RunResult, Path]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert cancel.wait(20)
        raise Cancelled("stopped")

    conductor(run)
    assert cli.main(words("run panic")) == 130
    assert capsys.readouterr().err.endswith("rig: cancelled: nothing was written\n")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)  # a second one while the process ends: nothing


def test_cancelled_after_a_run_had_finished(conductor: Conductor, capsys: pytest.CaptureFixture[str]) -> None:
    def run(plan: RunPlan, _options: Options, _listener: object, cancel: threading.Event) -> tuple[RunResult, Path]:
        if plan.guest.name == "i386":
            return result(plan), Path("there")
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wait(20)
        raise Cancelled("stopped")

    conductor(run)
    assert cli.main(words("run panic --jobs 1")) == 130
    out, err = capsys.readouterr()
    assert out == "panic@i386/debian-6.1: pass\nin there\n"
    assert err.endswith("rig: cancelled: 2 of 3 runs; nothing was written for them\n")


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From outside: SIGINT while a run waits; the exit code, what is said, and no stack trace."""
    script = textwrap.dedent(
        f"""
        import sys, types, threading
        def put(name, **attributes):
            sys.modules[name] = module = types.ModuleType(name)
            vars(module).update(attributes)
        def run(plan, options, listener, cancel):
            listener("boot")
            print("READY", file=sys.stderr, flush=True)
            assert cancel.wait(20)
            from rig.errors import Cancelled
            raise Cancelled("stopped")
        from rig.model import Dump, LoadKind
        entry = types.SimpleNamespace(dumps=tuple(Dump), kinds=tuple(LoadKind), own_task=False, by_handover=True)
        put("rig.checks", REGISTRY=dict.fromkeys({CHECKS!r}, entry))
        put("rig.conductor", run=run)
        from rig.cli import main
        raise SystemExit(main(["run", "panic", "--guest", "pae"]))
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "READY" not in seen and (line := process.stderr.readline()):
            seen += line
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # as `timeout -s INT` does: to the process, then to its group
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, ""), seen + err
    assert "rig: SIGINT: ending the guests" in err
    assert "Traceback" not in seen + err


def test_a_signal_that_does_not_wake_the_main_thread() -> None:
    """As when it comes just before that begins to wait: Python's own handlers run in the main thread only."""
    with cancel_on_signal() as cancel:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this thread: another one gets it
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            assert cancel.wait(10)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_signal_whose_message_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is closed, which is what SIGHUP says: writing to it fails."""

    def gone(_descriptor: int, _text: bytes) -> int:
        raise OSError(errno.EIO, "gone")

    with cancel_on_signal() as cancel:
        monkeypatch.setattr(os, "write", gone)
        os.kill(os.getpid(), signal.SIGHUP)
        assert cancel.wait(10)


def test_a_signal_while_another_is_dealt_with(tmp_path: Path) -> None:
    """The second comes when the event that the first sets has its lock taken: whoever takes it again waits for ever."""
    script = textwrap.dedent(
        """
        import os, signal, threading
        from rig.commands.common import cancel_on_signal
        notify_all = threading.Condition.notify_all
        def interrupted(condition):
            threading.Condition.notify_all = notify_all
            os.kill(os.getpid(), signal.SIGINT)
            notify_all(condition)
        with cancel_on_signal() as cancel:
            threading.Condition.notify_all = interrupted
            os.kill(os.getpid(), signal.SIGINT)
            cancel.wait()
        print("ended")
        """
    )
    done = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert done.communicate(timeout=60) == ("ended\n", "\nrig: SIGINT: ending the guests\n")
    finally:
        done.kill()


def test_ctrl_c_in_other_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stock, "list_", interrupted)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "rig: cancelled\n"


def test_a_second_ctrl_c_in_the_middle_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event.set() holds a lock, so that a handler which called it within itself would never end."""
    calls: list[bool] = []

    def interrupted_again() -> None:
        calls.append(True)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)

    with cancel_on_signal() as cancel:
        monkeypatch.setattr(cancel, "set", interrupted_again)
        signal.raise_signal(signal.SIGINT)
    assert calls == [True]
