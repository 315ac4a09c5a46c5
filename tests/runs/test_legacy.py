"""A kernel that calls itself 2.6.18 gets what such a one needs. It is today's: only what its header says is forged.

The first of these runs builds the userland for old kernels: a minute or two.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rig.catalog import load
from rig.guest.packages import PackageCache
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
