"""The rig that a fault is injected into: a process as a user starts it, followed from phase to phase from outside."""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rig import unfinished
from rig.evidence import MEMORY
from tests.faults.place import ROOT, Place

PHASES = (
    *("prepare", "boot", "arm", "panic", "machine-kexec"),
    *("hand-over", "crash-boot", "dump", "judge", "report"),
)
LIVE = PHASES[1:8]  # those in which there is a guest
MARK = "RIG_FAULT"  # environment variable by which all processes of one rig are known
GLANCE = 0.003  # seconds between two looks at a condition
_PIDFD_GETFD = 438  # pidfd_getfd(2), of which neither Python nor glibc 2.36 knows


class NotReached(Exception):
    """The rig ended, or too much time passed, before what was waited for came about."""


class Subject:
    """A running rig. What it prints goes into files, so that it never waits for a reader.

    pipes: read its stdout and stderr through pipes instead, which can be closed under it. name: of those files.
    before: what a shell does before it becomes the rig, as `exec >/dev/full`.
    """

    def __init__(
        self,
        words: Sequence[str],
        place: Place,
        mark: str,
        environment: Mapping[str, str],
        *,
        pipes: bool = False,
        name: str = "",
        before: str = "",
    ) -> None:
        self.place = place
        self.mark = mark
        self.words = words
        self._err = place.root / f"{name}stderr"
        self._out = place.root / f"{name}stdout"
        self._said = b""
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                ["sh", "-c", f'{before or ":"}; exec "$@"', "sh", sys.executable, "-m", "rig", *words],
                cwd=ROOT,
                env={**os.environ, **place.environment, **environment, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else out,
                stderr=subprocess.PIPE if pipes else err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def err(self) -> str:
        """What it has said so far on stderr."""
        if (stream := self.process.stderr) is None:
            return self._err.read_text(errors="replace")
        while not stream.closed and select.select([stream], [], [], 0)[0] and (data := os.read(stream.fileno(), 65536)):
            self._said += data
        return self._said.decode(errors="replace")

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 150.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                raise NotReached(f"{what} never came: {self.err[-500:]}")
            time.sleep(GLANCE)

    def wait_for_phase(self, phase: str) -> None:
        """Returns when the phase has begun; in a phase with a guest, when there is a guest to do something to."""
        self.wait_until(lambda: self.has_begun(phase), phase)
        if phase in LIVE:
            self.wait_until(lambda: self._find_qemu() is not None, f"QEMU in {phase}")
        if phase == "boot":
            self.wait_until(self._has_printed, "the guest's first words")

    def _has_printed(self) -> bool:
        return any(log.stat().st_size for log in self.place.results.glob(".*/console.log"))

    def has_begun(self, phase: str) -> bool:
        if phase == "prepare":
            # what the rig has not made yet can't be removed, and on a full disk it would be refused
            return any(self.place.results.glob(f"{unfinished.PREFIX}*/{MEMORY}"))
        if phase in ("judge", "report"):
            before = {"judge": "run.json", "report": "result.json"}[phase]
            return any(self.place.results.glob(f".*/{before}"))
        before = PHASES[PHASES.index(phase) - 1]
        return bool(re.search(rf": {'(boot|restore)' if before == 'boot' else before} \d", self.err))

    def _find_qemu(self) -> int | None:
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            for pid in _read(children).split():
                if _read(Path(f"/proc/{pid}/comm")).startswith("qemu-system"):
                    return int(pid)
        return None

    @property
    def qemu(self) -> int:
        """Its QEMU's pid. NotReached when it has none (any more)."""
        if (pid := self._find_qemu()) is None:
            raise NotReached("there is no QEMU (any more)")
        return pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def connection(self, name: str, *, ours: bool = False) -> socket.socket:
        """A duplicate of QEMU's end of its connection `name` (qmp, gdb, console, control), or of the rig's."""
        qemu = self.qemu
        argv = Path(f"/proc/{qemu}/cmdline").read_bytes().decode(errors="replace")
        match = re.search(rf"id={name},fd=(\d+)", argv)
        if not match:
            raise NotReached(f"QEMU has no connection {name}")
        if not ours:
            return _duplicate(qemu, int(match[1]))
        peer = _peer(_inode(qemu, int(match[1])))
        for descriptor in os.listdir(f"/proc/{self.pid}/fd"):
            if _inode(self.pid, int(descriptor)) == peer:
                return _duplicate(self.pid, int(descriptor))
        raise NotReached(f"the rig has no connection {name}")

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it does not end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return self.process.returncode

    def end(self) -> None:
        """Whatever happened."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def _read(path: Path) -> str:
    """Of /proc: empty when the process is gone."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _inode(pid: int, descriptor: int) -> int:
    """Of a socket; 0 when it is none."""
    try:
        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    except FileNotFoundError:
        return 0
    return int(match[1]) if match else 0


def _peer(inode: int) -> int:
    """Inode of the other end of a Unix socket, as ss(8) tells."""
    lines = subprocess.run(["ss", "-xH"], check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        words = line.split()
        if words[5] == str(inode):
            return int(words[7])
    raise NotReached(f"ss does not know socket {inode}")


def _duplicate(pid: int, descriptor: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        got = libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)
    if got < 0:
        raise NotReached(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return socket.socket(fileno=got)


def write_all(connection: socket.socket, data: bytes, still: Callable[[], bool]) -> None:
    """As the other end reads it, and as long as `still` says so. The socket's flags, which are QEMU's, stay as they
    are: it may or may not block."""
    view = memoryview(data)
    while view and still():
        if not select.select([], [connection], [], 0.1)[1]:
            continue
        try:
            view = view[os.write(connection.fileno(), view[: 1 << 16]) :]
        except BlockingIOError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return
