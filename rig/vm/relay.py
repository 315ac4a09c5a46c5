"""Lends the rig's connection to QEMU's gdbstub to a debugger of the user's.

QEMU has one gdbstub for one client, and the rig is that client. So a debugger connects to the rig, over a Unix socket,
and what either says is passed on; but for what would take the guest away from the rig: to detach lets the VM run on,
to kill ends QEMU (handle_detach() and the `k` packet in QEMU's gdbstub.c).
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Self

from rig.vm import view32
from rig.vm.gdbstub import frame

# Acknowledgement, NAK, interrupt, packet (GDB manual, E.1).
_UNIT = re.compile(rb"[+\-\x03]|\$[^#]*#..", re.S)
_PARTING = re.compile(rb"D(;[0-9a-f]+)?|k|vKill;.*", re.S)
_WRITING = re.compile(rb"[MXGP]")
_TIMEOUT = 5.0  # seconds in which the debugger must take what is sent to it


def take_units(stream: bytes) -> tuple[list[bytes], bytes]:
    """What a debugger sends, cut into what can be passed on: (units, incomplete rest). Anything else is lost."""
    units, end = [], 0
    for match in _UNIT.finditer(stream):
        units.append(match[0])
        end = match.end()
    rest = stream[end:]
    return units, rest[rest.find(b"$") :] if b"$" in rest else b""


class Relay:
    """Between debuggers, one at a time, and the gdbstub's socket, which stays the caller's. A context manager.

    path: of the Unix socket to be made. narrow: the debugger is shown an i386 (rig/vm/view32.py), for which QEMU must
    have been asked for its own description before. served: whether a debugger has connected. wrote: whether it has
    written memory or registers.
    """

    def __init__(self, path: Path, stub: socket.socket, *, narrow: bool = False) -> None:
        self._stub = stub
        self._narrow = narrow
        self._debugger: socket.socket | None = None
        self._rest = b""  # of what the debugger sends
        self._reply = b""  # of what QEMU sends
        self._kind = ""  # of the reply that is awaited
        self.served = False
        self.wrote = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._part()
        self._listener.close()

    @property
    def sockets(self) -> list[socket.socket]:
        """Those to wait for. A second debugger waits until the first one has gone."""
        return [self._stub, self._listener if self._debugger is None else self._debugger]

    def serve(self, ready: Collection[object]) -> None:
        """Pass on what the sockets that are `ready` have. Returns without waiting.

        QEMU's end is no matter of the relay's: whoever watches over the VM sees that.
        """
        if self._stub in ready:
            self._from_qemu(_receive(self._stub))
        if self._debugger in ready:
            self._from_debugger()
        elif self._listener in ready:
            self._debugger, _ = self._listener.accept()
            self._debugger.settimeout(_TIMEOUT)
            self._rest = self._reply = b""
            self._kind = ""
            self.served = True

    def _from_debugger(self) -> None:
        assert self._debugger is not None
        data = _receive(self._debugger)
        if not data:
            self._part()
            return
        units, self._rest = take_units(self._rest + data)
        for unit in units:
            self._pass_on(unit)

    def _pass_on(self, unit: bytes) -> None:
        payload = unit[1:-3]
        self.wrote = self.wrote or bool(_WRITING.match(payload))
        if _PARTING.fullmatch(payload):
            self._to_debugger(b"+" + frame(b"OK"))
        elif not self._narrow or not payload:
            self._to_qemu(unit)
        else:
            match view32.ask(payload.decode("latin-1")):
                case view32.Answer(answer):
                    self._to_debugger(b"+" + frame(answer.encode("latin-1")))
                case view32.Question(question, kind):
                    self._kind = kind
                    self._to_qemu(frame(question.encode("latin-1")))

    def _from_qemu(self, data: bytes) -> None:
        if not self._narrow:
            self._to_debugger(data)
            return
        units, self._reply = take_units(self._reply + data)
        for unit in units:
            if self._kind and unit.startswith(b"$"):
                translated = view32.translate(self._kind, unit[1:-3].decode("latin-1"))
                self._kind = ""
                self._to_debugger(frame(translated.encode("latin-1")))
            else:
                self._to_debugger(unit)

    def _to_qemu(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._stub.sendall(data)

    def _to_debugger(self, data: bytes) -> None:
        """What QEMU says while nobody listens is lost, as it is to a debugger that comes later."""
        if self._debugger is None:
            return
        try:
            self._debugger.sendall(data)
        except OSError:
            self._part()

    def _part(self) -> None:
        if self._debugger is not None:
            self._debugger.close()
            self._debugger = None


def _receive(sock: socket.socket) -> bytes:
    """What has arrived; nothing at the end of the connection, however it came."""
    try:
        return sock.recv(65536)
    except OSError:
        return b""
