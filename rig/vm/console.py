"""A serial line of the guest: pexpect over a socket, drained all the time.

A UART that nobody drains blocks the guest (10 ms a character under QEMU), so a thread reads the socket from
the start to the end of the VM, logs what comes, and feeds a queue from which pexpect reads. The shell on the
control line is in shell.py.
"""

from __future__ import annotations

import contextlib
import queue
import re
import select
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
from pexpect.spawnbase import SpawnBase

from rig.errors import GuestDied, GuestError, GuestHung, MachineError
from rig.vm.deadline import POLL, Deadline, Watch

_HISTORY = 16 * 1024  # bytes kept for tail()
_CHUNK = 65536  # bytes taken from the socket at a time
# Seconds in which what comes is taken together. QEMU sends every character by itself: two threads would be woken for
# nearly each one.
_GATHER = 0.005
# Bytes of what has not matched in which a regular expression is looked for; more than what can come at a time. Looking
# through all of it for each chunk that comes takes minutes for a guest that prints 100 MB.
_WINDOW = 2 * _CHUNK
LIMIT = 64 << 20  # bytes that a guest may print on one line in a run: disk and memory have to hold them
_SEND_TIMEOUT = 5.0  # seconds in which the guest must take what is sent to it
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")


class _Feed(SpawnBase):  # type: ignore[misc]  # pexpect has no types
    """pexpect's side: reads from the queue that the pump fills, until the deadline of the current wait."""

    def __init__(self, incoming: queue.SimpleQueue[bytes], watch: Watch) -> None:
        super().__init__(timeout=None, encoding=None)
        self.delayafterread = None
        self.deadline = Deadline.after(0, "nothing")
        self._incoming = incoming
        self._watch = watch
        self._has_read = False  # in the current wait

    def begin(self, deadline: Deadline) -> None:
        """A new wait."""
        self.deadline = deadline
        self._has_read = False

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        """The next bytes that arrived, however many. size and timeout are pexpect's, and not looked at.

        The timeout is the deadline's, also when more comes all the time. Raises GuestHung, GuestDied, Cancelled,
        pexpect.EOF.
        """
        self._watch.check_cancelled()
        if self._has_read and self.deadline.passed:
            self.deadline.check(tail=self._watch.tail)
        self._has_read = True
        while True:
            try:
                data = self._incoming.get(timeout=min(POLL, self.deadline.left))
            except queue.Empty:
                # Only now: what the guest said before it ended must have been looked at.
                self._watch.check()
                self.deadline.check(tail=self._watch.tail)
                continue
            if not data:
                self._incoming.put(b"")  # so that the next read is at the end, too
                raise pexpect.EOF("the serial line is closed")
            return data


