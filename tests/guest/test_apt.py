"""What is read out of apt's text, and the order of versions."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from rig.errors import MachineError
from rig.guest.apt import (
    Apt,
    complaints,
    host_arch,
    parse_candidates,
    parse_depends,
    source_lines,
    source_package_lines,
    suite_sources,
    version_key,
)
from rig.model import Arch
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


# What apt-get says of a usual configuration; twice each (binary-all), and one source that knows no suites.
TARGETS = """\
file:/mirror/ bookworm main
file:/mirror/ bookworm main
file:/mirror/ bookworm-updates main
file:/security/ bookworm-security main
copy:/vendor/ ./ $(COMPONENT)
"""


def places(text: str) -> list[str]:
    """Sources without the keyring's option, which depends on the machine."""
    return [re.sub(r"\[.*\] ", "", line) for line in text.splitlines()]


def test_a_suite_with_its_updates_from_where_the_machines_own_come() -> None:
    assert places(suite_sources(TARGETS, "bullseye")) == [
        "deb file:/mirror/ bullseye main",
        "deb file:/mirror/ bullseye-updates main",
        "deb file:/security/ bullseye-security main",
    ]
    assert places(suite_sources(TARGETS, "sid")) == ["deb file:/mirror/ sid main"]  # it has no updates beside it


def test_a_suite_beside_the_plain_one_comes_from_where_its_like_or_the_plain_one_lies() -> None:
    assert places(suite_sources(TARGETS, "trixie-security")) == ["deb file:/security/ trixie-security main"]
    assert places(suite_sources(TARGETS, "bookworm-backports")) == ["deb file:/mirror/ bookworm-backports main"]
    # backports that the machine has of its own are no part of another suite
    more = TARGETS + "file:/backports/ bookworm-backports main\n"
    assert places(suite_sources(more, "trixie")) == places(suite_sources(TARGETS, "trixie"))
    assert places(suite_sources(more, "trixie-backports")) == ["deb file:/backports/ trixie-backports main"]


def test_where_no_source_knows_suites_there_is_none() -> None:
    assert suite_sources("copy:/vendor/ ./ $(COMPONENT)\n", "bullseye") == ""


def test_source_packages_come_from_where_binary_ones_do() -> None:
    assert places(source_package_lines(TARGETS)) == [
        "deb-src file:/mirror/ bookworm main",
        "deb-src file:/mirror/ bookworm-updates main",
        "deb-src file:/security/ bookworm-security main",
    ]


@needs_apt
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list", "deb file:/mirror bookworm main\ndeb [trusted=yes] copy:/vendor ./\n"),
        ("sources", "Types: deb\nURIs: file:/mirror\nSuites: bookworm\nComponents: main\n"),
    ],
)
def test_apt_reads_both_formats_of_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """Without a network, and without indexes: so it is on a machine whose lists were cleaned away."""
    (tmp_path / f"machine.{name}").write_text(text)
    config = tmp_path / "config"
    config.write_text(f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{tmp_path}";\n')
    monkeypatch.setenv("APT_CONFIG", str(config))
    targets = Apt(tmp_path / "home", Arch.I386, progress=print).targets()
    assert places(suite_sources(targets, "bullseye")) == ["deb file:/mirror/ bullseye main"]


def test_modules_are_not_built_on_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MachineError, match="aarch64"):
        host_arch()
    monkeypatch.setattr("platform.machine", lambda: "i686")
    assert host_arch() == "i386"
