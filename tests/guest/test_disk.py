"""The disk for the dump, with a shell and a QEMU that are only pretended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rig.errors import GuestError, NotOffered, ProtocolError
from rig.guest import disk
from rig.vm.deadline import Deadline
from rig.vm.machine import DISK
from rig.vm.qemu import Vm
from rig.vm.shell import Shell

SOON = Deadline.after(5, "the test")


def shell(*answers: str) -> Shell:
    """A guest's shell that gives these answers, one a command."""
    left = iter(answers)
    return cast(Shell, SimpleNamespace(run=lambda command, deadline: next(left)))


def machine(**stats: int) -> Vm:
    nodes: list[dict[str, Any]] = [{"node-name": "other", "stats": {}}, {"node-name": DISK, "stats": stats}]
    return cast(Vm, SimpleNamespace(qmp=SimpleNamespace(execute=lambda command: nodes)))


def test_a_disk_has_room_for_the_dump_and_takes_none_of_it(tmp_path: Path) -> None:
    with disk.create(tmp_path, 64 << 20) as file:
        assert Path(f"/proc/self/fd/{file.fileno()}").stat().st_size == 128 << 20
        assert Path(f"/proc/self/fd/{file.fileno()}").stat().st_blocks == 0
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_only_what_was_written_is_read(tmp_path: Path, size: int) -> None:
    written = bytes(number % 251 for number in range(size))
    with disk.create(tmp_path, 2 << 20) as file:
        file.write(written)
        assert b"".join(disk.read(file, size)) == written


def test_how_much_was_written_is_the_position_that_the_guest_tells() -> None:
    told = "363+1 records in\n363+1 records out\npos:\t381251584\nflags:\t0100001\nmnt_id:\t2\n"
    assert disk.write(shell("", told), "dd", SOON) == 381251584
    with pytest.raises(ProtocolError, match="how much it wrote"):
        disk.write(shell("", "363+1 records in\n"), "dd", SOON)


def test_a_kernel_without_a_driver_is_not_what_was_asked_for() -> None:
    with pytest.raises(NotOffered, match="CONFIG_VIRTIO_BLK"):
        disk.write(shell("none\n"), "dd", SOON)


def test_the_bios_may_read_the_boot_sector_and_nobody_more() -> None:
    disk.require_untouched(machine(rd_bytes=512, wr_bytes=0))
    for read, written in ((4608, 0), (512, 512)):
        with pytest.raises(GuestError, match=f"{read} bytes read, {written} written"):
            disk.require_untouched(machine(rd_bytes=read, wr_bytes=written))
