"""Out-of-tree modules for the distribution's kernels, built with this machine's compiler."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rig.errors import MachineError
from rig.model import KernelFiles

if TYPE_CHECKING:
    from rig.guest.packages import PackageCache

# What a machine needs for it (Debian packages), beside the compiler that compiler() names. A module takes
# nothing from libc, so -m32 works without gcc-multilib; libelf1 is for objtool.
BUILD_PACKAGES = ("make", "gcc", "libelf1")

# The debug information names no directory of this machine: from the same sources, headers and compiler the same module
# comes, by its hash, wherever it is built.
_FLAGS = "KCFLAGS=-ffile-prefix-map={work}=/module -ffile-prefix-map={headers}=/headers"
_DEADLINE = 300.0  # seconds; a module takes two
_COMPILER = re.compile(r"^CC\s*:?=.*\b(gcc-\d+)\s*$", re.MULTILINE)


def build_module(source_dir: Path, kernel: KernelFiles, cache: PackageCache) -> Path:
    """Build the one module of a directory (Kbuild, sources) for a packaged kernel; returns the .ko.

    Kept in the cache by the hash of all files of the directory, the kernel's release and its headers, and the flags.

    :raise MachineError: no compiler or make, or the build fails: the compiler's last lines
    :raise PackageError: the headers can't be had
    """
    if re.search(r"[\s:]", str(cache.cache.root)):
        raise MachineError(
            f"no modules can be built below {cache.cache.root}: a kernel's make takes no space or colon",
            hint="put the cache elsewhere with RIG_CACHE=DIR",
        )
    headers = cache.headers(kernel)
    identity = _identity(source_dir, cache.cache.relative(headers))
    directory = f"modules/{kernel.release}-{kernel.arch}/{identity}"

    def make(path: Path) -> None:
        cache.progress(f"building {source_dir.name} for {kernel.release}")
        work = path.with_name("work")
        shutil.copytree(source_dir, work)
        _make(headers, work, source_dir.name)
        built = sorted(work.glob("*.ko"))
        if len(built) != 1:
            raise MachineError(f"{source_dir} builds {len(built)} modules, not one: see its Kbuild")
        path.mkdir()
        built[0].rename(path / built[0].name)

    [module] = cache.cache.once(directory, make).glob("*.ko")
    return module


def compiler(headers: Path) -> str:
    """The compiler that built the kernel, by its headers package (.kernelvariables): gcc-12."""
    variables = headers / ".kernelvariables"
    match = _COMPILER.search(variables.read_text()) if variables.exists() else None
    return match[1] if match else "gcc"


def _identity(source_dir: Path, headers: str) -> str:
    digest = hashlib.sha256(f"{headers}\0{_FLAGS}\0".encode())
    for path in sorted(path for path in source_dir.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source_dir)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _make(headers: Path, work: Path, name: str) -> None:
    wanted = compiler(headers)
    # A distribution that doesn't carry that version: its own compiler does, as a rule.
    used = wanted if shutil.which(wanted) else "gcc"
    if lacking := [tool for tool in ("make", used) if shutil.which(tool) is None]:
        raise MachineError(
            f"building the module {name} takes {' and '.join(lacking)}, not on this machine",
            hint=f"apt-get install {' '.join(dict.fromkeys((*BUILD_PACKAGES, wanted)))}",
        )
    flags = _FLAGS.format(work=work, headers=headers.parent)
    # Flags and settings of the caller's own builds must not get into this one.
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    try:
        done = subprocess.run(
            ["make", "-C", headers, f"M={work}", flags, *([] if used == wanted else [f"CC={used}"]), "modules"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_DEADLINE,
            env={**environment, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"building the module {name} did not end within {_DEADLINE:.0f} s") from error
    if done.returncode:
        hint = "see its sources"
        if used != wanted:
            hint = f"{used} was taken for {wanted}, which built the kernel: apt-get install {wanted}"
        last = "\n".join(done.stdout.replace(f"{work}/", "").strip().splitlines()[-15:])
        raise MachineError(f"building the module {name} failed:\n{last}", hint=hint)
