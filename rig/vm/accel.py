"""Which accelerator to use. That /dev/kvm exists, opens, and even creates a VM does not mean that it works.

So it is measured: a boot sector must come to its end within a few seconds, firmware included.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rig import unfinished
from rig.errors import MachineError, RequestError
from rig.vm.console import tail
from rig.vm.installed import qemu_version
from rig.vm.machine import QEMU
from rig.vm.qemu import launch

_PROBE_TIMEOUT = 3.0  # seconds; a working KVM needs well under one, TCG about one
_EXIT_PORT = 0xF4
_EXIT_VALUE = 0x10
_EXIT_STATUS = _EXIT_VALUE << 1 | 1  # what isa-debug-exit makes of it
_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

BOOT_SECTOR = (
    bytes.fromhex(
        "b90000"  # 7c00  mov  cx, 0
        "e2fe"  #   7c03  loop 7c03        65536 times: some guest code, too, not only firmware
        "b010"  #   7c05  mov  al, 0x10
        "e6f4"  #   7c07  out  0xf4, al    isa-debug-exit: QEMU exits with 0x21
        "f4"  #     7c09  hlt
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)

_lock = threading.Lock()


@dataclass(frozen=True)
class Accel:
    """The accelerator chosen. name: tcg or kvm. reason: why, in words for people."""

    name: str
    reason: str


def choose(requested: str, memo: Path | None = None) -> Accel:
    """The accelerator for auto, tcg or kvm. KVM is measured once per process.

    memo: a file that keeps the measurement for other processes, as long as boot id and QEMU's version stay the same.
    Raises MachineError when kvm is asked for and not usable, RequestError for another name.
    """
    if requested == "tcg":
        return Accel("tcg", "as asked")
    if requested not in ("auto", "kvm"):
        raise RequestError(f"unknown accelerator {requested!r}", hint="use auto, tcg or kvm")
    with _lock:
        trouble = _remembered(memo) if memo else _find_trouble()
    if not trouble:
        return Accel("kvm", "a boot sector ran to its end under KVM")
    if requested == "kvm":
        raise MachineError(f"KVM is not usable: {trouble}", hint="use --accel tcg or auto")
    return Accel("tcg", f"KVM is not usable: {trouble}")


def _remembered(memo: Path) -> str:
    """_find_trouble(), from the memo when that was made since this machine's boot with this QEMU."""
    here = {"boot": _BOOT_ID.read_text().strip(), "qemu": qemu_version()}
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(memo.read_text())
        if isinstance(told, dict) and {key: told.get(key) for key in here} == here:
            return str(told["trouble"])
    trouble = _find_trouble()
    # A memo that can't be kept costs the next process a measurement, nothing else.
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        part = memo.with_name(f"{memo.name}.{os.getpid()}")
        part.write_text(json.dumps({**here, "trouble": trouble}))
        part.replace(memo)
    return trouble


@functools.cache
def _find_trouble() -> str:
    """Why KVM is not usable on this machine; empty when it is."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_DEVICE}: {error.strerror}"
    return probe("kvm", _PROBE_TIMEOUT)


def probe(accel: str, timeout: float) -> str:
    """Run the boot sector under an accelerator. Returns what went wrong, empty when nothing did."""
    qemu_version()
    command = [
        QEMU,
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-accel", accel),
        *("-m", "16M"),
        *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
    ]
    with unfinished.temporary("probe") as folder:
        disk, log = folder / "disk", folder / "log"
        disk.write_bytes(BOOT_SECTOR)
        command += ["-drive", f"file={disk},format=raw,if=floppy,readonly=on"]
        started = time.monotonic()
        process = launch(command, (), log)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"a boot sector did not come to its end within {time.monotonic() - started:.0f} s"
        finally:
            process.kill()
            process.wait()
        if status != _EXIT_STATUS:
            return f"QEMU exited with {status}: {tail(log.read_bytes(), 3)}"
        return ""
