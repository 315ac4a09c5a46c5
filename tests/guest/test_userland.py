"""The closure over shared libraries, from forged ELF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.errors import PackageError
from rig.guest.userland import closure, elf_needs, inside
from rig.model import Arch
from tests.guest.forge import elf

LOADER = "/lib64/ld-linux.so.2"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two programs (one static), libc with its loader behind an absolute link, and a library of libc's."""
    files = {
        "bin/busybox": elf(),
        "sbin/kexec": elf(LOADER, ["libxen.so.4", "libc.so.6"]),
        "usr/lib/x/libxen.so.4.17": elf("", ["libc.so.6"]),
        "usr/lib/x/libc.so.6": elf(LOADER, ["ld-linux.so.2"]),
        "usr/lib/x/glibc-hwcaps/v3/libc.so.6": elf("", ["libnever.so"]),
        "usr/lib/x/ld-linux.so.2": elf(),
        "usr/lib/x/libunused.so.1": elf(),
    }
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "usr/lib/x/libxen.so.4").symlink_to("libxen.so.4.17")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/ld-linux.so.2").symlink_to("/usr/lib/x/ld-linux.so.2")
    return tmp_path


def programs(tree: Path) -> dict[str, Path]:
    return {path: tree / path.lstrip("/") for path in ("/bin/busybox", "/sbin/kexec")}


def test_everything_loaded_and_nothing_else(tree: Path) -> None:
    found = closure(Arch.AMD64, programs(tree), [tree], extra=["libunused.so.9"])
    assert {path: str(file.relative_to(tree)) for path, file in found.files.items()} == {
        "/bin/busybox": "bin/busybox",
        "/lib/libc.so.6": "usr/lib/x/libc.so.6",
        "/lib/libxen.so.4": "usr/lib/x/libxen.so.4.17",
        LOADER: "usr/lib/x/ld-linux.so.2",
        "/sbin/kexec": "sbin/kexec",
    }


def test_a_library_that_is_loaded_at_run_time_comes_along(tree: Path) -> None:
    found = closure(Arch.AMD64, programs(tree), [tree], extra=["libunused.so.1"])
    assert "/lib/libunused.so.1" in found.files
    assert "/lib/libunused.so.1" not in found.only("/bin/busybox").files


def test_a_part_of_it(tree: Path) -> None:
    found = closure(Arch.AMD64, programs(tree), [tree])
    assert list(found.only("/bin/busybox").files) == ["/bin/busybox"]
    assert found.only("/bin/busybox", "/sbin/kexec") == found
    with pytest.raises(KeyError):
        found.only("/bin/nothing")


def test_a_missing_library_is_named_with_who_wants_it(tree: Path) -> None:
    (tree / "usr/lib/x/libxen.so.4").unlink()
    with pytest.raises(PackageError, match=r"/sbin/kexec \(amd64\) needs libxen\.so\.4"):
        closure(Arch.AMD64, programs(tree), [tree])


def test_links_are_read_as_if_the_tree_were_the_root(tree: Path) -> None:
    (tree / "outside").symlink_to("../" * 20 + "etc/hostname")
    (tree / "loop").symlink_to("loop")
    assert inside(tree, tree / "lib64/ld-linux.so.2") == tree / "usr/lib/x/ld-linux.so.2"
    assert inside(tree, tree / "outside") is None
    assert inside(tree, tree / "loop") is None
    assert inside(tree, tree / "usr") is None


def test_a_script_is_not_a_program(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(PackageError, match="not an ELF file"):
        elf_needs(tmp_path / "script")
