"""What a scenario may ask of makedumpfile."""

from __future__ import annotations

import pytest

from rig.guest.makedumpfile import command, complaint, filters


@pytest.mark.parametrize("options", ["", "-E", "-c -d 31", "-l  -d 0", "-d 9", "-c -d 20"])
def test_a_format_and_a_level(options: str) -> None:
    assert complaint(options) == ""
    assert " ".join(options.split()) in command(options, "/proc/vmcore")


@pytest.mark.parametrize(
    "options", ["-z", "-E -c", "-d", "-d 32", "-d 01", "-d 1,31", "-c31", "-c-d 1", "-d 1 -c", "-E; reboot", "-x FILE"]
)
def test_anything_else_is_refused(options: str) -> None:
    assert repr(options) in complaint(options)
    assert "LEVEL from 0 to 31" in complaint(options)


@pytest.mark.parametrize(("options", "does"), [("", True), ("-c -d 0", False), ("-c", False), ("-d 31", True)])
def test_whether_it_filters(options: str, does: bool) -> None:
    assert filters(options) == does


def test_without_options_it_does_what_distributions_do() -> None:
    assert command("", "/proc/vmcore").endswith("-F -E -d 31 --message-level 6 /proc/vmcore")