class Console:
    """One serial line over a connected socket, which it takes over. close() ends it.

    log: file to which every byte is added in the order of arrival. name: ttyS0 or ttyS1, for messages.
    """

    def __init__(self, sock: socket.socket, log: Path, watch: Watch, name: str) -> None:
        self.name = name
        self._sock = sock
        self._watch = watch
        self._log = log.open("ab", buffering=0)
        self._history = b""
        self._printed = 0  # bytes
        self._lock = threading.Lock()
        self._tap: Callable[[bytes], None] | None = None
        self._incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._feed = _Feed(self._incoming, watch)
        sock.settimeout(_SEND_TIMEOUT)
        self._pump_thread = threading.Thread(target=self._pump, name=f"pump {name}", daemon=True)
        self._pump_thread.start()

    def expect(self, wanted: Sequence[str], deadline: Deadline, failures: Sequence[str] = ()) -> re.Match[bytes]:
        """Wait for one of the `wanted` regular expressions, and return the match.

        Raises GuestError when one of `failures` comes first, GuestHung when the deadline passes, GuestDied
        when the guest or QEMU ends, Cancelled. What was read up to the match is consumed.
        """
        patterns = [re.compile(pattern.encode(), re.M) for pattern in (*wanted, *failures)]
        index = self._wait(patterns, deadline)
        match: re.Match[bytes] = self._feed.match
        if index >= len(wanted):
            raise GuestError(
                f"while waiting for {deadline.what}, the guest said: {match[0].decode(errors='replace')}",
                console=self._watch.tail(),
            )
        return match

    def read_until(self, marker: bytes, deadline: Deadline) -> bytes:
        """What comes before the next `marker`, which is consumed. For long text: it is searched only once.

        Raises GuestHung, GuestDied, Cancelled.
        """
        self._wait(marker, deadline)
        before: bytes = self._feed.before
        return before

    def send(self, data: bytes) -> None:
        """Send to the guest. Raises GuestHung when the guest does not read, GuestDied when QEMU is gone."""
        try:
            self._sock.sendall(data)
        except TimeoutError as error:
            raise GuestHung(f"the guest does not read {self.name}", console=self._watch.tail()) from error
        except OSError as error:
            raise self._gone() from error

    def tap(self, hear: Callable[[bytes], None] | None) -> None:
        """Have `hear` called with all that arrives from now on, besides whoever else reads it; None ends that.

        It is called in the thread that drains the line: what it takes long for, the guest waits for.
        """
        with self._lock:
            self._tap = hear

    def discard(self) -> None:
        """Forget what has arrived and not been read, so that expect() sees only what comes from now on.

        Meant for a held VM: everything that the guest printed is then in the socket. The log and tail()
        keep it.
        """
        self._take()
        # A match with everything: clearing pexpect's buffer would not do, it keeps a second one.
        self._feed.expect_list([re.compile(rb".*", re.S)])
        with contextlib.suppress(queue.Empty):
            while self._incoming.get_nowait():
                pass
            self._incoming.put(b"")  # the end, which must stay

    def tail(self, lines: int = 20) -> str:
        """The last lines that arrived, whether or not anybody has read them; control characters removed."""
        return tail(self._history, lines)

    def close(self) -> None:
        """Close the socket; returns when all that had arrived is in the log."""
        self._closing.set()
        try:
            self._sock.shutdown(socket.SHUT_RD)
        finally:
            self._pump_thread.join()
            self._sock.close()
            self._log.close()

    def _wait(self, patterns: list[re.Pattern[bytes]] | bytes, deadline: Deadline) -> int:
        self._feed.begin(deadline)
        try:
            if isinstance(patterns, bytes):
                return int(self._feed.expect_exact(patterns))
            return int(self._feed.expect_list(patterns, searchwindowsize=_WINDOW))
        except pexpect.EOF as error:
            raise self._gone() from error

    def _gone(self) -> GuestDied:
        """The error for a closed line: QEMU's end, if that is known in a moment, says more."""
        ending = self._watch.wait_for_end(2.0)
        message = ending.message if ending else f"QEMU closed {self.name}"
        return GuestDied(message, console=self._watch.tail())

    def _pump(self) -> None:
        at_end = False
        while not at_end:
            select.select([self._sock], [], [])
            self._closing.wait(_GATHER)
            at_end = self._take()

    def _take(self) -> bool:
        """Move what the socket holds to the log and the queue, without waiting. Returns whether it ended."""
        with self._lock:
            while select.select([self._sock], [], [], 0)[0]:
                try:
                    data = self._sock.recv(_CHUNK)
                except ConnectionResetError:  # QEMU was killed with bytes unread
                    data = b""
                if not data:
                    self._incoming.put(data)
                    return True
                if not self._has_room_for(data):
                    continue
                try:
                    self._log.write(data)
                except OSError as error:  # and go on: a line that nobody reads would slow the guest
                    self._watch.fail(
                        MachineError(
                            f"{self._log.name} can't be written: {error.strerror}",
                            hint="make room, or choose --results DIR",
                        )
                    )
                self._history = (self._history + data)[-_HISTORY:]
                if self._tap is not None:
                    self._tap(data)
                # last: whoever finds something in it may then ask for the tail, or read the log
                self._incoming.put(data)
        return False

    def _has_room_for(self, data: bytes) -> bool:
        """Whether this is within LIMIT; when it isn't, the run ends, and until then the line is drained."""
        self._printed += len(data)
        if self._printed > LIMIT:
            self._watch.fail(
                GuestError(
                    f"the guest has printed more than {LIMIT >> 20} MiB on {self.name}",
                    hint=f"{Path(self._log.name).name} shows what it repeats",
                    console=self._watch.tail(),
                )
            )
        return self._printed <= LIMIT


def tail(data: bytes, lines: int) -> str:
    """The last non-empty lines of what a serial line printed, control characters removed."""
    text = _ESCAPES.sub(b"", data).decode(errors="replace")
    return "\n".join([line.rstrip() for line in text.split("\n") if line.strip()][-lines:])
