"""What this machine has and lacks for running guests, and for each lack its remedy."""

from __future__ import annotations

import enum
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.model import Guest
from rig.pool import available_memory, cores, guest_need
from rig.vm.installed import MINIMUM_VERSION, confinement
from rig.vm.machine import QEMU

PYTHON = (3, 11)
CACHE_SPACE = 512  # MiB: packages as downloaded and unpacked, three guests, and the headers that controls need
RESULTS_SPACE = 100  # MiB: three runs' evidence and their working files
CONFINEMENT = "QEMU confined by"
PROBE_TIMEOUT = 20.0  # seconds for `TOOL --version`


class State(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"  # something is not possible, or slow, but guests can run
    MISSING = "missing"  # no guest can run


@dataclass(frozen=True)
class Row:
    """One thing looked at. remedy: what to do about it, empty when the state is ok."""

    name: str
    state: State
    found: str
    remedy: str = ""


# Programs: what for, the Debian package that has it, and the state when it isn't there.
TOOLS: Mapping[str, tuple[str, str, State]] = {
    "setpriv": ("lets QEMU die with the rig", "util-linux", State.MISSING),
    "apt-get": ("downloads kernels and guest tools", "apt", State.WARNING),
    "dpkg-deb": ("unpacks kernels and guest tools", "dpkg", State.WARNING),
    "gcc": ("builds the controls: sabotage scenarios and selftest", "gcc", State.WARNING),
    "make": ("builds the controls: sabotage scenarios and selftest", "make", State.WARNING),
    **{
        tool: ("builds kernels from source: `rig build`", tool, State.WARNING)
        for tool in ("flex", "bison", "bc", "patch")
    },
}


def examine(guests: Iterable[Guest], cache: Path, results: Path, accel: Callable[[], str]) -> list[Row]:
    """Everything, in the order of what stands on what.

    accel: returns which accelerator would be used, measured; raises RigError when none is.
    """
    version = probe_version(QEMU)
    return [
        python_row(sys.version_info[:3]),
        qemu_row(version),
        accel_row(accel) if version else Row("accelerator", State.MISSING, "no QEMU", "install QEMU first"),
        *([confinement_row(confinement)] if version else []),
        *(tool_row(name, shutil.which(name)) for name in TOOLS),
        Row("cpus", State.OK, f"{cores()} usable"),
        memory_row(available_memory(), [guest.memory for guest in guests]),
        space_row("space in the cache", cache, CACHE_SPACE),
        space_row("space for results", results, RESULTS_SPACE),
        cache_row(cache),
    ]


def exit_code(rows: Iterable[Row]) -> int:
    """0, or 3 when something without which no guest runs is missing."""
    return 3 if any(row.state is State.MISSING for row in rows) else 0


def lines(rows: Sequence[Row]) -> list[str]:
    """For people: one line a row, and one more for its remedy."""
    width = max(len(row.name) for row in rows)
    text = []
    for row in rows:
        text.append(f"{row.state.value:8} {row.name:{width}}  {row.found}")
        if row.remedy:
            text.append(f"{'':8} {'':{width}}  -> {row.remedy}")
    return text


# ---------------------------------------------------------------- one row each


def python_row(version: Sequence[int]) -> Row:
    found = ".".join(map(str, version))
    if tuple(version[:2]) >= PYTHON:
        return Row("python", State.OK, found)
    return Row("python", State.MISSING, found, "install Python 3.11 or newer, then remove .venv and run ./rigw")


def qemu_row(version: tuple[int, ...] | None) -> Row:
    """version: None when there is no QEMU that runs."""
    wanted = ".".join(map(str, MINIMUM_VERSION))
    if version is None:
        return Row(QEMU, State.MISSING, "not found", f"{install('qemu-system-x86')} ({wanted} or newer)")
    found = ".".join(map(str, version))
    if version[:2] < MINIMUM_VERSION:
        return Row(QEMU, State.MISSING, found, f"{wanted} or newer is needed: take it from a newer release")
    return Row(QEMU, State.OK, found)


def accel_row(accel: Callable[[], str]) -> Row:
    try:
        found = accel()
    except RigError as error:
        return Row("accelerator", State.MISSING, error.message, error.hint or "try --accel tcg")
    return Row("accelerator", State.OK, found)


def confinement_row(confinement: Callable[[], Mapping[str, Any]]) -> Row:
    """What an untrusted guest that got the better of QEMU would still be kept from (SECURITY.md)."""
    try:
        told = confinement()
    except RigError as error:
        return Row(CONFINEMENT, State.MISSING, error.message, error.hint)
    known = {"seccomp": told["seccomp"], "Landlock": told["landlock"]}
    found = ", ".join(f"{'' if there else 'no '}{name}" for name, there in known.items())
    if all(known.values()):
        return Row(CONFINEMENT, State.OK, found)
    remedy = "for guests that you don't trust use a QEMU built with seccomp, and a kernel with Landlock (5.13)"
    return Row(CONFINEMENT, State.WARNING, found, remedy)


def tool_row(name: str, path: str | None) -> Row:
    purpose, package, state = TOOLS[name]
    if path:
        return Row(name, State.OK, path)
    return Row(name, state, f"not found; {purpose}", install(package))


def memory_row(available: int, guests: Sequence[int]) -> Row:
    """available, guests: MiB."""
    smallest, needed = guest_need(min(guests)), guest_need(max(guests))
    found = f"{available} MiB available, the largest guest needs {needed} MiB"
    if available >= needed:
        return Row("memory", State.OK, found)
    state = State.WARNING if available >= smallest else State.MISSING
    return Row("memory", state, found, "end other programs, or choose a guest with less memory")


def space_row(name: str, directory: Path, wanted: int) -> Row:
    """Space and permission where `directory` is, or would be made. wanted: MiB."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Row(name, State.MISSING, f"{directory} can't be written", f"make {existing} a directory you can write")
    free = shutil.disk_usage(existing).free >> 20
    found = f"{free} MiB free in {existing}"
    if free >= wanted:
        return Row(name, State.OK, found)
    return Row(name, State.MISSING, found, f"free {wanted - free} MiB more")


def cache_row(cache: Path) -> Row:
    """A cache with packages in it makes the network unnecessary; an empty one is filled by the first run."""
    packages = sum(1 for _ in cache.glob("debs/*/*.deb"))  # not all of the cache: kernels are built there
    if packages:
        return Row("packages", State.OK, f"{packages} cached in {cache}; these need no network")
    return Row("packages", State.WARNING, f"none cached in {cache}", "`rig fetch` gets them; it needs the network")


# ---------------------------------------------------------------- looking


def install(package: str) -> str:
    """How to get a Debian package, on Debian and elsewhere."""
    if shutil.which("apt-get"):
        return f"apt-get install {package}"
    return f"install what Debian calls {package}"


def probe_version(program: str) -> tuple[int, ...] | None:
    """What `PROGRAM --version` says, as numbers; None when it isn't there or doesn't run."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version (\d+(?:\.\d+)+)", done.stdout)
    return tuple(int(part) for part in match[1].split(".")) if match and done.returncode == 0 else None
