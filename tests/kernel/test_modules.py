"""Building a module: what is checked before, and (vm) the real thing for the three stock kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rig.errors import MachineError
from rig.guest.debs import module_depends
from rig.guest.packages import PackageCache
from rig.guest.userland import elf_needs
from rig.kernel.modules import build_module, compiler
from rig.model import Arch, Guest, Kernel, KernelFiles, PagingMode

HELLO = """\
#include <linux/module.h>
static int __init hello_init(void) { pr_info("hello\\n"); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
"""

KERNEL = Kernel("debian-6.1", "", package=r"linux-image-6\.1\.0-[0-9]+-{flavour}")

GUESTS = [
    Guest(name, "", arch, paging, flavour, "debian-6.1", 512, 1, "pc", "qemu64", "160M")
    for name, arch, paging, flavour in (
        ("i386", Arch.I386, PagingMode.TWO_LEVEL, "686"),
        ("pae", Arch.I386, PagingMode.PAE, "686-pae"),
        ("x86_64", Arch.AMD64, PagingMode.FOUR_LEVEL, "amd64"),
    )
]


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    source = tmp_path / "hello"
    source.mkdir()
    (source / "Kbuild").write_text("obj-m := hello.o\n")
    (source / "hello.c").write_text(HELLO)
    return source


class OnlyHeaders(PackageCache):
    """A cache whose headers are a Makefile of the test's own: copies the source, or fails as told."""

    def headers(self, kernel: KernelFiles, package: str = "") -> Path:
        directory = self.cache.root / "headers"
        directory.mkdir(parents=True, exist_ok=True)
        rule = "modules:\n\t@! grep -n syntax-error $(M)/*.c\n\tcp $(M)/hello.c $(M)/hello.ko\n"
        (directory / "Makefile").write_text(rule)
        return directory


@pytest.fixture
def cache(tmp_path: Path) -> OnlyHeaders:
    return OnlyHeaders(tmp_path / "cache")


FILES = KernelFiles("debian-6.1", "6.1.0-1-686", Arch.I386, Path("bzImage"), "")


def test_the_kernels_own_compiler_by_its_headers(tmp_path: Path) -> None:
    assert compiler(tmp_path) == "gcc"
    text = "override ARCH = x86\nCC = $(if $(X),$(CCACHE)) $(CROSS_COMPILE)gcc-12\nifneq (a,b)\n"
    (tmp_path / ".kernelvariables").write_text(text)
    assert compiler(tmp_path) == "gcc-12"


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("gcc")), reason="needs make and gcc")
class TestWithMake:
    def test_built_once_until_the_sources_change(self, cache: OnlyHeaders, hello: Path) -> None:
        said: list[str] = []
        cache.progress = said.append
        module = build_module(hello, FILES, cache)
        assert module.read_text() == HELLO
        assert build_module(hello, FILES, cache) == module
        assert len(said) == 1
        (hello / "hello.c").write_text(HELLO + "// changed\n")
        assert build_module(hello, FILES, cache) != module
        assert module.read_text() == HELLO

    def test_a_failing_build_shows_the_compilers_words_and_leaves_nothing(
        self, cache: OnlyHeaders, hello: Path
    ) -> None:
        (hello / "hello.c").write_text("int x;\nsyntax-error here\n")
        with pytest.raises(MachineError, match=r"hello failed:(.|\n)*2:syntax-error here"):
            build_module(hello, FILES, cache)
        assert not list(cache.cache.root.glob("modules/**/*.ko"))

    def test_not_exactly_one_module(self, cache: OnlyHeaders, hello: Path) -> None:
        (hello / "second.ko").write_text("")
        with pytest.raises(MachineError, match="builds 2 modules"):
            build_module(hello, FILES, cache)


def test_no_compiler(cache: OnlyHeaders, hello: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="takes make and gcc") as caught:
        build_module(hello, FILES, cache)
    assert "apt-get install" in caught.value.hint


def test_a_path_that_make_cannot_have(tmp_path: Path, hello: Path) -> None:
    with pytest.raises(MachineError, match="space or colon"):
        build_module(hello, FILES, OnlyHeaders(tmp_path / "a b"))


@pytest.mark.vm
@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_for_a_stock_kernel(guest: Guest, hello: Path) -> None:
    cache = PackageCache()
    files = cache.kernel(KERNEL, guest)
    module = build_module(hello, files, cache)
    data = module.read_bytes()
    assert data[4] == (2 if guest.arch is Arch.AMD64 else 1)  # ELFCLASS64, ELFCLASS32
    assert b"vermagic=" + files.release.encode() + b" " in data
    assert module_depends(data) == ()
    assert elf_needs(module).libraries == ()
    assert str(cache.cache.root).encode() not in data  # built elsewhere it is the same
