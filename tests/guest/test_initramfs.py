"""cpio archives, read back by a reader of the test's own (cpio(5), New ASCII Format)."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rig.guest.initramfs import CharDevice, Entry, Pieces, Symlink, base, cpio, first, hop, run_segment
from rig.model import Arch, Userland

Member = tuple[int, bytes, tuple[int, int]]  # mode, data, device


def read(pieces: Pieces) -> list[dict[str, Member]]:
    """The archives of an image one after the other, as the kernel reads them: zeros between them skipped."""
    image = b"".join(pieces)
    archives: list[dict[str, Member]] = [{}]
    at = 0
    while at < len(image):
        if image[at] == 0:
            at += 4
            continue
        assert image[at : at + 6] == b"070701", f"no header at {at}"
        fields = [int(image[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = image[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        at = (start + size + 3) & ~3
        if name == "TRAILER!!!":
            archives.append({})
        else:
            archives[-1][name] = (mode, image[start : start + size], device)
    assert archives.pop() == {}, "the last archive has no trailer"
    return archives


def test_one_of_each_kind() -> None:
    [archive] = read(
        cpio(
            [
                Entry("/rig/a", 0o644, b"12345"),
                Entry("/bin/sh", 0o777, Symlink("busybox")),
                Entry("/dev/console", 0o600, CharDevice(5, 1)),
                Entry("/root", 0o700, None),
            ]
        )
    )
    directory = (stat.S_IFDIR | 0o755, b"", (0, 0))
    assert archive == {
        "bin": directory,
        "bin/sh": (stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        "dev": directory,
        "dev/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
        "rig": directory,
        "rig/a": (stat.S_IFREG | 0o644, b"12345", (0, 0)),
        "root": (stat.S_IFDIR | 0o700, b"", (0, 0)),
    }


def test_directories_come_before_what_is_in_them() -> None:
    [archive] = read(cpio([Entry("/a/b/c", 0o644, b""), Entry("/a-", 0o644, b"")]))
    names = list(archive)
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


def test_the_same_entries_give_the_same_bytes_in_any_order() -> None:
    entries = [Entry("/b", 0o644, b"x"), Entry("/a", 0o644, b"y")]
    assert cpio(entries) == cpio(reversed(entries))
    assert len(b"".join(cpio(entries))) % 512 == 0


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a/", "/", "//a", ""])
def test_paths_that_would_land_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        cpio([Entry(path, 0o644, b"")])


def test_a_path_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio([Entry("/a", 0o644, b"1"), Entry("/a", 0o644, b"2")])


@pytest.fixture
def busybox(tmp_path: Path) -> Userland:
    (tmp_path / "busybox").write_bytes(b"ELF")
    return Userland(Arch.I386, {"/bin/busybox": tmp_path / "busybox"}, {"/bin/busybox": ()})


def test_the_base_has_what_the_kernel_looks_for_and_modules_in_load_order(tmp_path: Path, busybox: Userland) -> None:
    modules = [tmp_path / "mii.ko", tmp_path / "e1000.ko"]
    for module in modules:
        module.write_text(module.name)
    [archive] = read(base(busybox, modules, b"#!/bin/busybox sh\n"))
    assert archive["init"] == (stat.S_IFREG | 0o755, b"#!/bin/busybox sh\n", (0, 0))
    assert archive["bin/busybox"] == (stat.S_IFREG | 0o755, b"ELF", (0, 0))
    assert archive["dev/console"][2] == (5, 1)
    assert archive["dev/null"][2] == (1, 3)
    assert archive["etc/passwd"][1] == b"root::0:0:root:/root:/bin/sh\n"
    assert [name for name in archive if name.startswith("rig/modules/")] == [
        "rig/modules/00-mii.ko",
        "rig/modules/01-e1000.ko",
    ]


def test_keys_are_readable_by_root_alone() -> None:
    [archive] = read(run_segment("ssh-ed25519 AAAA test\n", b"\1\2"))
    assert archive["root"][0] == stat.S_IFDIR | 0o700
    assert archive["root/.ssh"][0] == stat.S_IFDIR | 0o700
    key = archive["root/.ssh/authorized_keys"]
    assert key == (stat.S_IFREG | 0o600, b"ssh-ed25519 AAAA test\n", (0, 0))
    assert archive["etc/dropbear/dropbear_ed25519_host_key"] == (stat.S_IFREG | 0o600, b"\1\2", (0, 0))


def test_a_hop_carries_the_first_kernel_once_more_and_an_image_without_hops(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"kernel")
    one = cpio([Entry("/one", 0o644, b"")])
    [archive] = read(hop(tmp_path / "bzImage", one))
    assert (archive["rig/hop-kernel"][1], archive["rig/hop-initrd"][1]) == (b"kernel", b"".join(one))


@pytest.mark.parametrize("with_control", [False, True])
def test_the_first_kernels_image_carries_the_crash_kernels(tmp_path: Path, with_control: bool) -> None:
    (tmp_path / "bzImage").write_bytes(b"kernel")
    (tmp_path / "bad.ko").write_bytes(b"sabotage")
    control = tmp_path / "bad.ko" if with_control else None
    one, crash, keys = (cpio([Entry(path, 0o644, b"")]) for path in ("/one", "/crash", "/keys"))
    base_archive, added = read(first(one, tmp_path / "bzImage", crash, keys, control))
    assert "one" in base_archive
    assert added["rig/crash-kernel"][1] == b"kernel"
    assert [list(archive) for archive in read((added["rig/crash-initrd"][1],))] == [["crash"], ["keys"]]
    assert ("rig/control.ko" in added) is with_control
