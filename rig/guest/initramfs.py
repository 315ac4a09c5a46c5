"""Initramfs images: cpio archives, newc format (Documentation/driver-api/early-userspace/buffer-format.rst).

The kernel unpacks any number of archives one after the other, so an image is put together from segments, each
built once. Nothing is compressed: a user's kernel may lack any decompressor. Segments are kept in pieces, which add up,
and are joined by whoever writes them: images hold images, and each copy would cost tens of megabytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rig.loads import JUMP
from rig.model import Userland

HYPERVISOR = "/rig/xen"  # the one that dom0 is to start
Pieces = tuple[bytes, ...]  # of an archive, or of several, one after the other

_ALIGNMENT = 512  # bytes; any multiple of 4 does for the next segment


@dataclass(frozen=True)
class Symlink:
    target: str


@dataclass(frozen=True)
class CharDevice:
    major: int
    minor: int


_NO_DEVICE = CharDevice(0, 0)


@dataclass(frozen=True)
class Entry:
    """One path in the archive, owned by root. path: absolute, in the guest. mode: permission bits.

    content: a file's bytes, at once or in pieces, a link, a device, or None for a directory.
    """

    path: str
    mode: int
    content: bytes | Pieces | Symlink | CharDevice | None


def cpio(entries: Iterable[Entry]) -> Pieces:
    """One archive: sorted by path, without times, the same bytes for the same entries.

    Directories above an entry are added (0755) where they aren't given. Padded to 512 bytes.

    :raise ValueError: a path that isn't absolute and plain, or is there twice
    """
    given: dict[str, Entry] = {}
    for entry in entries:
        path = PurePosixPath(entry.path)
        plain = str(path) == entry.path and path.root == "/" and path != path.parent
        if not plain or ".." in path.parts:
            raise ValueError(f"not an absolute, plain path: {entry.path!r}")
        if entry.path in given:
            raise ValueError(f"twice in one archive: {entry.path}")
        given[entry.path] = entry
    above = {str(parent) for path in given for parent in PurePosixPath(path).parents} - {"/"}
    directories = {path: Entry(path, 0o755, None) for path in above}
    members = sorted((directories | given).items())
    parts = [piece for number, (_, entry) in enumerate(members, start=1) for piece in _member(number, entry)]
    parts += _record(0, 0, "TRAILER!!!", ())
    return (*parts, bytes(-_size(parts) % _ALIGNMENT))


def base(userland: Userland, modules: Sequence[Path], init: bytes) -> Pieces:
    """The segment that doesn't change from run to run: /init, programs, modules in load order.

    modules arrive as /rig/modules/00-NAME.ko, 01-NAME.ko ... Root has no password, and needs none: the only
    way in is a key (run_segment).
    """
    entries = [
        Entry("/init", 0o755, init),
        # Before devtmpfs is mounted: the kernel opens /dev/console for init's standard streams.
        Entry("/dev/console", 0o600, CharDevice(5, 1)),
        Entry("/dev/null", 0o666, CharDevice(1, 3)),
        Entry("/etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n"),
        Entry("/etc/shells", 0o644, b"/bin/sh\n"),  # the SSH server refuses a shell that isn't listed
        Entry("/etc/dropbear", 0o755, None),
        Entry("/root", 0o700, None),
    ]
    entries += [Entry(path, 0o755, file.read_bytes()) for path, file in userland.files.items()]
    entries += [
        Entry(f"/rig/modules/{number:02}-{module.name}", 0o644, module.read_bytes())
        for number, module in enumerate(modules)
    ]
    return cpio(entries)


def run_segment(authorized_key: str, host_key: bytes) -> Pieces:
    """This run's keys. authorized_key: a line of authorized_keys. host_key: Ed25519, in dropbear's format."""
    return cpio(
        [
            Entry("/root", 0o700, None),
            Entry("/root/.ssh", 0o700, None),
            Entry("/root/.ssh/authorized_keys", 0o600, authorized_key.strip().encode() + b"\n"),
            Entry("/etc/dropbear/dropbear_ed25519_host_key", 0o600, host_key),
        ]
    )


def first(
    base_segment: Pieces,
    crash_bzimage: Path,
    crash_base_segment: Pieces,
    run_segment: Pieces,
    control: Path | None = None,
    trigger: Path | None = None,
) -> Pieces:
    """The first kernel's whole initramfs: its base, and what it loads for the crash.

    /rig/crash-kernel, /rig/crash-initrd (the crash kernel's base and this run's keys) and, for a sabotage,
    /rig/control.ko, for a trigger that takes a module /rig/trigger.ko.
    """
    entries = [
        Entry("/rig/crash-kernel", 0o644, crash_bzimage.read_bytes()),
        Entry("/rig/crash-initrd", 0o644, crash_base_segment + run_segment),
    ]
    modules = {"/rig/control.ko": control, "/rig/trigger.ko": trigger}
    entries += [Entry(path, 0o644, file.read_bytes()) for path, file in modules.items() if file is not None]
    return base_segment + cpio(entries)


def hypervisor(image: Path) -> Pieces:
    """A segment with the hypervisor that dom0 is to start."""
    return cpio([Entry(HYPERVISOR, 0o644, image.read_bytes())])


def jumping(base_segment: Pieces, program: bytes) -> Pieces:
    """The initramfs of a kernel that makes a kexec jump: its base, and the program that loads and enters the image."""
    return base_segment + cpio([Entry(JUMP, 0o755, program)])


def hop(bzimage: Path, initramfs: Pieces) -> Pieces:
    """A segment with the kernel that the first one enters itself by, /rig/hop-kernel, and /rig/hop-initrd for it."""
    return cpio([Entry("/rig/hop-kernel", 0o644, bzimage.read_bytes()), Entry("/rig/hop-initrd", 0o644, initramfs)])


def _size(pieces: Iterable[bytes]) -> int:
    return sum(map(len, pieces))


def _member(inode: int, entry: Entry) -> Pieces:
    name, mode = entry.path.lstrip("/"), entry.mode
    match entry.content:
        case bytes(data):
            return _record(inode, stat.S_IFREG | mode, name, (data,))
        case tuple(pieces):
            return _record(inode, stat.S_IFREG | mode, name, pieces)
        case Symlink(target):
            return _record(inode, stat.S_IFLNK | mode, name, (target.encode(),))
        case CharDevice() as device:
            return _record(inode, stat.S_IFCHR | mode, name, (), device)
        case None:
            return _record(inode, stat.S_IFDIR | mode, name, ())


def _record(inode: int, mode: int, name: str, data: Pieces, device: CharDevice = _NO_DEVICE) -> Pieces:
    """c_magic and thirteen fields of eight hex digits, the name with its NUL, the data; each padded to 4."""
    encoded = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
    fields = (inode, mode, 0, 0, 1, 0, _size(data), 0, 0, device.major, device.minor, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return (header + bytes(-len(header) % 4), *data, bytes(-_size(data) % 4))
