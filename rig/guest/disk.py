"""The disk that the crash kernel may write its dump to, and that the rig reads afterwards.

A sparse file without a name: nothing of it is left when the rig and QEMU are gone. The machine has it from the start,
like the network card, but the first kernel loads no driver for it: it never asks the disk to write to memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rig.errors import GuestError, NotOffered, ProtocolError
from rig.vm.deadline import Deadline
from rig.vm.machine import DISK
from rig.vm.qemu import Vm
from rig.vm.shell import Shell

DEVICE = "/dev/vda"
# Of the guest's memory: a dump is a little larger than that, for it has the kernel's image twice, and headers.
_ROOM = 2
_FIRMWARE = 512  # bytes: the BIOS reads the boot sector
_PART = 1 << 20  # bytes read at once
_POSITION = re.compile(r"^pos:\s+(\d+)$", re.MULTILINE)  # Documentation/filesystems/proc.rst, /proc/PID/fdinfo


def create(folder: Path, memory: int) -> IO[bytes]:
    """An empty disk for a guest with `memory` bytes. Its space is taken in the folder's file system, as it fills."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller's to close
    file.truncate(_ROOM * memory)
    return file


def require_untouched(vm: Vm) -> None:
    """Raises GuestError when a kernel has used the disk: then it has given it memory to write to.

    What Linux does first with a disk is to read at least a page, for a partition table.
    """
    found = [each["stats"] for each in vm.qmp.execute("query-blockstats") if each.get("node-name") == DISK]
    if len(found) != 1:
        raise ProtocolError(f"QEMU has {len(found)} disks named {DISK}", sent="query-blockstats")
    read, written = (int(found[0][name]) for name in ("rd_bytes", "wr_bytes"))
    if read > _FIRMWARE or written:
        raise GuestError(
            f"the first kernel used the disk that is meant for the dump: {read} bytes read, {written} written",
            hint="it has CONFIG_VIRTIO_BLK=y and drives any such disk; take its dump over SSH",
        )


def write(shell: Shell, command: str, deadline: Deadline) -> int:
    """Run a command in the crash kernel with the disk as its output; how many bytes it wrote.

    Raises NotOffered when there is no disk, GuestCommandFailed when the command fails, or the disk does.
    """
    if shell.run(f"[ -b {DEVICE} ] || echo none", deadline):
        raise NotOffered(f"the crash kernel has no {DEVICE}: it lacks CONFIG_VIRTIO_PCI or CONFIG_VIRTIO_BLK")
    # fsync, and not sync: only that tells when the disk refused what it was given before
    told = shell.run(
        f"exec 3>{DEVICE} && {command} >&3 && dd if=/dev/null conv=fsync >&3 && cat /proc/self/fdinfo/3", deadline
    )
    match = _POSITION.search(told)
    if not match:
        raise ProtocolError("the guest does not say how much it wrote", sent=command, received=told)
    return int(match[1])


def read(disk: IO[bytes], size: int) -> Iterator[bytes]:
    """The disk's first `size` bytes, in parts."""
    disk.seek(0)
    while size and (part := disk.read(min(_PART, size))):
        size -= len(part)
        yield part
