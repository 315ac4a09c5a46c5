"""A kernel that calls itself 2.6.18 gets what such a one needs, and one that hands over as 2.6.18 did is seen to.

All are today's: forged is what the one says in its header, and the way that a module has the other one take. The first
of these runs builds the userland for old kernels: a minute or two.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

from rig.catalog import load
from rig.evidence.reader import Evidence
from rig.guest.packages import PackageCache
from rig.prepare import obtain
from tests.runs.conftest import checks, figures, rig

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

# The place of old kernels' crash region, at 16 MiB, is where today's kernel itself lies.
SCENARIO = """\
description = "as panic, with a crash region above the first kernel"
trigger = "sysrq-c"
guests = ["i386", "pae", "x86_64"]
cmdline = "nokaslr"
crashkernel = "128M@128M"
"""


def aged(bzimage: bytes) -> bytes:
    """Another version string, and relocatable_kernel (boot.rst, offset 0x234) cleared."""
    image = bytearray(bzimage)
    (pointer,) = struct.unpack_from("<H", image, 0x20E)
    start = pointer + 0x200
    end = image.index(0, start)
    image[start:end] = b"2.6.18 (forged)".ljust(end - start, b"\0")
    image[0x234] = 0
    return bytes(image)


@pytest.mark.parametrize("name", ["i386", "x86_64"])
def test_chosen_by_what_the_images_header_says(name: str, tmp_path: Path) -> None:
    catalogue = load()
    guest = catalogue.guests[name]
    stock = PackageCache().kernel(catalogue.kernels[guest.kernel], guest)
    (tmp_path / "old").write_bytes(aged(stock.bzimage.read_bytes()))
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios/placed.toml").write_text(SCENARIO)
    asked = ("--guest", name, "--kernel", tmp_path / "old", "--catalogue", tmp_path)
    done = rig("run", "placed", *asked, "--json", "--results", tmp_path / "results")
    result = done.results[name]
    assert (result["kernel"]["release"], result["crash_kernel"]["release"]) == ("2.6.18", stock.release)
    assert result["environment"]["userland"] == "built with musl"
    assert "2.6.18 is not relocatable" in result["environment"]["crash_kernel_note"]
    assert "2.6.18 is not relocatable" in done.err
    verdicts = checks(result)
    assert verdicts.pop("memory-accounted") == "error"
    assert set(verdicts.values()) == {"pass"}, done.err
    assert figures(result, "pgd-survives")["bytes_changed"] == 0
    assert (done.status, result["verdict"]) == (3, "error")


# After a plain kexec the first kernel lies at the top of memory, and the place at 16 MiB is free.
LINKED = """\
description = "as panic, with a crash kernel that runs where it was linked to"
trigger = "sysrq-c"
guests = ["x86_64"]
cmdline = "nokaslr"
crashkernel = "128M@16M"
hops = 1
"""


def test_a_vmlinux_is_a_crash_kernel_too(tmp_path: Path) -> None:
    """As 2.6.18 has to be: at 16 MiB, with its memory map on the command line."""
    catalogue = load()
    crash = obtain(catalogue.kernels["built-6.1"], catalogue.guests["x86_64"], PackageCache(), threading.Event())
    assert crash.vmlinux is not None
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios/linked.toml").write_text(LINKED)
    asked = ("--crash-kernel", crash.vmlinux, "--catalogue", tmp_path)
    done = rig("run", "linked", *asked, "--json", "--results", tmp_path / "results")
    assert done.status == 0, done.err
    facts = Evidence(done.directories["x86_64"]).facts
    assert (facts.crash_kernel.name, facts.crash_kernel.release) == ("vmlinux", crash.release)
    assert facts.crash_proc_cmdline is not None
    assert " memmap=exactmap memmap=" in facts.crash_proc_cmdline


# What an entry of the table at CR3 maps: bytes, as a power of two.
SLOTS = {"i386": 22, "pae": 30, "x86_64": 39}


@pytest.mark.parametrize("name", SLOTS)
def test_the_way_of_old_kernels_loses_the_pgd_and_is_else_as_it_should_be(name: str, tmp_path: Path) -> None:
    scenario = "way-of-2.6.18-pde" if name == "i386" else "way-of-2.6.18"
    done = rig("run", scenario, "--guest", name, "--json", "--results", tmp_path)
    assert done.status == 0, done.err  # exactly the checks fail that the scenario names
    result = done.results[name]
    pgd, page = figures(result, "pgd-survives"), figures(result, "control-code-fits")["page"]
    changed = [entry["index"] for entry in pgd["entries_changed"]]
    assert page >> SLOTS[name] in changed
    assert max(changed) < 256 if name == "x86_64" else len(changed) == 1
    assert {entry["checkpoint"] for entry in pgd["entries_changed"]} == {"handover"}
    assert any("at_machine_kexec" in caller for caller in pgd["writers"][0]["called_from"])
    # CR3 was loaded with what was in it: the tables change once, on the control page
    [switch] = figures(result, "switch-is-safe")["switches"]
    assert switch["next"] & ~0xFFF == page
