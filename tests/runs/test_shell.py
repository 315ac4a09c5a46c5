"""`rig shell` on a real guest, with the user at a terminal."""

from __future__ import annotations

import subprocess
import sys
import termios

import pexpect
import pytest

from tests.runs.conftest import ROOT, rig_command

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

PROMPT = r"x86_64:[^#]*# "
DEADLINE = 120  # seconds


def settings(terminal: int) -> list[object]:
    return [*termios.tcgetattr(terminal)]


def test_a_user_crashes_the_guest_and_goes_on_in_the_crash_kernel() -> None:
    program, *words = rig_command("shell", "x86_64", "--arm", "panic")
    child = pexpect.spawn(program, words, cwd=str(ROOT), encoding="utf-8", timeout=DEADLINE, dimensions=(30, 100))
    before = settings(child.child_fd)
    child.expect("Ctrl-] leaves")
    child.expect(PROMPT)
    assert settings(child.child_fd) != before
    child.sendline("echo $((6 * 7)) $(stty size) $(cat /sys/kernel/kexec_crash_loaded)")
    child.expect("\n42 30 100 1\r\n")
    child.expect(PROMPT)
    child.sendline("sleep 1000")
    child.send("\x03")  # to the guest's sleep, not to the rig
    child.expect(PROMPT)
    child.sendline("echo c >/proc/sysrq-trigger")
    child.expect("Kernel panic - not syncing: sysrq triggered crash")  # from the other serial line
    child.expect(PROMPT)
    child.sendline("ls /proc/vmcore; exit")
    child.expect("\n/proc/vmcore\r\n")
    child.expect("the guest's shell ended")
    child.expect(pexpect.EOF)
    assert settings(child.child_fd) == before
    child.close()
    assert child.exitstatus == 0


def test_ctrl_bracket_leaves_a_guest_that_powers_nothing_off() -> None:
    program, *words = rig_command("shell", "i386")
    child = pexpect.spawn(program, words, cwd=str(ROOT), encoding="utf-8", timeout=DEADLINE)
    child.expect("i386:[^#]*# ")
    child.send("sleep 1000\r\x1d")
    child.expect("i386/debian-6.1: left")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_script_from_stdin_is_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rig", "shell", "pae"],
        cwd=ROOT,
        input="for i in 1 2; do echo $i; done; uname -r; sed -n 's/flags.* pae .*/pae/p' /proc/cpuinfo\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, two, release, flag = done.stdout.splitlines()
    assert (one, two, flag) == ("1", "2", "pae")
    assert release.endswith("-686-pae")
