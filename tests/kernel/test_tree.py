"""What is taken out of a build tree, and what is said of one that isn't finished, or is of two builds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rig import catalog
from rig.errors import RequestError
from rig.kernel.tree import BuildTree, read_tree, require_fit
from rig.model import Arch
from tests.kernel.forge import bzimage

VERSION = "6.1.0 (me@here) #7 SMP Mon Nov 23"
BANNER = b"Linux version 6.1.0 (me@here) (gcc 12) #7 SMP Mon Nov 23\n\0"
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="links an ELF file")


def vmlinux(directory: Path, banner: bytes, build_id: str = "none") -> bytes:
    """An ELF file with that banner and, unless "none", that build ID (0x...)."""
    source = directory / "init.c"
    text = banner.rstrip(b"\0").decode().replace("\n", "\\n")
    source.write_text(f'const char linux_banner[] = "{text}";\n')
    argv = ["gcc", "-nostdlib", "-shared", f"-Wl,--build-id={build_id}", "-o", str(directory / "vmlinux"), str(source)]
    subprocess.run(argv, check=True)
    return (directory / "vmlinux").read_bytes()


def built(directory: Path, image: bytes, arch: str = "x86") -> Path:
    path = directory / "arch" / arch / "boot/bzImage"
    path.parent.mkdir(parents=True)
    path.write_bytes(image)
    return path


@needs_gcc
def test_a_finished_build(tmp_path: Path) -> None:
    vmlinux(tmp_path, BANNER)
    image = built(tmp_path, bzimage(VERSION))
    assert read_tree(tmp_path) == BuildTree(tmp_path, image, tmp_path / "vmlinux", Arch.AMD64, None)


@needs_gcc
@pytest.mark.parametrize(("config", "pae"), [("CONFIG_X86_PAE=y\n", True), ("CONFIG_X86=y\n", False), (None, None)])
def test_an_i386_tree_of_the_time_of_its_own_directory(tmp_path: Path, config: str | None, pae: bool | None) -> None:
    vmlinux(tmp_path, BANNER)
    image = built(tmp_path, bzimage(VERSION, arch=Arch.I386), "i386")
    if config is not None:
        (tmp_path / "include/config").mkdir(parents=True)
        (tmp_path / "include/config/auto.conf").write_text(config)
    tree = read_tree(tmp_path)
    assert (tree.bzimage, tree.arch, tree.pae) == (image, Arch.I386, pae)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ([".config", "Kconfig"], "configured but not built"),
        (["Kconfig"], "given to make as O="),
        ([], "name a kernel's source tree"),
    ],
)
def test_nothing_built_yet(tmp_path: Path, files: list[str], hint: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match="has no arch/x86/boot/bzImage") as caught:
        read_tree(tmp_path)
    assert hint in caught.value.hint


def test_no_directory_and_no_vmlinux(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such directory"):
        read_tree(tmp_path / "nowhere")
    built(tmp_path, bzimage(VERSION))
    with pytest.raises(RequestError, match="has no vmlinux"):
        read_tree(tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"")
    with pytest.raises(RequestError, match="not an ELF file"):
        read_tree(tmp_path)


@needs_gcc
@pytest.mark.parametrize("banner", [BANNER.replace(b"#7", b"#8"), BANNER.replace(b"6.1.0", b"6.1.1")])
def test_a_vmlinux_of_another_build_by_its_banner(tmp_path: Path, banner: bytes) -> None:
    vmlinux(tmp_path, banner)
    built(tmp_path, bzimage(VERSION))
    with pytest.raises(RequestError, match="of different builds: vmlinux does not say"):
        read_tree(tmp_path)


@needs_gcc
def test_a_vmlinux_of_another_build_by_its_build_id(tmp_path: Path) -> None:
    """Reproducible builds have the same banner."""
    first = vmlinux(tmp_path, BANNER, "0x1111")
    built(tmp_path, bzimage(VERSION, kernel=first))
    read_tree(tmp_path)
    vmlinux(tmp_path, BANNER, "0x2222")
    with pytest.raises(RequestError, match="the build ID 2222 of vmlinux is not in bzImage"):
        read_tree(tmp_path)


def test_the_guest_that_fits_is_named() -> None:
    guests = catalog.load().guests
    three = [guests[name] for name in ("i386", "pae", "x86_64")]
    tree = BuildTree(Path("linux"), Path("b"), Path("v"), Arch.I386, True)
    require_fit(tree, [guests["pae"]], guests.values())
    with pytest.raises(RequestError, match="i386 with PAE: not for the guest i386, x86_64") as caught:
        require_fit(tree, three, guests.values())
    assert caught.value.hint == "--guest pae"
    with pytest.raises(RequestError) as caught:
        require_fit(tree, [guests["x86_64"]], three)
    assert caught.value.hint == "--guest pae"
    unknown = BuildTree(Path("linux"), Path("b"), Path("v"), Arch.I386, None)
    require_fit(unknown, three[:2], three)
