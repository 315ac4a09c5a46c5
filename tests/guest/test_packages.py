"""PackageCache against a small repository on disk: what is taken when not everything can be had."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from rig.errors import MachineError, PackageError, UnsuitableKernel
from rig.guest.makedumpfile import PROGRAM as MAKEDUMPFILE
from rig.guest.packages import PackageCache
from rig.guest.provenance import package_named
from rig.model import Arch, Dump, Guest, Kernel, PagingMode
from tests.guest.forge import Repository, elf, needs_apt
from tests.kernel.forge import bzimage

pytestmark = needs_apt

DROPBEAR = "usr/sbin/dropbear"
LOADER = "/lib64/ld-linux-x86-64.so.2"
NETWORK_CARD = "lib/modules/{}/kernel/drivers/net/ethernet/realtek/8139cp.ko"
KERNEL = Kernel("debian-6.1", "", package=r"linux-image-6\.1\.0-[0-9]+-{flavour}")


def guest(arch: Arch = Arch.AMD64) -> Guest:
    return Guest("x86_64", "", arch, PagingMode.FOUR_LEVEL, "amd64", "debian-6.1", 512, 1, "pc", "qemu64", "160M")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, repository: Repository, said: list[str]) -> PackageCache:
    return PackageCache(tmp_path / "cache", said.append, sources=repository.sources)


def again(cache: PackageCache, repository: Repository, *, refresh: bool = False) -> PackageCache:
    """Another rig on the same cache."""
    return PackageCache(cache.cache.root, cache.progress, refresh=refresh, sources=repository.sources)


def add_kernel(repository: Repository, name: str, version: str, arch: Arch = Arch.AMD64) -> Path:
    release = name.removeprefix("linux-image-")
    files = {
        f"boot/vmlinuz-{release}": bzimage(f"{release} (x@y) #1", arch=arch),
        NETWORK_CARD.format(release): elf(modinfo=["depends="]),
    }
    return repository.add(name, version, files)


def test_a_package_is_fetched_once_and_then_needs_no_repository(
    cache: PackageCache, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    package = cache.package("tool", Arch.AMD64)
    assert (package.version, (package.tree / "bin/tool").read_bytes()) == ("1.0", b"one")
    shutil.rmtree(repository.root)
    monkeypatch.setenv("PATH", "/nonexistent")  # not even apt
    assert again(cache, repository).package("tool", Arch.AMD64) == package


def test_refresh_takes_the_newer_version(cache: PackageCache, repository: Repository) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    cache.package("tool", Arch.AMD64)
    repository.add("tool", "1.1", {"bin/tool": b"two"})
    assert again(cache, repository).package("tool", Arch.AMD64).version == "1.0"
    assert again(cache, repository, refresh=True).package("tool", Arch.AMD64).version == "1.1"


def test_an_older_version_where_the_newest_is_gone_and_that_is_said(
    cache: PackageCache, repository: Repository, said: list[str]
) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    repository.add("tool", "1.1", {"bin/tool": b"two"}).unlink()
    assert cache.package("tool", Arch.AMD64).version == "1.0"
    assert any("tool 1.1 can't be had; taking 1.0" in message for message in said)


@pytest.mark.parametrize("damage", ["gone", "other bytes"])
def test_what_does_not_verify_is_not_taken(cache: PackageCache, repository: Repository, damage: str) -> None:
    deb = repository.add("tool", "1.0", {"bin/tool": b"one"})
    if damage == "gone":
        deb.unlink()
    else:
        deb.write_bytes(bytes(deb.stat().st_size))
    with pytest.raises(PackageError, match=r"tool_1\.0_amd64\.deb can't be had: .*(stat|mismatch)"):
        cache.package("tool", Arch.AMD64)
    assert not list(cache.cache.root.glob("debs/**/*.deb"))


def test_an_unknown_package_is_named(cache: PackageCache, repository: Repository) -> None:
    repository.add("tool", "1.0", {})
    with pytest.raises(PackageError, match="no package nothing-like-it for amd64"):
        cache.package("nothing-like-it", Arch.AMD64)


def test_the_very_same_package_comes_back_from_its_deb_or_from_its_version(
    cache: PackageCache, repository: Repository
) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    package = cache.package("tool", Arch.AMD64)
    told = package_named(cache.cache.root, "tool", "1.0", "amd64")
    assert told.sha256 == package.sha256
    repository.add("tool", "1.1", {"bin/tool": b"two"})
    for lost in (package.tree, package.deb.parent):  # the second time it has to be downloaded
        shutil.rmtree(lost)
        shutil.rmtree(package.tree, ignore_errors=True)
        again(cache, repository).restore(told)
        assert (package.tree / "bin/tool").read_bytes() == b"one"
    shutil.rmtree(cache.cache.root / "debs")
    shutil.rmtree(package.tree)
    repository.stanzas.pop(0)
    repository.add("other", "1.0", {})
    with pytest.raises(PackageError, match=r"tool 1\.0 \(amd64\) is offered no more, 1\.1 is"):
        again(cache, repository).restore(told)


def test_a_source_that_fails_is_done_without(tmp_path: Path, repository: Repository, said: list[str]) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    sources = f"deb copy:{tmp_path}/vendor ./\n{repository.sources}"
    package = PackageCache(tmp_path / "cache", said.append, sources=sources).package("tool", Arch.AMD64)
    assert package.version == "1.0"
    assert any("without a package source" in message and "vendor" in message for message in said)


def test_no_source_at_all_is_told_in_apts_words(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path, sources=f"deb copy:{tmp_path}/nothing ./\n")
    with pytest.raises(PackageError, match=r"no package index for i386 .*nothing") as caught:
        cache.package("tool", Arch.I386)
    assert "RIG_MIRROR" in caught.value.hint


def test_a_suite_that_the_mirror_does_not_carry_is_named(tmp_path: Path) -> None:
    gone = Kernel("old", "", package=r"linux-image-{flavour}", suite="bullseye")
    cache = PackageCache(tmp_path / "cache", sources=f"deb copy:{tmp_path}/mirror bookworm main\n")
    with pytest.raises(PackageError, match=r"the suite bullseye: no package index for amd64 ") as caught:
        cache.kernel(gone, guest())
    assert "does the mirror still carry bullseye?" in caught.value.hint
    flat = PackageCache(tmp_path / "cache", sources=f"deb copy:{tmp_path}/mirror ./\n")
    with pytest.raises(PackageError, match="no package source that the suite bullseye could come from"):
        flat.kernel(gone, guest())


def test_refresh_does_not_pass_off_old_indexes_as_new(cache: PackageCache, repository: Repository) -> None:
    repository.add("tool", "1.0", {"bin/tool": b"one"})
    cache.package("tool", Arch.AMD64)
    shutil.rmtree(repository.root)
    with pytest.raises(PackageError, match="no package index"):
        again(cache, repository, refresh=True).package("tool", Arch.AMD64)


def test_without_apt_it_says_what_is_needed(cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="apt-get is not on this machine") as caught:
        cache.package("tool", Arch.AMD64)
    assert "RIG_MIRROR" in caught.value.hint
    assert "--kernel" in caught.value.hint


def test_the_newest_kernel_that_downloads(cache: PackageCache, repository: Repository, said: list[str]) -> None:
    add_kernel(repository, "linux-image-6.1.0-9-amd64", "6.1.90-1")
    add_kernel(repository, "linux-image-6.1.0-50-amd64", "6.1.176-1")
    add_kernel(repository, "linux-image-6.1.0-51-amd64", "6.1.180-1").unlink()
    for other in ("6.1.0-60-rt-amd64", "6.1.0-60-amd64-dbg", "6.1.0-60-amd64-unsigned"):
        add_kernel(repository, f"linux-image-{other}", "6.1.200-1")
    files = cache.kernel(KERNEL, guest())
    assert (files.name, files.release, files.arch) == ("debian-6.1", "6.1.0-50-amd64", Arch.AMD64)
    assert [module.name for module in files.modules] == ["8139cp.ko"]
    assert any("linux-image-6.1.0-51-amd64_6.1.180-1_amd64.deb can't be had" in message for message in said)
    shutil.rmtree(repository.root)
    assert again(cache, repository).kernel(KERNEL, guest()) == files


def test_a_dom0_gets_what_reaches_the_hypervisor_and_the_crash_kernel_does_not(
    cache: PackageCache, repository: Repository
) -> None:
    xen = "lib/modules/6.1.0-9-amd64/kernel/drivers/xen/{}.ko"
    repository.add(
        "linux-image-6.1.0-9-amd64",
        "6.1.90-1",
        {
            "boot/vmlinuz-6.1.0-9-amd64": bzimage("6.1.0-9-amd64 (x@y)"),
            NETWORK_CARD.format("6.1.0-9-amd64"): elf(),
            xen.format("xen-privcmd"): elf(),
            xen.format("xenfs/xenfs"): elf(modinfo=["depends=xen-privcmd"]),
        },
    )
    dom0 = dataclasses.replace(guest(), name="xen", hypervisor="xen-hypervisor-4.17-amd64")
    for one, names in ((dom0, ["xen-privcmd.ko", "xenfs.ko"]), (guest(), [])):
        files = cache.kernel(KERNEL, one)
        assert [module.name for module in files.dom0_modules] == names
        assert [module.name for module in files.modules] == ["8139cp.ko"]


def test_a_wide_pattern_takes_no_kernel_of_another_kind(cache: PackageCache, repository: Repository) -> None:
    add_kernel(repository, "linux-image-6.1.0-1-amd64", "1")
    add_kernel(repository, "linux-image-6.1.0-2-rt-amd64", "2")
    add_kernel(repository, "linux-image-6.1.0-2-cloud-amd64", "2")
    wide = Kernel("any", "", package="linux-image-.*-{flavour}")
    assert cache.kernel(wide, guest()).release == "6.1.0-1-amd64"
    wanted = Kernel("rt", "", package="linux-image-.*-rt-{flavour}")
    assert cache.kernel(wanted, guest()).release == "6.1.0-2-rt-amd64"


def test_an_image_that_lies_in_a_package_it_depends_on(
    cache: PackageCache, repository: Repository, said: list[str]
) -> None:
    repository.add("linux-image-6.1.0-1-amd64", "1", {}, depends="linux-binary-6.1.0-1-amd64 (= 1), kmod")
    repository.add("linux-binary-6.1.0-1-amd64", "1", {"usr/lib/modules/6.1.0-1/vmlinuz": bzimage("6.1.0-1 (x@y)")})
    assert cache.kernel(KERNEL, guest()).release == "6.1.0-1"
    assert said[-1].startswith("linux-image-6.1.0-1-amd64 has no module 8139cp: no SSH")


def test_no_such_kernel_says_which_there_are(cache: PackageCache, repository: Repository) -> None:
    for name in ("linux-image-6.5.0-1-amd64", "linux-image-6.5.0-1-amd64-dbg", "linux-image-amd64"):
        repository.add(name, "1", {})
    with pytest.raises(PackageError, match=r"no kernel package .*-amd64 for amd64 in the package sources") as caught:
        cache.kernel(KERNEL, guest())
    assert "kernels for amd64 there: linux-image-6.5.0-1-amd64. " in caught.value.hint


def test_a_kernel_of_which_nothing_downloads(cache: PackageCache, repository: Repository) -> None:
    add_kernel(repository, "linux-image-6.1.0-1-amd64", "1").unlink()
    with pytest.raises(PackageError, match=r"no kernel package .* could be had for amd64: .*stat"):
        cache.kernel(KERNEL, guest())


def test_matching_is_ordered_by_version_not_by_name(cache: PackageCache, repository: Repository) -> None:
    for name, version in {"lib-a": "1.10", "lib-b": "1.9", "lib-c": "1.10~rc1", "other": "2"}.items():
        repository.add(name, version, {})
    assert cache.matching("lib-[a-z]", Arch.AMD64) == ["lib-a", "lib-c", "lib-b"]


def test_userland_takes_libraries_and_leaves_the_rest(cache: PackageCache, repository: Repository) -> None:
    repository.add("busybox-static", "1", {"bin/busybox": elf()})
    repository.add(
        "kexec-tools",
        "1",
        {"usr/sbin/kexec": elf(LOADER, ["libxen.so.4", "libc.so.6"])},
        depends="libxen4 | libxen-other, debconf (>= 1) | debconf-2.0",
    )
    repository.add("dropbear-bin", "1", {"usr/sbin/dropbear": elf(LOADER, ["libc.so.6"])}, depends="libc6")
    repository.add("libxen4", "1", {"usr/lib/libxen.so.4": elf()}, depends="libc6", section="libs")
    libc = {"lib/libc.so.6": elf(), LOADER.lstrip("/"): elf()}
    repository.add("libc6", "1", libc, section="libs")
    repository.add("debconf", "1", {"usr/lib/libdebconf.so": elf()}, section="admin")
    userland = cache.userland(Arch.AMD64)
    assert list(userland.files) == [
        "/bin/busybox",
        "/lib/libc.so.6",
        "/lib/libxen.so.4",
        LOADER,
        "/sbin/kexec",
        "/usr/sbin/dropbear",
    ]
    assert not list(cache.cache.root.glob("trees/debconf*"))
    shutil.rmtree(repository.root)
    assert again(cache, repository).userland(Arch.AMD64) == userland


def test_makedumpfile_comes_only_when_the_dump_is_filtered(cache: PackageCache, repository: Repository) -> None:
    for package, path in (("busybox-static", "bin/busybox"), ("kexec-tools", "sbin/kexec"), ("dropbear-bin", DROPBEAR)):
        repository.add(package, "1", {path: elf()})
    assert MAKEDUMPFILE not in cache.userland(Arch.AMD64, Dump.RAW).files
    repository.add("makedumpfile", "1", {"usr/bin/makedumpfile": elf()})
    renewed = again(cache, repository, refresh=True)
    assert MAKEDUMPFILE in renewed.userland(Arch.AMD64, Dump.MAKEDUMPFILE).files
    assert MAKEDUMPFILE not in renewed.userland(Arch.AMD64).files


def test_headers_are_one_tree_that_leads_to_itself(cache: PackageCache, repository: Repository) -> None:
    repository.add("linux-image-6.1.0-1-amd64", "1", {"boot/vmlinuz-1": bzimage("6.1.0-1-amd64 (x)")})
    main = {"usr/src/linux-headers-6.1.0-1-amd64/Makefile": b"include /usr/src/linux-headers-common/Makefile\n"}
    depends = "linux-headers-common (= 1), linux-kbuild-6.1 (>= 1), gcc-12"
    repository.add("linux-headers-6.1.0-1-amd64", "1", main, depends=depends)
    common = b"modules:\n\t@cat tools/which\n"
    repository.add("linux-headers-common", "1", {"usr/src/linux-headers-common/Makefile": common})
    for version in ("1", "2"):  # the tools in the headers' own version
        which = f"tools {version}".encode()
        repository.add("linux-kbuild-6.1", version, {"usr/src/linux-headers-6.1.0-1-amd64/tools/which": which})
    directory = cache.headers(cache.kernel(KERNEL, guest()))
    assert directory.name == "linux-headers-6.1.0-1-amd64"
    argv = ["make", "-s", "-C", str(directory), "modules"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "tools 1"


def users(path: Path) -> Kernel:
    return Kernel("mine", "", image=path)


def test_a_users_kernel_is_taken_as_it_is(cache: PackageCache, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage("6.9.0-mine+ (me@home) #3"))
    files = cache.kernel(users(tmp_path / "bzImage"), guest())
    assert (files.name, files.release, files.modules) == ("mine", "6.9.0-mine+", ())
    assert files.bzimage == tmp_path / "bzImage"
    assert any("the configuration is not embedded" in message for message in said)


def test_a_users_kernel_for_another_guest(cache: PackageCache, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage("6.9.0 (x)", arch=Arch.I386))
    with pytest.raises(UnsuitableKernel, match="for i386, the guest x86_64 is amd64"):
        cache.kernel(users(tmp_path / "bzImage"), guest())


def test_a_users_kernel_that_lacks_kexec(cache: PackageCache, tmp_path: Path) -> None:
    config = "CONFIG_X86_64=y\n# CONFIG_KEXEC is not set\n"
    (tmp_path / "bzImage").write_bytes(bzimage("6.9.0 (x)", config=config))
    with pytest.raises(UnsuitableKernel, match="CONFIG_KEXEC"):
        cache.kernel(users(tmp_path / "bzImage"), guest())


def test_a_truncated_users_kernel(cache: PackageCache, tmp_path: Path) -> None:
    image = bzimage("6.9.0 (x)")
    (tmp_path / "bzImage").write_bytes(image[:-17])
    with pytest.raises(UnsuitableKernel, match="truncated"):
        cache.kernel(users(tmp_path / "bzImage"), guest())
