from __future__ import annotations

import os
import pty
import termios
from itertools import pairwise

import pytest

from rig.terminal import Filter, raw, start_line

SAID = b"\r\n@rig entered\r\nx:/# echo @rig\r\n@rig\r\n\n@rig hello role=crash net=yes\n@ri!\n@"


@pytest.mark.parametrize("cuts", [(), (3,), (4, 9, 30), tuple(range(1, len(SAID)))])
def test_the_rigs_lines_are_not_shown_however_they_arrive(cuts: tuple[int, ...]) -> None:
    filter_, shown, marks = Filter(), b"", []
    for start, end in pairwise((0, *cuts, len(SAID))):
        piece, found = filter_.feed(SAID[start:end])
        shown += piece
        marks += found
    assert marks == ["entered", "hello role=crash net=yes"]
    assert shown == b"\r\nx:/# echo @rig\r\n@rig\r\n\n@ri!\n"  # the last @ may begin such a line
    assert filter_.feed(b"x")[0] == b"@x"


def test_a_mark_in_the_middle_of_a_line_is_text() -> None:
    filter_ = Filter()
    assert filter_.feed(b"$ echo ")[0] == b"$ echo "
    assert filter_.feed(b"@rig entered\n") == (b"@rig entered\n", [])


def test_the_line_that_is_sent_does_not_look_like_its_marks() -> None:
    line = start_line("ttyS1", 24, 80, "pae")
    assert "rows 24 cols 80" in line
    assert "</dev/ttyS1 >/dev/ttyS1" in line
    assert "@rig" not in line
    assert "\n" not in line


def test_a_terminal_gets_its_settings_back_after_an_error() -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)

        def fail() -> None:
            with raw(theirs):
                assert not termios.tcgetattr(theirs)[3] & termios.ECHO
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
