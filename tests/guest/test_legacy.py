"""The userland of kernels that the distribution's programs don't run on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rig.errors import PackageError
from rig.guest.legacy import _TARGETS, compiler_specs
from rig.guest.packages import Package
from rig.model import Arch


def packages(root: Path, without: str = "") -> list[Package]:
    """musl-dev, linux-libc-dev and libgcc-N-dev of i386 as they unpack, empty but for the files that are looked for."""
    trees = {
        "musl-dev": "usr/lib/i386-linux-musl/crt1.o",
        "linux-libc-dev": "usr/include/i386-linux-gnu/asm/unistd.h",
        "libgcc-12-dev": "usr/lib/gcc/i686-linux-gnu/12/libgcc.a",
    }
    for name, path in trees.items():
        (root / name / path).parent.mkdir(parents=True)
        if name != without:
            (root / name / path).touch()
    return [Package(name, "1", Arch.I386, "0", root / f"{name}.deb", root / name) for name in trees]


def test_gcc_takes_the_specs_and_links_nothing_of_this_machine(tmp_path: Path) -> None:
    specs = tmp_path / "specs"
    specs.write_text(compiler_specs(_TARGETS[Arch.I386], packages(tmp_path)))
    argv = ["gcc", "-m32", f"-specs={specs}", "-static", "-no-pie", "-###", "-o", "program", "-x", "c", "/dev/null"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    compiler, *_, linker = (line for line in said.splitlines() if line.startswith(" "))
    assert f"-isystem {tmp_path}/musl-dev/usr/include/i386-linux-musl" in compiler.replace('"', "")
    assert "-nostdinc" in compiler
    assert f"{tmp_path}/libgcc-12-dev/usr/lib/gcc/i686-linux-gnu/12/libgcc.a" in linker
    assert f"{tmp_path}/musl-dev/usr/lib/i386-linux-musl/crt1.o" in linker
    assert "crtbegin" not in linker


def test_a_package_that_lacks_something_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"libgcc-12-dev has no usr/lib/gcc/.*libgcc\.a"):
        compiler_specs(_TARGETS[Arch.I386], packages(tmp_path, without="libgcc-12-dev"))
