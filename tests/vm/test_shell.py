"""The control channel, with the host's own sh in the place of the guest's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.errors import GuestCommandFailed, GuestError, GuestHung, ProtocolError
from rig.vm.console import Console, tail
from rig.vm.deadline import Deadline, Watch
from rig.vm.shell import Hello, Shell, parse_hello

HELLO = "role=first release=6.1.0-50-686 channel=ttyS1 uptime=3.69 net=no:x vmcore=no dom0=yes cmdline quiet role=a  b"


def soon(seconds: float = 5) -> Deadline:
    return Deadline.after(seconds, "the test's shell")


class Lines:
    """Both serial lines: `kernel` and `control` are the rig's side, the others the guest's."""

    def __init__(self, folder: Path) -> None:
        watch = Watch()
        self.log = folder / "console.log"
        kernel, self.guest_kernel = socket.socketpair()
        control, self.guest_control = socket.socketpair()
        self.kernel = Console(kernel, self.log, watch, "ttyS0")
        self.control = Console(control, folder / "control.log", watch, "ttyS1")
        watch.tail = self.kernel.tail
        self.shell = Shell(self.kernel, self.control)

    def close(self) -> None:
        for end in (self.guest_kernel, self.guest_control, self.kernel, self.control):
            end.close()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path)
    yield lines
    lines.close()


@pytest.fixture
def shell(lines: Lines) -> Iterator[Shell]:
    """A shell with a real sh at the other end of the control line."""
    end = lines.guest_control
    with subprocess.Popen(["sh"], stdin=end.fileno(), stdout=end.fileno(), stderr=end.fileno()) as process:
        yield lines.shell
        process.kill()


def test_parse_hello() -> None:
    assert parse_hello(HELLO) == Hello(
        "first", "6.1.0-50-686", "ttyS1", 3.69, "no:x", vmcore=False, dom0=True, cmdline="quiet role=a  b"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("role=first uptime=1 cmdline release=6", "lacks release, channel, net, vmcore, dom0$"),
        (HELLO.partition(" cmdline")[0], "lacks cmdline"),
        (HELLO.replace("3.69", "?"), "not a number"),
    ],
)
def test_parse_hello_refuses(line: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_hello(line)


def test_output_is_exact(shell: Shell) -> None:
    assert shell.run("echo one; echo; printf two; echo three >&2; printf ' '", soon()) == "one\n\ntwothree\n "
    assert shell.run("", soon()) == ""
    assert shell.run('x="it\'s"\necho $x\n', soon()) == "it's\n"


def test_long_output(shell: Shell) -> None:
    assert shell.run("seq 100000", soon()).split()[-1] == "100000"


def test_failed_command(shell: Shell) -> None:
    with pytest.raises(GuestCommandFailed, match="exited with 3: oops") as caught:
        shell.run("echo oops; exit 3", soon())
    assert (caught.value.status, caught.value.output) == (3, "oops\n")
    assert shell.run("echo still here", soon()) == "still here\n"


def test_syntax_error_does_not_end_the_shell(shell: Shell) -> None:
    with pytest.raises(GuestCommandFailed):
        shell.run("if (", soon())
    assert shell.run("echo still here", soon()) == "still here\n"


def test_command_has_no_input(shell: Shell) -> None:
    assert shell.run("cat; echo end", soon()) == "end\n"


def test_output_like_a_marker_does_not_end_the_output(shell: Shell) -> None:
    assert shell.run("echo; echo '@rig end 99 0'", soon()) == "\n@rig end 99 0\n"


def test_silent_command_runs_into_the_deadline(shell: Shell) -> None:
    with pytest.raises(GuestHung, match="in vain"):
        shell.run("sleep 2", soon(0.2))


def test_read_file(shell: Shell, tmp_path: Path) -> None:
    data = bytes(range(256)) * 64  # four pages
    path = tmp_path / "it's binary"
    path.write_bytes(data)
    assert shell.read_file(str(path), 0, len(data), soon()) == data
    assert shell.read_file(str(path), 4095, 2, soon()) == data[4095:4097]
    assert shell.read_file(str(path), len(data) - 3, 100, soon()) == data[-3:]
    with pytest.raises(GuestCommandFailed, match="No such file"):
        shell.read_file(str(tmp_path / "none"), 0, 1, soon())
    assert not list(Path("/tmp").glob("rig-part*")), "it cleans up"


def test_a_hello_is_confirmed_by_the_shell_behind_it(shell: Shell) -> None:
    command_line = Path("/proc/cmdline").read_text().strip()
    own = Hello("crash", os.uname().release, "ttyS1", 1.0, "yes", vmcore=False, dom0=False, cmdline=command_line)
    shell.confirm(own, soon())
    for forged in ({"release": "9.9.9"}, {"vmcore": True}, {"dom0": True}, {"cmdline": "x"}):
        with pytest.raises(GuestError, match="said hello on ttyS1, but who answers there says something else"):
            shell.confirm(dataclasses.replace(own, **forged), soon())


def test_an_answer_that_was_there_before_the_question_confirms_nothing(lines: Lines) -> None:
    answers = "".join(f"\n@rig begin {n}\n6.1.0-50-686\nno\nyes\nquiet role=a  b\n@rig end {n} 0\n" for n in range(9))
    lines.guest_control.sendall(f"@rig hello {HELLO}\n{answers}".encode())
    hello = lines.shell.wait_hello("first", soon())
    with pytest.raises(GuestError, match="said hello on ttyS1, but nobody answers there"):
        lines.shell.confirm(hello, soon(0.3))


def test_hello_on_either_line_decides_the_channel(lines: Lines) -> None:
    lines.guest_kernel.sendall(f"[ 1.0] booting\r\n@rig hello {HELLO}\r\n".encode())
    assert lines.shell.wait_hello("first", soon()).release == "6.1.0-50-686"
    lines.shell.send("trigger")
    assert lines.guest_kernel.recv(100) == b"trigger\n"


def test_hello_of_the_wrong_role(lines: Lines) -> None:
    lines.guest_control.sendall(f"@rig hello {HELLO}\n".encode())
    with pytest.raises(GuestError, match="role of the first kernel, not of the crash kernel"):
        lines.shell.wait_hello("crash", soon())


def test_failure_on_the_console_ends_the_wait_for_the_hello(lines: Lines) -> None:
    lines.guest_kernel.sendall(b"[ 1.0] Kernel panic - not syncing: no init\n")
    with pytest.raises(GuestError, match="Kernel panic") as caught:
        lines.shell.wait_hello("first", soon(), ["Kernel panic"])
    assert "no init" in caught.value.console


def test_discard_forgets_what_came_before(lines: Lines) -> None:
    lines.guest_kernel.sendall(b"Kernel panic - the first\n")
    with pytest.raises(GuestHung):  # leaves what it has read for the next wait
        lines.kernel.expect(["never"], soon(0.2))
    lines.guest_kernel.sendall(b"Kernel panic - the second\n")
    lines.kernel.discard()
    lines.guest_kernel.sendall(b"booting\n")
    assert lines.kernel.expect(["boot"], soon(), ["Kernel panic"])[0] == b"boot"
    lines.guest_kernel.sendall(b"Kernel panic - the third\n")
    with pytest.raises(GuestError, match="panic"):
        lines.kernel.expect(["never"], soon(), ["Kernel panic"])
    assert (
        lines.kernel.tail() == "Kernel panic - the first\nKernel panic - the second\nbooting\nKernel panic - the third"
    )


def test_a_hello_of_the_kernel_before_is_not_taken_for_the_next_ones(lines: Lines) -> None:
    """A program of the first kernel's has printed it on the control line, while nobody read that."""
    lines.guest_control.sendall(f"@rig hello {HELLO.replace('first', 'crash').replace('6.1.0', '9.9.9')}\n".encode())
    lines.shell.discard()
    lines.guest_control.sendall(f"@rig hello {HELLO.replace('first', 'crash')}\n".encode())
    assert lines.shell.wait_hello("crash", soon()).release == "6.1.0-50-686"


