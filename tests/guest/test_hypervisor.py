"""A hypervisor and its symbols from two packages: they must be of the same build."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from rig.errors import PackageError
from rig.guest import hypervisor
from rig.guest.cache import Cache
from rig.guest.packages import Package, PackageCache
from rig.kernel.build_id import build_id
from rig.model import Arch

BUILD_ID = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="makes an ELF file with a build ID")


class Packages:
    """Two unpacked packages. image: what the hypervisor's, gzipped, holds."""

    def __init__(self, tmp_path: Path, image: bytes) -> None:
        self.cache = Cache(tmp_path / "cache", progress=lambda _: None)
        self.trees = {"xen-4": tmp_path / "main", "xen-4-dbg": tmp_path / "debug"}
        packed = self.trees["xen-4"] / "boot/xen-4.gz"
        symbols = self.trees["xen-4-dbg"] / "usr/lib/debug/boot/xen-syms-4"
        for path in (packed, symbols):
            path.parent.mkdir(parents=True)
        packed.write_bytes(gzip.compress(image))
        source = tmp_path / "empty.c"
        source.write_text("")
        subprocess.run(
            ["gcc", "-nostdlib", "-shared", f"-Wl,--build-id=0x{BUILD_ID}", "-o", symbols, source], check=True
        )
        symbols.with_name("xen-syms-4.map").touch()

    def package(self, name: str, arch: Arch) -> Package:
        return Package(name, "4.17", arch, "f" * 64, Path("unused.deb"), self.trees[name])


def obtain(packages: Packages) -> Any:
    return hypervisor.obtain("xen-4", cast(PackageCache, cast(Any, packages)))


def test_the_image_is_unpacked_and_has_its_symbols(tmp_path: Path) -> None:
    found = obtain(Packages(tmp_path, b"code" + bytes.fromhex(BUILD_ID) + b"code"))
    assert found.image.read_bytes()[:4] == b"code"
    assert found.symbols.name == "xen-syms-4"
    assert (build_id(found.symbols) or b"").hex() == BUILD_ID


def test_symbols_of_another_build_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="of different builds"):
        obtain(Packages(tmp_path, b"another build"))


def test_a_package_without_the_image_is_told(tmp_path: Path) -> None:
    packages = Packages(tmp_path, b"code")
    (packages.trees["xen-4"] / "boot/xen-4.gz").unlink()
    with pytest.raises(PackageError, match=r"should have one file boot/xen-\*.gz, and has none"):
        obtain(packages)
