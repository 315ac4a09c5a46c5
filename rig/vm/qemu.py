"""The virtual machine: its process, and everything that is connected to it.

RAM is a memfd that the rig keeps, shared with QEMU: reading the guest's memory is a pread while the VM is
held, and nothing is left on disk when everybody dies. All connections are socket pairs handed over by
number, for the same reason. The RAM of a guest that is gone on with is a memfd, too, but nobody can write to that: QEMU
has it copy-on-write, and any number of guests can go on from it at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from rig.errors import Cancelled, CouldNotJudge, GuestHung, MachineError, ProtocolError, RigError
from rig.late import late
from rig.model import CpuState
from rig.vm import confine, registers
from rig.vm.console import Console, tail
from rig.vm.deadline import POLL, Deadline, Ending, Watch
from rig.vm.gdbstub import GdbStub
from rig.vm.installed import qemu_version
from rig.vm.logs import ThreadLogs
from rig.vm.machine import OPEN_FILES, QEMU_LOGS, MachineSpec, Wiring, argv
from rig.vm.shell import Shell

if TYPE_CHECKING:
    import numpy as np

    from rig.memory.clone import ClonedRam
    from rig.memory.ram import Ram, SharedRam
    from rig.vm.qmp import Qmp
else:  # while QEMU starts, or when it has
    np, Qmp = late("numpy"), late("rig.vm.qmp:Qmp")
    ClonedRam, SharedRam = late("rig.memory.clone:ClonedRam"), late("rig.memory.ram:SharedRam")


# QEMU dies with its parent, however that ends: PDEATHSIG is set by setpriv and survives exec. A parent that
# ended before that is seen by sh, whose parent is then somebody else. start_new_session keeps Ctrl-C, which
# is sent to the whole foreground group, from ending QEMU before the rig has looked at it.
_LAUNCHER = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", 'test "$PPID" = "$0" && exec "$@"')
_CONFINED = (sys.executable, "-I", "-S", "-B", confine.__file__)

QEMU_LOG = "qemu.log"
_MIGRATION_TIMEOUT = 30.0  # seconds, for a MiB or two of devices' state
_LAST_WORDS = 1.0  # seconds in which what QEMU has said already is read


@dataclass(frozen=True)
class Standing:
    """A guest that stands still, to be gone on with. ram, state: file descriptors of its memory, which nobody can
    change, and of all else that QEMU knows of it. hashes: xxh3_64 of each page of its memory. line: the serial line
    that its shell is on."""

    ram: int
    state: int
    hashes: bytes
    line: str


def parse_forwarded_port(usernet: str) -> int:
    """The host's port in the monitor's `info usernet`. Raises ProtocolError."""
    match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", usernet)
    if not match:
        raise ProtocolError("QEMU forwards no port to the guest", sent="info usernet", received=usernet)
    return int(match[1])


def launch(
    command: list[str], fds: tuple[int, ...], stderr: Path, writable: Sequence[Path] = ()
) -> subprocess.Popen[bytes]:
    """Start a QEMU that is killed when the calling *thread* ends (prctl(2), PR_SET_PDEATHSIG).

    writable: the directories that it may write to (rig/vm/confine.py).
    """
    with stderr.open("wb") as log:
        return subprocess.Popen(
            [*_LAUNCHER, str(os.getpid()), *_CONFINED, *map(str, writable), "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
        )


class Vm:
    """A running QEMU, as a context manager: started on entry, gone and reaped on exit, in the same thread.

    The thread must live as long as the VM: see launch(). An error that leaves the block gets the last console
    lines and the CPU state, if it has none.

    console (ttyS0), shell (control channel), gdb, qmp, watch, ram, ssh_port and argv are there while it
    runs. logs: what QEMU logs, qemu.log in the end; line_logs: to which is added what the serial lines say. ram is the
    guest's RAM as a file, laid out as ram_ranges() says; it is what the guest sees only while the VM is held. ram_fd:
    the file that QEMU has mapped as such.
    """

    console: Console
    shell: Shell
    gdb: GdbStub
    qmp: Qmp
    ram_fd: int
    ssh_port: int
    argv: list[str]

    def __init__(
        self,
        spec: MachineSpec,
        *,
        cancel: threading.Event | None = None,
        standing: Standing | None = None,
        afterwards: contextlib.ExitStack | None = None,
    ) -> None:
        """standing: instead of booting, QEMU takes up this guest, which then is held. afterwards: where to wait for
        QEMU's end, if not on exit: the system takes some time to take back a guest's memory."""
        self.spec = spec
        self._afterwards = afterwards
        self._standing = standing
        self._migration: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.watch = Watch(cancel, self._tail)
        self.logs = ThreadLogs(spec.run_dir / QEMU_LOGS)
        self.line_logs = (spec.run_dir / "console.log", spec.run_dir / "control.log")
        self._stderr = spec.run_dir / "qemu.stderr"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, CouldNotJudge) and not isinstance(error, Cancelled):
                self._describe(error)
        finally:
            self._stack.close()

    @property
    def ending(self) -> Ending | None:
        """How the guest ended, None while it lives."""
        return self.watch.ending

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def stop(self) -> None:
        """Hold the VM: all CPUs stand still. Not needed while the gdbstub holds it."""
        self.qmp.execute("stop")

    def cont(self) -> None:
        """Let the VM run on after stop(). Raises GuestDied when the guest had ended by then."""
        try:
            self.qmp.execute("cont")
        except ProtocolError:
            # A guest that resets or faults just as it is held stays held: QEMU says first that it has ended.
            if self.watch.wait_for_end(_LAST_WORDS):
                self.watch.check()
            raise

    @functools.cached_property
    def ram(self) -> Ram:
        if self._standing is None:
            return SharedRam(self.ram_fd, self.spec.ram_size)
        hashes = np.frombuffer(self._standing.hashes, np.uint64)
        try:
            ram = ClonedRam(self.pid, self.ram_fd, hashes, self._lost_memory)
        except PermissionError as problem:
            raise MachineError(
                f"this machine does not let QEMU's memory be read: {problem}", hint="--no-template boots the guest anew"
            ) from problem
        self._stack.callback(ram.close)
        return ram

    def _lost_memory(self) -> NoReturn:
        self.watch.wait_for_end(2.0)
        self.watch.check()
        raise ProtocolError("the guest's memory can't be read: QEMU has not mapped it, and has not ended")

    def write_state(self, state: int) -> None:
        """Write all that QEMU knows of the held guest besides its RAM to a file. It stays held.

        x-ignore-shared: RAM that is shared, as ours is by its memfd, is not part of it. Raises ProtocolError.
        """
        self._migrate("migrate", state)
        # "completed" is said a moment before QEMU would take another command about running: it is finish-migrate then.
        deadline = Deadline.after(_MIGRATION_TIMEOUT, "QEMU to be done with writing its state")
        while self.qmp.execute("query-status")["status"] == "finish-migrate":
            deadline.check(tail=self.console.tail)

    def _migrate(self, command: str, state: int) -> None:
        """Out or in, until QEMU says that it is done."""
        wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        self.qmp.execute("migrate-set-capabilities", {"capabilities": wanted})
        self.qmp.give("state", state)
        self.qmp.execute(command, {"uri": "fd:state"})
        deadline = Deadline.after(_MIGRATION_TIMEOUT, f"QEMU's {command}")
        while (status := self._next_status(deadline)) != "completed":
            if status in ("failed", "cancelled"):
                told = self.qmp.execute("query-migrate").get("error-desc") or self._words()
                raise ProtocolError(f"QEMU's {command} {status}: {told}")

    def _next_status(self, deadline: Deadline) -> str:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._migration.get(timeout=POLL)
            self.watch.check()
            deadline.check(tail=self.console.tail)

    def registers_text(self, timeout: float = 30.0) -> str:
        """QEMU's own print of every CPU's registers."""
        return self.qmp.monitor("info registers -a", timeout)

    def info_registers(self) -> tuple[CpuState, ...]:
        """Every CPU's state. Consistent only while the VM is held."""
        return registers.parse(self.registers_text())

    def pmemsave(self, address: int, size: int) -> bytes:
        """Physical memory as a CPU sees it, devices' windows included. For small areas: it takes a file."""
        with tempfile.TemporaryDirectory(prefix=".pmemsave-", dir=self.spec.run_dir) as folder:
            path = Path(folder, "memory").absolute()
            self.qmp.execute("pmemsave", {"val": address, "size": size, "filename": str(path)})
            return path.read_bytes()

    def _start(self, stack: contextlib.ExitStack) -> None:
        qemu_version()
        self.ram_fd = os.dup(self._standing.ram) if self._standing else os.memfd_create("rig-ram")
        stack.callback(os.close, self.ram_fd)
        if self._standing is None:
            os.ftruncate(self.ram_fd, self.spec.ram_size)
        # Not entered as a context before QEMU's ends are closed: a serial line is at its end when QEMU's is.
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        for sock in (*ours, *theirs):
            stack.callback(sock.close)
        console, control, qmp, gdb = ours
        wiring = Wiring(self.ram_fd, *(sock.fileno() for sock in theirs))
        self.argv = argv(self.spec, wiring, waiting=self._standing is not None)
        log = self.spec.run_dir
        self.logs.create()
        stack.callback(self._keep_log)
        self.console = Console(console, self.line_logs[0], self.watch, "ttyS0")
        stack.callback(self.console.close)
        control_line = Console(control, self.line_logs[1], self.watch, "ttyS1")
        stack.callback(control_line.close)
        self.shell = Shell(self.console, control_line)
        self.gdb = GdbStub(gdb, self.watch)
        fds = (*wiring.fds, *self.spec.inherited)
        self._process = launch(self.argv, fds, self._stderr, self.spec.writable)
        stack.callback(self._reap, self._process)
        for sock in theirs:
            sock.close()
        try:
            self.qmp = stack.enter_context(
                Qmp(qmp, log / "qmp.jsonl", self.watch, on_event=self._on_event, on_lost=self._on_lost)
            )
            self.ssh_port = parse_forwarded_port(self.qmp.monitor("info usernet"))
        except (ProtocolError, GuestHung) as error:
            raise self._start_error(error) from error
        if self._standing:
            # opened anew: each reads it from its beginning
            with open(OPEN_FILES / str(self._standing.state), "rb") as state:
                self._migrate("migrate-incoming", state.fileno())
            self.shell.take_up(self._standing.line)

    def _start_error(self, error: RigError) -> MachineError:
        assert self._process
        try:
            status = f"exited with {self._process.wait(2.0)}"
        except subprocess.TimeoutExpired:
            status = f"does not answer: {error.message}"
        return MachineError(
            f"QEMU {status} at start: {self._words()}",
            hint=f"its command line was: {' '.join(self.argv)}",
        )

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL loses nothing: RAM is a memfd, the disk was read, and qemu.log is flushed line by line."""
        process.kill()
        if self._afterwards is not None:
            self._afterwards.callback(process.wait)
        else:
            process.wait()

    def _keep_log(self) -> None:
        (self.spec.run_dir / QEMU_LOG).write_text(self.logs.rest())
        self.logs.remove()

    def _on_event(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "MIGRATION":
            self._migration.put(str(data.get("status")))
        if event == "SHUTDOWN":
            self.watch.end(describe_shutdown(str(data.get("reason")), self.logs.text()))

    def _on_lost(self) -> None:
        assert self._process
        try:
            how = f"QEMU ended with status {self._process.wait(2.0)}"
        except subprocess.TimeoutExpired:
            how = "QEMU closed its QMP connection"
        self.watch.end(Ending("qemu-gone", f"{how}: {self._words()}"))

    def _words(self) -> str:
        """What QEMU itself said, last lines first of all."""
        return tail(self._stderr.read_bytes(), 5) or "it said nothing"

    def _tail(self) -> str:
        return self.console.tail()

    def _describe(self, error: CouldNotJudge) -> None:
        """Give an error the console and the CPU state of the moment it leaves the VM's block."""
        error.console = error.console or self.console.tail()
        if error.cpu_state or (self.ending and self.ending.reason == "qemu-gone"):
            return
        # The first error is the one to report, so a second one, from asking a broken QEMU, is not.
        with contextlib.suppress(CouldNotJudge):
            error.cpu_state = self.registers_text(timeout=3.0)


def describe_shutdown(reason: str, qemu_log: str) -> Ending:
    """What a SHUTDOWN event means. A triple fault is a reset to QMP; only QEMU's log tells it apart."""
    if reason == "guest-reset" and "Triple fault" in qemu_log:
        return Ending("triple-fault", "a CPU of the guest took a triple fault")
    meanings = {
        "guest-reset": "the guest reset the machine (a reboot, or a triple fault under KVM)",
        "guest-shutdown": "the guest powered the machine off",
        "guest-panic": "the guest reported a panic",
    }
    return Ending(reason, meanings.get(reason, f"QEMU shut down: {reason}"))