def test_no_hello(lines: Lines) -> None:
    lines.guest_kernel.sendall(b"[ 1.0] booting\n")
    with pytest.raises(GuestHung, match="in vain") as caught:
        lines.shell.wait_hello("first", soon(0.3))
    assert caught.value.console == "[ 1.0] booting"


def test_everything_is_logged_whether_read_or_not(tmp_path: Path) -> None:
    lines = Lines(tmp_path)
    lines.guest_kernel.sendall(b"x" * 300_000)
    lines.close()
    assert (tmp_path / "console.log").read_bytes() == b"x" * 300_000


def test_guest_that_does_not_read_is_told(lines: Lines) -> None:
    lines.control._sock.settimeout(0.1)
    with pytest.raises(GuestHung, match="does not read ttyS1"):
        lines.control.send(b"x" * 10_000_000)


def flood(end: socket.socket, every: float = 0) -> threading.Thread:
    """Print 60 kB, and again after `every` seconds, until nobody listens any more."""

    def pour() -> None:
        with contextlib.suppress(OSError):
            while True:
                end.sendall(b"[    0.000000] again and again\n" * 2000)
                time.sleep(every)

    thread = threading.Thread(target=pour)
    thread.start()
    return thread


def test_a_guest_that_prints_all_the_time_runs_into_the_deadline(lines: Lines) -> None:
    """What is looked at is whether the deadline has passed, not only whether nothing came for a while."""
    thread = flood(lines.guest_kernel, every=0.001)  # above the limit of what a guest may print there is another end
    with pytest.raises(GuestHung, match="in vain for the end of it"):
        lines.kernel.expect(["never"], Deadline.after(0.3, "the end of it"))
    lines.guest_kernel.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_guest_that_prints_without_end_is_given_up(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.vm.console.LIMIT", 1 << 20)
    thread = flood(lines.guest_kernel)
    with pytest.raises(GuestError, match="more than 1 MiB on ttyS0"):  # told to whoever waits, on whichever line
        lines.control.expect(["never"], soon())
    lines.guest_kernel.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert lines.log.stat().st_size <= 1 << 20


def test_tail_drops_control_characters() -> None:
    assert tail(b"one\r\n\x1b[32mtwo\x1b[0m\x00\r\n\n\nthree \xff", 2) == "two\nthree \ufffd"
