"""The control channel: the shell that the guest's init (guests/init/init) leaves on a serial line.

Normally ttyS1, so that kernel messages do not mix in; ttyS0 when the guest's kernel has no second UART. The
guest's hello says which.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rig.errors import GuestCommandFailed, GuestError, GuestHung, ProtocolError
from rig.model import PAGE_SIZE
from rig.vm.console import Console
from rig.vm.deadline import POLL, Deadline

HELLO_MARK = "hello "
_HELLO = rf"@rig {HELLO_MARK}([^\r\n]*)\r?\n"
_LONGEST = 1e9  # seconds of uptime
_GLANCE = 0.001  # seconds
_WORD = 6  # bytes
_HELLO_KEYS = ("role", "release", "channel", "uptime", "net", "vmcore", "dom0")
_CMDLINE = " cmdline "  # before the last of it, which may have spaces


@dataclass(frozen=True)
class Hello:
    """What init says when it has brought the guest up.

    role: "first", "crash" or "second". release: uname -r. channel: ttyS0 or ttyS1. uptime: seconds. net: "yes" when
    the SSH server was started, else why not. vmcore: whether /proc/vmcore is there and not empty. dom0: whether a
    hypervisor says that it is its dom0. cmdline: /proc/cmdline.
    """

    role: str
    release: str
    channel: str
    uptime: float
    net: str
    vmcore: bool
    dom0: bool
    cmdline: str


def parse_hello(line: str) -> Hello:
    """Read the part of a hello line after "@rig hello". Raises ProtocolError."""
    told, mark, cmdline = line.partition(_CMDLINE)
    fields = dict(word.split("=", 1) for word in told.split() if "=" in word)
    missing = [key for key in _HELLO_KEYS if key not in fields] + ([] if mark else [_CMDLINE.strip()])
    if missing:
        raise ProtocolError(f"the guest's hello lacks {', '.join(missing)}", received=line)
    try:
        uptime = float(fields["uptime"])
    except ValueError as error:
        raise ProtocolError("the uptime in the guest's hello is not a number", received=line) from error
    if not 0 <= uptime < _LONGEST:
        raise ProtocolError(f"the guest's hello says that it is up for {uptime} s", received=line)
    return Hello(
        role=fields["role"],
        release=fields["release"],
        channel=fields["channel"],
        uptime=uptime,
        net=fields["net"],
        vmcore=fields["vmcore"] == "yes",
        dom0=fields["dom0"] == "yes",
        cmdline=cmdline.strip(),
    )


class Shell:
    """Runs commands in the guest over a serial line. For one thread at a time."""

    def __init__(self, kernel: Console, control: Console) -> None:
        self._kernel = kernel
        self._control = control
        self._line = control

    @property
    def line(self) -> Console:
        """The serial line that it is on."""
        return self._line

    def take_up(self, line: str) -> None:
        """Go on with a shell that has said hello already, on the line of that name. ProtocolError for no such line."""
        found = next((each for each in (self._control, self._kernel) if each.name == line), None)
        if found is None:
            raise ProtocolError(f"no serial line is called {line!r}")
        self._line = found

    def wait_hello(self, role: str, deadline: Deadline, failures: Sequence[str] = ()) -> Hello:
        """Wait for the guest's user space. The line on which its hello arrives is the one used from then on.

        Not the one that it names: a kernel limited to one UART was seen to call the second port ttyS0.

        failures: regular expressions looked for on the kernel's console meanwhile. Raises GuestError when
        one is found, or when a guest in another role comes up; GuestHung, GuestDied, Cancelled,
        ProtocolError.
        """
        self._line, text = self._wait_either(deadline, failures)
        hello = parse_hello(text)
        if hello.role != role:
            raise GuestError(
                f"the guest came up in the role of the {hello.role} kernel, not of the {role} kernel",
                console=self._kernel.tail(),
            )
        return hello

    def confirm(self, hello: Hello, deadline: Deadline) -> None:
        """Ask the shell behind a hello for what that says, but for the network. Raises GuestError when it says
        something else, or nothing: then the hello was somebody else's on the same line. GuestDied, Cancelled,
        ProtocolError as run() does. A guest that reads the question can answer as it likes.
        """
        flags = ("yes" if flag else "no" for flag in (hello.vmcore, hello.dom0))
        said = "\n".join((hello.release, *flags, hello.cmdline))
        tests = ("[ -s /proc/vmcore ]", "grep -qs control_d /proc/xen/capabilities")
        asked = ("uname -r", *(f"{test} && echo yes || echo no" for test in tests), "cat /proc/cmdline")
        try:
            told = self.run("; ".join(asked), deadline)
        except GuestHung:
            answer = "nobody answers there"
        else:
            if told.strip() == said:
                return
            answer = "who answers there says something else"
        raise GuestError(
            f"a kernel {hello.release} said hello on {self._line.name}, but {answer}",
            hint="console.log and control.log show what was printed; the hello need not be the crash kernel's",
            console=self._kernel.tail(),
        )

    def _wait_either(self, deadline: Deadline, failures: Sequence[str]) -> tuple[Console, str]:
        """The hello, and the serial line that it came from. Waits on the control line, as nearly all kernels have it,
        and looks at the kernel's now and then."""
        for line in itertools.cycle((self._control, self._kernel)):
            turn = Deadline.after(POLL if line is self._control else _GLANCE, deadline.what)
            try:
                match = line.expect([_HELLO], turn, failures if line is self._kernel else ())
            except GuestHung:
                deadline.check(tail=self._kernel.tail)
            else:
                return line, match[1].decode(errors="replace")
        raise AssertionError("unreachable: cycle() does not end")

    def run(self, command: str, deadline: Deadline) -> str:
        """Run a command (any shell text, also several lines) in a subshell without stdin; return its output.

        The output is stdout and stderr together, exactly as written, decoded as UTF-8. Raises
        GuestCommandFailed when the exit status is not 0, GuestHung, GuestDied, Cancelled, ProtocolError.
        """
        # A word of its own, so that nothing can have answered before it was asked. The quotes inside '@r''ig' keep the
        # markers from matching should the line ever echo the command.
        word = secrets.token_hex(_WORD)
        self._line.send(
            f"printf '\\n@r''ig begin {word}\\n'; (eval {shlex.quote(command)}) </dev/null 2>&1; "
            f"printf '\\n@r''ig end {word} %d\\n' $?\n".encode()
        )
        self._line.read_until(f"\n@rig begin {word}\n".encode(), deadline)
        output = self._line.read_until(f"\n@rig end {word} ".encode(), deadline).decode(errors="replace")
        digits = self._line.expect([r"([0-9]+)\n"], deadline)[1]
        if len(digits) > 3:
            raise ProtocolError("a command's exit status makes no sense", sent=command, received=repr(digits[:80]))
        status = int(digits)
        if status:
            raise GuestCommandFailed(command, status, output)
        return output

    def send(self, command: str) -> None:
        """Start a command and don't wait: for what doesn't come back, such as the trigger."""
        self._line.send(command.encode() + b"\n")

    def discard(self) -> None:
        """Forget what has arrived on both lines: the kernel that said it is about to be another one. See Console."""
        self._kernel.discard()
        self._control.discard()

    def wait_for(self, marker: bytes, deadline: Deadline) -> None:
        """Wait for what a command that was sent prints. Raises GuestHung, GuestDied, Cancelled."""
        self._line.read_until(marker, deadline)

    def read_file(self, path: str, offset: int, size: int, deadline: Deadline) -> bytes:
        """Bytes of a file in the guest, binary-safe; fewer than `size` when the file ends before.

        Seeks instead of reading from the start. Slow (every byte passes an emulated UART): for small
        things, and for when there is no network. Raises as run() does.
        """
        skip, cut = divmod(offset, PAGE_SIZE)
        count = -(-(cut + size) // PAGE_SIZE)
        # Not as a pipeline's first command: its failure would go unnoticed.
        text = self.run(
            f"told=$(dd if={shlex.quote(path)} of=/tmp/rig-part bs={PAGE_SIZE} skip={skip} count={count} "
            'iflag=fullblock 2>&1) || { echo "$told"; rm -f /tmp/rig-part; exit 1; }; '
            "base64 /tmp/rig-part && rm /tmp/rig-part",
            deadline,
        )
        try:
            return base64.b64decode("".join(text.split()), validate=True)[cut : cut + size]
        except binascii.Error as error:
            raise ProtocolError(f"{path} arrived garbled over {self._line.name}", received=text[:200]) from error
