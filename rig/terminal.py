"""`rig shell`: a guest booted as for a run, and the user's terminal on it.

The guest's own shell reads its line as a script, without echo and prompt (guests/init/init). So it is told to make a
terminal of that line for a while, and to start a shell on it that knows it is one; what the kernel says on its console
is shown in between, as it would be on one serial line. A crash kernel that comes up says hello like any other, and is
told the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from rig import unfinished
from rig.guest import arming, dom0
from rig.loads import LOADS
from rig.model import LoadKind, Options, RunPlan
from rig.prepare import Artefacts, prepare
from rig.start import BOOT_FAILURES
from rig.triggers import TRIGGERS
from rig.vm.deadline import POLL, Deadline
from rig.vm.qemu import Vm
from rig.vm.shell import HELLO_MARK, Hello, parse_hello

ESCAPE = b"\x1d"  # Ctrl-]
MARK = b"@rig "  # what the rig's own lines begin with
ENTERED, LEFT = "entered", "left"
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")

Listener = Callable[[str], None]


# ---------------------------------------------------------------- the guest


@contextlib.contextmanager
def booted(
    plan: RunPlan, options: Options, arm: bool, listener: Listener, cancel: threading.Event
) -> Iterator[tuple[Vm, Hello]]:
    """The guest at its first kernel's shell; nothing is left of it at the end. arm: load the image as a run does."""
    with (
        unfinished.temporary("shell") as folder,
        prepare(plan, replace(options, template=False), folder, listener, cancel) as artefacts,
        Vm(artefacts.machine, cancel=cancel) as vm,
    ):
        listener("boot")
        hello = vm.shell.wait_hello(
            "first", Deadline.after(options.deadline, "the first kernel's shell"), BOOT_FAILURES
        )
        if arm:
            listener("arm")
            _arm(vm, plan, artefacts, Deadline.after(options.deadline, "the new image to be loaded"))
        yield vm, hello


def _arm(vm: Vm, plan: RunPlan, artefacts: Artefacts, deadline: Deadline) -> None:
    load = LOADS[plan.scenario.load]
    if artefacts.hypervisor is not None:
        dom0.arm(vm.shell, load, artefacts.crash_cmdline, artefacts.second_hypervisor_cmdline, deadline)
    elif load.kind is not LoadKind.NONE:
        arming.arm(vm.shell, load, artefacts.crash_cmdline, deadline)
    arming.prepare_trigger(vm.shell, TRIGGERS[plan.scenario.trigger], deadline)


# ---------------------------------------------------------------- the terminal


def start_line(channel: str, rows: int, columns: int, name: str) -> str:
    """What the guest's shell is sent to have the user on its line until they leave. channel: ttyS1.

    The quotes keep the marks from matching should the line be echoed. When a session's leader ends, its terminal is
    hung up (disassociate_ctty() in the kernel's drivers/tty/tty_jobctrl.c), so the last mark needs it opened anew.
    """
    line = f"/dev/{channel}"
    return (
        f"stty -F {line} sane rows {rows} cols {columns}; printf '\\n@r''ig {ENTERED}\\n'; "
        f"PS1='{name}:\\w\\$ ' HOME=/root setsid -c sh -i <{line} >{line} 2>&1; "
        f"stty -F {line} raw -echo clocal; printf '\\n@r''ig {LEFT}\\n' >{line}"
    )


@dataclass
class Filter:
    """Takes the rig's own lines out of what the line says; they are for it, not for the screen."""

    _rest: bytes = b""
    _starting: bool = True  # what comes next begins a line

    def feed(self, data: bytes) -> tuple[bytes, list[str]]:
        """What is to be shown, and the rig's lines without their mark. The beginning of such a line is kept back."""
        shown, marks = b"", []
        data, self._rest = self._rest + data, b""
        for piece in _LINE.findall(data):
            whole, begins = piece.endswith(b"\n"), self._starting
            if begins and whole and piece.startswith(MARK):
                marks.append(piece[len(MARK) :].decode(errors="replace").strip())
            elif begins and not whole and (piece.startswith(MARK) or MARK.startswith(piece)):
                self._rest = piece
            else:
                shown += piece
                self._starting = whole
        return shown, marks


@contextlib.contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Every key reaches the guest, Ctrl-C too. The terminal gets its old settings back however this ends."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@dataclass
class Terminal:
    """Where the user sits. keyboard (a terminal), screen: file descriptors. name: of the guest, for its prompt."""

    keyboard: int
    screen: int
    name: str
    _filter: Filter = field(default_factory=Filter)
    _marks: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def converse(self, vm: Vm, hello: Hello) -> str:
        """The user's words to the guest and back, until they leave or the guest ends. Returns which it was, in words.

        :raise GuestDied: QEMU ended, and not by the guest's doing
        """
        vm.shell.line.tap(self._hear)
        vm.console.tap(self._show)
        try:
            self._enter(vm, hello)
            return self._until_the_end(vm)
        finally:
            vm.shell.line.tap(None)
            vm.console.tap(None)

    def _until_the_end(self, vm: Vm) -> str:
        entered = False
        while True:
            ready = select.select([self.keyboard], [], [], POLL)[0]
            if vm.ending is not None and vm.ending.by_guest:
                return vm.ending.message
            vm.watch.check()
            for mark in self._new_marks():
                if mark == LEFT:
                    return "the guest's shell ended"
                entered = mark == ENTERED
                if mark.startswith(HELLO_MARK):
                    self._enter(vm, parse_hello(mark.removeprefix(HELLO_MARK)))
            if ready:
                typed = os.read(self.keyboard, 1024)
                if not typed or ESCAPE in typed:
                    return "left"
                if entered:  # what is typed while nobody is there is not for the next shell
                    vm.shell.line.send(typed)

    def _enter(self, vm: Vm, hello: Hello) -> None:
        columns, rows = os.get_terminal_size(self.keyboard)
        vm.shell.send(start_line(hello.channel, rows, columns, self.name))

    def _new_marks(self) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._marks.get_nowait()

    def _hear(self, data: bytes) -> None:
        """In the line's own thread."""
        shown, marks = self._filter.feed(data)
        self._show(shown)
        for mark in marks:
            self._marks.put(mark)

    def _show(self, data: bytes) -> None:
        """In the thread of either line. A terminal that was closed is told of by a signal."""
        with self._lock, contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.screen, data) :]
