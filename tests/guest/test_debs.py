"""Unpacking, and the order in which modules are loaded."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest
import zstandard

from rig.errors import PackageError
from rig.guest.debs import decompress_module, kernel_files, load_order, module_depends, unpack, unpack_kernel
from tests.guest.forge import Repository, elf, needs_apt

NETWORK = "lib/modules/6.1/kernel/drivers/net"


def module(*depends: str) -> bytes:
    return elf(modinfo=["license=GPL", f"depends={','.join(depends)}", "name=x"])


def test_a_modules_dependencies_are_in_its_modinfo() -> None:
    assert module_depends(module()) == ()
    assert module_depends(module("mii", "libphy")) == ("mii", "libphy")
    with pytest.raises(PackageError, match="not a kernel module"):
        module_depends(b"#!/bin/sh")


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        ("", b"text" * 9),
        (".xz", lzma.compress(b"text" * 9)),
        (".gz", gzip.compress(b"text" * 9, mtime=0)),
        (".zst", zstandard.compress(b"text" * 9)),
    ],
)
def test_modules_come_decompressed(suffix: str, packed: bytes) -> None:
    assert decompress_module(packed, suffix) == b"text" * 9


def test_load_order_puts_dependencies_first_and_survives_a_loop(tmp_path: Path) -> None:
    for name, depends in {"e1000": ["my-phy"], "my_phy": ["core"], "core": ["e1000"], "other": []}.items():
        (tmp_path / f"{name}.ko").write_bytes(module(*depends))
    assert [path.stem for path in load_order(tmp_path, ["e1000", "missing"])] == ["core", "my_phy", "e1000"]


@needs_apt
def test_of_a_kernel_only_what_boots_and_the_modules_asked_for_with_their_dependencies(
    tmp_path: Path,
) -> None:
    deb = Repository(tmp_path).add(
        "linux-image",
        "1",
        {
            "boot/vmlinuz-6.1": b"kernel",
            f"{NETWORK}/e1000.ko.xz": lzma.compress(module("my-phy")),
            f"{NETWORK}/my_phy.ko": module(),
            f"{NETWORK}/other.ko": module(),
            "usr/share/doc/readme": b"",
        },
    )
    into = tmp_path / "tree"
    unpack_kernel(deb, into, ["e1000"])
    files = sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())
    assert files == ["boot/vmlinuz-6.1", f"{NETWORK}/e1000.ko", f"{NETWORK}/my_phy.ko"]
    assert (into / NETWORK / "e1000.ko").read_bytes() == module("my-phy")


@needs_apt
@pytest.mark.parametrize("content", [b"", b"not a package"])
def test_a_torn_package_is_reported_in_dpkgs_words(tmp_path: Path, content: bytes) -> None:
    deb = tmp_path / "torn.deb"
    deb.write_bytes(content)
    with pytest.raises(PackageError, match=r"torn\.deb can't be unpacked: .*dpkg-deb"):
        unpack(deb, tmp_path / "tree")
    with pytest.raises(PackageError, match=r"torn\.deb can't be unpacked: .*dpkg-deb"):
        unpack_kernel(deb, tmp_path / "tree", [])


def test_no_disk_space_is_not_the_packages_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "dpkg-deb"
    tool.write_text("#!/bin/sh\nfor i in 1 2 3; do echo 'tar: a: No space left on device' >&2; done; exit 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(tmp_path / "a.deb", tmp_path / "tree")
    assert caught.value.errno == errno.ENOSPC


def archive(name: str, data: bytes, size: int | None = None) -> io.BytesIO:
    """A tar archive of one file; size: that it says it has."""
    member = tarfile.TarInfo(name)
    member.size = len(data) if size is None else size
    return io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + data.ljust(512, b"\0") + bytes(1024))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (archive("./boot/../../../etc/cron.d/x", b"x"), r"a file at '\./boot/.*', which leads out"),
        (archive("./lib/modules/6/../../../../a.ko", module()), "leads out of the package"),
        (archive("./boot/vmlinuz", b"x", 10 << 30), "said to have 10737418240 bytes"),
        (archive("./usr/other", b"x", 1 << 60), "its archive is broken: it ends before what its headers promise"),
        (archive("./boot/vmlinuz", b"x", 100_000), "its archive is broken: unexpected end of data"),
        (archive("./lib/modules/6/a.ko.xz", b"x"), "a module in it: compressed in a way"),
        (archive("./lib/modules/6/a.ko.gz", gzip.compress(module())[:-3]), "a module in it: broken data: it ends"),
        (io.BytesIO(b"x" * 1024), "its archive is broken"),
    ],
)
def test_an_archive_that_is_after_something(stream: io.BytesIO, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        list(kernel_files(stream, {"a"}, boot=True))
