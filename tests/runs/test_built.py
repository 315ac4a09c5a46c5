"""A kernel built from source, as a user runs it. Minutes when the cache hasn't got it, seconds when it has."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from rig.catalog import load
from rig.guest.packages import PackageCache
from rig.prepare import obtain
from tests.runs.conftest import checks, figures, rig

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]


# Both are built for other tests, too.
@pytest.mark.parametrize(("kernel", "guest"), [("built-6.1", "x86_64"), ("built-7.2-jump", "i386")])
def test_a_plain_kernel_passes_and_its_dump_comes_over_ssh(kernel: str, guest: str, tmp_path: Path) -> None:
    done = rig("run", "panic", "--kernel", kernel, "--guest", guest, "--json", "--results", tmp_path)
    result = done.results[guest]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    assert set(checks(result).values()) == {"pass"}
    assert figures(result, "pgd-survives")["vmcore"]["via"] == "ssh"


def test_it_carries_the_types_that_readers_of_a_dump_need() -> None:
    catalogue = load(())
    files = obtain(catalogue.kernels["built-6.1"], catalogue.guests["x86_64"], PackageCache(), threading.Event())
    assert files.vmlinux is not None
    with files.vmlinux.open("rb") as stream:
        units = ELFFile(stream).get_dwarf_info().iter_CUs()
        structs = {
            die.attributes["DW_AT_name"].value
            for unit in units
            for die in unit.get_top_DIE().iter_children()
            if die.tag == "DW_TAG_structure_type"
            and "DW_AT_name" in die.attributes
            and "DW_AT_byte_size" in die.attributes
        }
    assert {b"task_struct", b"mm_struct", b"page", b"kimage"} <= structs
