"""What is read out of apt's text, and the order of versions."""

from __future__ import annotations

import subprocess
from itertools import pairwise

import pytest

from rig.errors import MachineError
from rig.guest.apt import complaints, host_arch, parse_candidates, parse_depends, source_lines, version_key
from tests.guest.forge import needs_apt

SHOWN = """\
Package: kexec-tools
Version: 1:2.0.25-3+deb12u3
Architecture: i386
Pre-Depends: dpkg (>= 1.2)
Depends: libc6 (>= 2.34), debconf (>= 0.5) | debconf-2.0,
Description: tools to support fast kexec reboots
 Depends: not a field, this is the description's text
Section: admin
Filename: pool/k/kexec-tools.deb
Size: 87000
SHA256: ab01

Package: kexec-tools
Status: install ok installed
Version: 0
Architecture: i386

"""

ASCENDING = ["1~rc1", "1", "1a", "1+b1", "1.0", "1.2~bpo1", "1.2", "1.10", "6.1.176-1", "6.1.192-2", "1:0.1"]


def test_a_stanza_without_a_file_to_download_is_left_out() -> None:
    [candidate] = parse_candidates(SHOWN)
    assert candidate.version == "1:2.0.25-3+deb12u3"
    assert candidate.depends == ("dpkg", "libc6", "debconf", "debconf-2.0")
    assert candidate.filename == "kexec-tools_1%3a2.0.25-3+deb12u3_i386.deb"
    assert (candidate.section, candidate.size, candidate.sha256) == ("admin", 87000, "ab01")


def test_nothing_shown_is_no_candidate() -> None:
    assert parse_candidates("") == []


def test_depends_keeps_the_order_and_each_name_once() -> None:
    assert parse_depends("b (>= 1) [i386], a:any | c, b (<< 2)") == ("b", "a", "c")
    assert parse_depends("") == ()


def test_versions_are_ordered_as_dpkg_orders_them() -> None:
    descending = ASCENDING[::-1]
    assert sorted(descending, key=version_key) == ASCENDING


@needs_apt
def test_dpkg_agrees_with_that_order() -> None:
    for lower, higher in pairwise(ASCENDING):
        subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)


def test_complaints_are_each_told_once_and_without_the_advice() -> None:
    text = "Reading...\nE: no\nW: slow\nE: no\n   Hashes of expected file:\nE: Some index files failed to do.\n"
    assert complaints(text) == ["E: no", "W: slow"]


def test_a_mirror_by_setting() -> None:
    assert source_lines({}) is None
    assert source_lines({"RIG_SUITE": "sid"}) is None
    line = source_lines({"RIG_MIRROR": "file:/mirror", "RIG_SUITE": "sid"})
    assert line is not None
    assert line.startswith("deb ")
    assert line.endswith("file:/mirror sid main\n")


def test_modules_are_not_built_on_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MachineError, match="aarch64"):
        host_arch()
    monkeypatch.setattr("platform.machine", lambda: "i686")
    assert host_arch() == "i386"
