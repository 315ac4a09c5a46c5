"""Trouble on real guests: the right words, the right exit code, nothing lost, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rig.history import FILE, History
from tests.runs.conftest import ROOT, rig, rig_command

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

GUEST = """
description = "i386, but: {what}"
arch = "i386"
paging = "2-level"
flavour = "686"
kernel = "debian-6.1"
memory = 512
cpus = 1
machine = "pc"
cpu = "qemu64,+rdrand"
crashkernel = "{crashkernel}"
cmdline = "{cmdline}"
crash_cmdline = "{crash_cmdline}"
"""


def own_guest(folder: Path, *, crashkernel: str = "160M", cmdline: str = "", crash_cmdline: str = "") -> Path:
    """A catalogue with one guest called `odd`."""
    text = GUEST.format(what="odd", crashkernel=crashkernel, cmdline=cmdline, crash_cmdline=crash_cmdline)
    (folder / "guests").mkdir(parents=True)
    (folder / "guests" / "odd.toml").write_text(text)
    return folder


class Running:
    """A rig in the middle of a run. lines: what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def wait_for(self, words: str, seconds: float = 120) -> None:
        with self._news:
            found = self._news.wait_for(lambda: any(words in line for line in self.lines), seconds)
        assert found, "".join(self.lines)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "".join(self.lines)
            assert self.process.poll() is None, "".join(self.lines)

    def qemu(self) -> psutil.Process:
        """Its QEMU."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.name().startswith("qemu-system"):
                    return child
            self.process.poll()
        raise AssertionError("no QEMU was started")


@contextmanager
def running(*words: str | Path) -> Iterator[Running]:
    process = subprocess.Popen(
        rig_command(*words),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


def is_gone(process: psutil.Process) -> bool:
    """Whether it ends within some seconds."""
    gone, _ = psutil.wait_procs([process], timeout=20)
    return bool(gone)


def test_a_crash_region_that_is_too_small_is_told_in_kexecs_words(tmp_path: Path) -> None:
    extra = own_guest(tmp_path / "catalogue", crashkernel="8M")
    done = rig("run", "panic", "--guest", "odd", "--catalogue", extra, "--results", tmp_path / "results")
    assert done.status == 2, done.err
    assert "does not fit into the 8 MiB reserved" in done.err
    assert "crashkernel=" in done.err
    assert not list((tmp_path / "results").iterdir())


def test_kexec_that_fails_is_quoted(tmp_path: Path) -> None:
    extra = own_guest(tmp_path / "catalogue", cmdline="sysctl.kernel.kexec_load_disabled=1")
    done = rig("run", "panic", "--guest", "odd", "--catalogue", extra, "--json", "--results", tmp_path / "results")
    assert done.status == 3, done.err
    error = done.results["odd"]["error"]
    assert (error["kind"], error["phase"]) == ("GuestCommandFailed", "arm")
    assert "kexec_load failed: Operation not permitted" in error["message"]


def test_no_crash_region_at_all(tmp_path: Path) -> None:
    extra = own_guest(tmp_path / "catalogue", crashkernel="600M")
    done = rig("run", "panic", "--guest", "odd", "--catalogue", extra, "--results", tmp_path / "results")
    assert done.status == 2, done.err
    assert "reserved no memory for a crash kernel" in done.err


def test_a_crash_kernel_that_dies_has_failed(tmp_path: Path) -> None:
    """It panics at once for want of an init; panic=-1 resets the machine."""
    extra = own_guest(tmp_path / "catalogue", crash_cmdline="rdinit=/nowhere")
    done = rig("run", "panic", "--guest", "odd", "--catalogue", extra, "--json", "--results", tmp_path / "results")
    assert done.status == 1, done.err
    result = done.results["odd"]
    verdicts = {check["name"]: check["verdict"] for check in result["checks"]}
    assert (result["verdict"], verdicts["crash-kernel-boots"]) == ("fail", "fail")
    assert verdicts["pgd-survives"] == "error"  # never seen in the crash kernel's time: no pass
    assert result["error"]["phase"] == "crash-boot"
    assert "RIP=" in result["error"]["cpu_state"] or "EIP=" in result["error"]["cpu_state"]


def test_a_first_kernel_that_hangs_can_not_be_judged(tmp_path: Path) -> None:
    extra = own_guest(tmp_path / "catalogue", cmdline="rdinit=/nowhere root=/dev/sda rootwait")  # for ever
    words = ("run", "panic", "--guest", "odd", "--catalogue", extra, "--results", tmp_path / "results")
    done = rig(*words, "--json", "--deadline", "12")
    assert done.status == 3, done.err
    result = done.results["odd"]
    assert (result["verdict"], result["error"]["kind"], result["error"]["phase"]) == ("error", "GuestHung", "boot")
    assert "Linux version" in result["error"]["console"] or "[" in result["error"]["console"]
    assert result["error"]["cpu_state"]


def test_a_killed_qemu_can_not_be_judged(tmp_path: Path) -> None:
    with running("run", "panic", "--no-template", "--guest", "i386", "--json", "--results", tmp_path) as run:
        run.wait_for("prepare")
        qemu = run.qemu()
        run.wait_until(lambda: any(log.stat().st_size for log in tmp_path.glob(".*/console.log")))
        qemu.kill()
        out = run.process.stdout
        assert out is not None
        result = json.loads(out.read())["runs"][0]["result"]
        assert run.process.wait(60) == 3
    assert result["verdict"] == "error"
    assert "QEMU ended with status" in result["error"]["message"]
    assert result["error"]["phase"] == "boot"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with running("run", "panic", "--no-template", "--guest", "i386", "--results", tmp_path / "results") as run:
        run.wait_for("boot")
        qemu = run.qemu()
        run.process.send_signal(number)
        assert run.process.wait(30) == 130
    assert not qemu.is_running()
    assert not list((tmp_path / "results").iterdir())
    assert "nothing was written" in "".join(run.lines)


def test_qemu_ends_with_a_killed_rig(tmp_path: Path) -> None:
    with running("run", "panic", "--no-template", "--guest", "i386", "--results", tmp_path) as run:
        run.wait_for("prepare")
        qemu = run.qemu()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        assert is_gone(qemu)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_two_rigs_at_once_get_two_directories(tmp_path: Path) -> None:
    words = ("run", "panic", "--guest", "i386", "--results", tmp_path)
    with running(*words) as one, running(*words) as two:
        assert [one.process.wait(240), two.process.wait(240)] == [0, 0], one.lines + two.lines
    runs = {"panic_i386_debian-6.1", "panic_i386_debian-6.1.2"}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == runs
    with History(tmp_path / FILE) as history:
        assert {record.directory for record in history.records()} == runs


def test_a_results_directory_that_is_a_file_is_refused_at_once(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.write_text("in the way")
    done = rig("run", "panic", "--results", target)
    assert done.status == 2
    assert "can't be written" in done.err
    assert target.read_text() == "in the way"
