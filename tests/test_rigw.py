"""rigw on machines that are only pretended: a PATH of our own, on which apt-get, sudo and python3 are small scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ("sh", "cat", "cut", "basename", "dirname", "readlink", "sha256sum", "rm", "mkdir", "chmod", "env", "flock")
GUEST_TOOLS = ("qemu-system-x86_64", "setpriv", "xz", "gcc", "make")
KERNEL_TOOLS = ("flex", "bison", "bc", "patch", "ld")
TEST_TOOLS = ("chromium", "git", "cpio", "zsh", "ss")

# `python3 -m venv --clear DIR` puts itself there; `-m pip install` makes DIR/bin/rig, which tells what it is given.
PYTHON = """\
echo "python $*" >>"$LOG"
case "$*" in
*version_info*) exit "${TOO_OLD:-0}" ;;
--version) echo "Python 3.9.2" ;;
"-m venv "*) mkdir -p "$4/bin"; cat "$0" >"$4/bin/python"; chmod +x "$4/bin/python" ;;
"-m pip "*)
    echo '#!/bin/sh' >"$(dirname "$0")/rig"
    echo 'echo "rig: $*"' >>"$(dirname "$0")/rig"
    chmod +x "$(dirname "$0")/rig"
    cat "$(dirname "$0")/rig" >"$(dirname "$0")/tox"
    chmod +x "$(dirname "$0")/tox"
    echo "pip is talkative"
    exit "${PIP_FAILS:-0}" ;;
esac
"""


class Machine:
    """A checkout with a blank in its name, and a PATH with nothing but what is put there."""

    def __init__(self, tmp_path: Path) -> None:
        self.bin = tmp_path / "bin"
        self.checkout = tmp_path / "my checkout"
        self.log = tmp_path / "log"
        self.log.touch()
        self.bin.mkdir()
        (self.checkout / "rig").mkdir(parents=True)
        for name in ("rigw", "pyproject.toml", "setup.py", "rig/__init__.py"):
            shutil.copy(ROOT / name, self.checkout / name)
        for name in REAL:
            path = shutil.which(name)
            assert path is not None
            (self.bin / name).symlink_to(path)
        self.program("python3", PYTHON)
        self.program("id", "echo 0")
        for name in (*GUEST_TOOLS, *KERNEL_TOOLS, *TEST_TOOLS):
            self.program(name)

    def program(self, name: str, text: str = "") -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def without(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.checkout / "rigw", *arguments],
            cwd="/",
            env={"PATH": str(self.bin), "LOG": str(self.log), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err

    def logged(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if not os.path.exists("/usr/include/stdio.h"):
        pytest.skip("needs libc6-dev: rigw looks for its headers by their real path")
    return Machine(tmp_path)


def test_first_and_second_time(machine: Machine) -> None:
    code, out, err = machine.run("run", "panic", "--kernel", "a b")
    assert (code, out) == (0, "rig: run panic --kernel a b\n")  # what pip says is not on stdout
    assert "making .venv" in err
    assert machine.run("list") == (0, "rig: list\n", "")
    assert len(machine.logged("python -m pip")) == 1


def test_redone_when_what_it_was_made_from_changes(machine: Machine) -> None:
    machine.run("list")
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    machine.run("list")
    assert len(machine.logged("python -m pip")) == 2
    assert len(machine.logged("python -m venv")) == 1


def test_redone_when_pip_had_failed(machine: Machine) -> None:
    code, out, err = machine.run("list", PIP_FAILS="1")
    assert (code, out) == (3, "")
    assert "pip could not install" in err
    assert machine.run("list")[:2] == (0, "rig: list\n")


def test_tests_get_their_extra_and_go_through_tox(machine: Machine) -> None:
    machine.run("list")
    code, out, _ = machine.run("test", "-k", "paging")
    assert code == 0
    assert out.endswith("-e all -- -k paging\n")
    assert machine.logged("python -m pip")[-1].endswith(f"{machine.checkout}[test]")
    machine.run("list")  # what tests need will do for everything else
    assert len(machine.logged("python -m pip")) == 2


def test_two_at_once_set_up_once(machine: Machine) -> None:
    both = [machine.start("list"), machine.start("list")]
    outputs = [process.communicate(timeout=20)[0] for process in both]
    assert outputs == ["rig: list\n"] * 2
    assert len(machine.logged("python -m pip")) == 1


def test_python_too_old(machine: Machine) -> None:
    code, _, err = machine.run("list", TOO_OLD="1")
    assert code == 3
    assert "Python 3.11 or newer is needed, and Python 3.9.2 is all there is" in err


def test_a_newer_python_beside_an_old_one(machine: Machine) -> None:
    machine.program("python3.12", PYTHON.replace("TOO_OLD", "NEVER"))
    machine.without("python3")
    machine.program("python3", "exit 1")
    assert machine.run("list")[:2] == (0, "rig: list\n")


APT_GET = """\
echo "apt-get $*" >>"$LOG"
case "$*" in *" update") echo updated >"$LOG.updated" ;; esac
case "$*" in *" install "*) [ -e "$LOG.updated" ] || exit 100 ;; esac
echo "apt is talkative"
"""


def test_missing_packages_are_installed_after_an_update_where_it_takes_one(machine: Machine) -> None:
    machine.without("qemu-system-x86_64", "xz")
    machine.program("apt-get", APT_GET)
    machine.program("apt-cache")  # knows all of them: the index is there, but out of date
    code, out, err = machine.run("run", "panic")
    assert (code, out) == (0, "rig: run panic\n")
    assert "missing: qemu-system-x86 (runs the guests)" in err
    calls = [line.split("-o DPkg::Lock::Timeout=600 ")[1] for line in machine.logged("apt-get")]
    install = "install -y --no-install-recommends qemu-system-x86 xz-utils"
    assert calls == [install, "update", install]


def test_what_starts_no_guest_needs_no_qemu(machine: Machine) -> None:
    machine.without(*GUEST_TOOLS)
    assert machine.run("check", "DIR")[:2] == (0, "rig: check DIR\n")


def test_neither_root_nor_sudo(machine: Machine) -> None:
    machine.without("gcc")
    machine.program("apt-get", APT_GET)
    machine.program("id", "echo 1000")
    code, out, err = machine.run("run", "panic")
    assert (code, out) == (3, "")
    assert "neither root nor sudo; have this run by root: apt-get install --no-install-recommends gcc" in err
    assert machine.logged("apt-get") == []


def test_sudo_never_waits_for_a_password_nobody_can_type(machine: Machine) -> None:
    machine.without("gcc")
    machine.program("apt-get", APT_GET)
    machine.program("apt-cache")
    machine.program("id", "echo 1000")
    machine.program("sudo", 'echo "sudo $1" >>"$LOG"; [ "$1" = -n ] && shift; exec "$@"')
    assert machine.run("run", "panic")[0] == 0
    assert set(machine.logged("sudo")) == {"sudo -n"}


def test_not_debian(machine: Machine) -> None:
    machine.without("make", "gcc")
    code, _, err = machine.run("run", "panic")
    assert code == 3
    assert "this is not a Debian system: install what Debian calls gcc make" in err


def test_a_browser_is_installed_for_tests_only(machine: Machine) -> None:
    machine.without("chromium")
    machine.program("apt-get", 'echo "apt-get $*" >>"$LOG"')
    machine.program("apt-cache")
    assert machine.run("run", "panic")[0] == 0
    assert "chromium" not in machine.log.read_text()
    machine.run("test")
    assert "install -y --no-install-recommends chromium" in machine.log.read_text()
