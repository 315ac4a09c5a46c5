"""Programs of the rig's own that run in a guest: freestanding C, compiled with this machine's gcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from rig.errors import MachineError
from rig.guest.cache import Cache
from rig.guest.repository import digest
from rig.model import Arch

# No libc and nothing of the machine's own: -m32 works without gcc-multilib.
FLAGS = (
    *("-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-pie", "-no-pie", "-static", "-nostdlib", "-Wl,--build-id=none"),
)
WIDTH = {Arch.I386: "-m32", Arch.AMD64: "-m64"}
_DEADLINE = 60.0  # seconds; it takes a tenth of one


def build(source: Path, arch: Arch, cache: Cache) -> Path:
    """The program that one C file makes; kept in the cache by what it is made of.

    :raise MachineError: no gcc, or the file does not compile: the compiler's words
    """
    if shutil.which("gcc") is None:
        raise MachineError(f"compiling {source.name} takes gcc, not on this machine", hint="apt-get install gcc")
    version = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    key = digest(source.read_text(), version, *FLAGS)

    def make(path: Path) -> None:
        argv = ["gcc", WIDTH[arch], *FLAGS, "-o", str(path), str(source)]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_DEADLINE
        )
        if done.returncode:
            raise MachineError(f"{source} does not compile for {arch}:\n{done.stderr.strip()[-2000:]}")

    return cache.once(f"programs/{source.stem}-{arch}-{key}", make)
