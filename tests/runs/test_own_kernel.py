"""A developer's own kernel: nothing but the bzImage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.conftest import checks, figures, rig

pytestmark = pytest.mark.vm


def test_a_bare_bzimage_is_judged_over_the_console(own_bzimage: Path, tmp_path: Path) -> None:
    """It has no module for the network card beside it: the dump comes over the console, and the result says so."""
    done = rig("run", "panic", "--guest", "x86_64", "--kernel", own_bzimage, "--json", "--results", tmp_path)
    result = done.results["x86_64"]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    assert set(checks(result).values()) == {"pass"}
    assert figures(result, "pgd-survives")["vmcore"]["via"] == "console"
    assert "no SSH" in done.err
    assert result["kernel"]["name"] == "bzImage"


@pytest.mark.parametrize(
    ("guest", "content", "words"),
    [
        ("x86_64", b"\x7fELF not bootable", "vmlinux"),
        ("x86_64", b"", "is empty"),
        ("x86_64", b"#!/bin/sh\n", "not a bzImage"),
    ],
)
def test_what_is_no_bzimage_is_refused(guest: str, content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(content)
    done = rig("run", "panic", "--guest", guest, "--kernel", file, "--results", tmp_path / "results")
    assert done.status == 2
    assert words in done.err
    assert not list((tmp_path / "results").iterdir())


def test_a_kernel_for_the_other_architecture_is_refused(own_bzimage: Path, tmp_path: Path) -> None:
    done = rig("run", "panic", "--guest", "pae", "--kernel", own_bzimage, "--results", tmp_path / "results")
    assert done.status == 2
    assert "amd64" in done.err
    assert "i386" in done.err
