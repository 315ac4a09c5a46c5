"""Which package a file of the cache came in."""

from __future__ import annotations

from pathlib import Path

from rig.guest.provenance import package_named, package_of
from rig.model import PackageId

SHA = "0123456789abcdef" * 4
BUSYBOX = PackageId("busybox-static", "1:1.35.0-4+b5", "amd64", SHA)


def cache(root: Path) -> Path:
    deb = root / f"debs/{SHA}/busybox-static_1%3a1.35.0-4+b5_amd64.deb"
    deb.parent.mkdir(parents=True)
    deb.touch()
    return root


def test_by_the_tree_that_it_lies_in(tmp_path: Path) -> None:
    root = cache(tmp_path)
    assert package_of(root, root / f"trees/busybox-static-{SHA[:16]}/bin/busybox") == BUSYBOX
    assert package_of(root, root / f"trees/busybox-static-{'f' * 16}/bin/busybox") is None  # its .deb is not there
    assert package_of(root, root / "trees/kernel-0123456789ab/boot/vmlinuz-6.1") is None  # of several packages
    assert package_of(root, root / "modules/6.1/damage.ko") is None
    assert package_of(root, Path("/home/me/bzImage")) is None


def test_by_its_version(tmp_path: Path) -> None:
    root = cache(tmp_path)
    assert package_named(root, "busybox-static", "1:1.35.0-4+b5", "amd64") == BUSYBOX
    other = package_named(root, "busybox-static", "1:1.35.0-4+b6", "amd64")
    assert (str(other), other.sha256) == ("busybox-static 1:1.35.0-4+b6 (amd64)", "")
