"""Which package a file of the cache came in, told by where it lies: rig/guest/packages.py draws the directories."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from rig.model import PackageId

_TREE = re.compile(r"(?P<name>.+)-(?P<sha256>[0-9a-f]{16})")  # of trees/: one package, by the front of its hash


def tree_of(name: str, sha256: str) -> str:
    """Where one package is unpacked, relative to the cache's root. sha256: of its .deb."""
    return f"trees/{name}-{sha256[:16]}"


def package_of(root: Path, file: Path) -> PackageId | None:
    """The package that a file below root/trees was unpacked from; None for any other file, and where several packages
    were unpacked together (kernels, headers)."""
    if not file.is_relative_to(root / "trees"):
        return None
    match = _TREE.fullmatch(file.relative_to(root / "trees").parts[0])
    if match is None:
        return None
    found = next(root.glob(f"debs/{match['sha256']}*/{match['name']}_*.deb"), None)
    return _read(found) if found else None


def package_named(root: Path, name: str, version: str, arch: str) -> PackageId:
    """A package of this version. Its hash is that of its .deb in the cache; empty when it is no longer there."""
    file = f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
    found = next(root.glob(f"debs/*/{file}"), None)
    return _read(found) if found else PackageId(name, version, arch, "")


def _read(deb: Path) -> PackageId:
    """debs/SHA256/NAME_VERSION_ARCH.deb, a colon written as %3a."""
    name, version, arch = unquote(deb.stem).split("_")
    return PackageId(name, version, arch, deb.parent.name)
