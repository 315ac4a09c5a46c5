"""The QEMU that is installed: its version, and how it can be confined."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

from rig.errors import MachineError
from rig.vm import confine
from rig.vm.machine import QEMU, SANDBOX

MINIMUM_VERSION = (7, 2)
_INSTALL_HINT = "install QEMU 7.2 or newer (Debian: qemu-system-x86); `rig doctor` shows what else is missing"
_asking = threading.Lock()


def parse_version(text: str) -> tuple[int, ...]:
    """The version in the output of `qemu-system-x86_64 --version`. Raises MachineError."""
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise MachineError(f"{QEMU} --version says {text.strip()!r}", hint=_INSTALL_HINT)
    return tuple(int(part) for part in match.groups())


def ask_ahead() -> None:
    """Have QEMU asked what installed() tells, beside what this process does next."""

    def ask() -> None:
        with contextlib.suppress(MachineError, OSError, subprocess.SubprocessError):  # whoever needs it is told
            installed()

    threading.Thread(target=ask, name="qemu --version").start()


def installed() -> tuple[str, bool]:
    """QEMU's version line, and whether it has a sandbox. Asked once per process. Raises as qemu_version()."""
    with _asking:  # whoever asks meanwhile waits for the answer
        return _installed()


@functools.cache
def _installed() -> tuple[str, bool]:
    for tool, hint in ((QEMU, _INSTALL_HINT), ("setpriv", "install util-linux")):
        if not shutil.which(tool):
            raise MachineError(f"{tool} is not installed", hint=hint)
    sandboxed = _ask("-sandbox", SANDBOX)  # one that is built without seccomp refuses the option
    done = sandboxed if sandboxed.returncode == 0 else _ask()
    version = parse_version(done.stdout + done.stderr)
    if version < MINIMUM_VERSION:
        raise MachineError(f"QEMU {'.'.join(map(str, version))} is too old", hint=_INSTALL_HINT)
    return done.stdout.splitlines()[0], done is sandboxed


def _ask(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([QEMU, *options, "--version"], capture_output=True, text=True, timeout=30, check=False)


def qemu_version() -> str:
    """QEMU's version line. Raises MachineError when QEMU is missing or too old."""
    return installed()[0]


def sandboxes() -> bool:
    """Whether this QEMU and this kernel have seccomp: both can be built without. Raises as qemu_version()."""
    # "Seccomp:" is there with CONFIG_SECCOMP (proc_pid_status(5))
    return installed()[1] and "\nSeccomp:" in Path("/proc/self/status").read_text()


def confinement() -> dict[str, Any]:
    """How a QEMU is confined on this machine. landlock: the version of the kernel's interface, 0 for none."""
    return {"seccomp": sandboxes(), "landlock": confine.landlock()}
