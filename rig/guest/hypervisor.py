"""The Xen hypervisor from Debian packages: its image, unpacked, and its symbols from the package beside it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from rig.elf import ElfError
from rig.errors import PackageError
from rig.guest.packages import PackageCache
from rig.kernel.build_id import build_id
from rig.kernel.payload import Undecodable, decompress
from rig.model import Arch, HypervisorFiles

_IMAGES = "boot/xen-*.gz"
_SYMBOLS = "usr/lib/debug/boot/xen-syms-*"
_MAP = ".map"  # a list of the same symbols beside it


def obtain(package: str, cache: PackageCache) -> HypervisorFiles:
    """The hypervisor of that package, and the symbols in package-dbg.

    :raise PackageError: no such package, another layout than Debian's, or symbols of another build
    """
    main, debug = cache.package(package, Arch.AMD64), cache.package(f"{package}-dbg", Arch.AMD64)
    packed = _only(main.tree, _IMAGES, package)
    symbols = _only(debug.tree, _SYMBOLS, f"{package}-dbg")
    # QEMU's multiboot loader takes no compressed image
    image = cache.cache.once(f"hypervisors/{main.sha256[:16]}", functools.partial(_unpack, packed))
    blob = image.read_bytes()
    if _build_id(symbols) not in blob:
        raise PackageError(
            f"{package} {main.version} and the symbols of {debug.name} {debug.version} are of different builds",
            hint="the package sources are inconsistent: try `rig fetch` again later",
        )
    return HypervisorFiles(package, main.version, image, hashlib.sha256(blob).hexdigest(), symbols)


def _build_id(path: Path) -> bytes:
    try:
        found = build_id(path)
    except ElfError as error:
        raise PackageError(f"{path} is not an ELF file: {error}") from error
    if found is None:
        raise PackageError(f"{path} has no build ID: whether it fits the hypervisor's image can't be told")
    return found


def _only(tree: Path, pattern: str, package: str) -> Path:
    found = [path for path in sorted(tree.glob(pattern)) if path.suffix != _MAP]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(tree)) for path in found) or "none"
        raise PackageError(f"{package} should have one file {pattern}, and has {names}")
    return found[0]


def _unpack(packed: Path, path: Path) -> None:
    try:
        path.write_bytes(decompress(packed.read_bytes()))
    except Undecodable as error:
        raise PackageError(f"{packed} can't be unpacked: {error}") from error
