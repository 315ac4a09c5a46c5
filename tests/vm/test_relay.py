from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.vm.gdbstub import frame
from rig.vm.relay import Relay, take_units


def test_a_stream_is_cut_into_what_can_be_passed_on() -> None:
    stream = b"+" + frame(b"g") + b"\x03-" + frame(b"m0,4") + b"$vCo"
    assert take_units(stream) == ([b"+", frame(b"g"), b"\x03", b"-", frame(b"m0,4")], b"$vCo")
    assert take_units(b"GET / HTTP") == ([], b"")


class Wires:
    """A relay between QEMU's end of the stub's connection and whoever connects to `path`."""

    def __init__(self, relay: Relay, qemu: socket.socket, path: Path) -> None:
        self.relay, self.qemu, self.path = relay, qemu, path

    def connect(self) -> socket.socket:
        debugger = socket.socket(socket.AF_UNIX)
        debugger.settimeout(5)
        debugger.connect(str(self.path))
        self.turn()
        return debugger

    def turn(self) -> None:
        """Serve whatever is ready."""
        self.relay.serve(select.select(self.relay.sockets, [], [], 5)[0])


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    stub, qemu = socket.socketpair()
    qemu.settimeout(5)
    with stub, qemu, Relay(tmp_path / "gdb", stub) as relay:
        yield Wires(relay, qemu, tmp_path / "gdb")


def test_both_sides_hear_each_other(wires: Wires) -> None:
    with wires.connect() as debugger:
        debugger.sendall(b"+" + frame(b"qAttached"))
        wires.turn()
        assert wires.qemu.recv(99) == b"+" + frame(b"qAttached")
        wires.qemu.sendall(b"+" + frame(b"1"))
        wires.turn()
        assert debugger.recv(99) == b"+" + frame(b"1")
    assert wires.relay.served


@pytest.mark.parametrize("parting", [b"D", b"D;1", b"k", b"vKill;1"])
def test_what_would_let_the_guest_go_does_not_reach_qemu(wires: Wires, parting: bytes) -> None:
    with wires.connect() as debugger:
        debugger.sendall(frame(parting) + frame(b"?"))
        wires.turn()
        assert wires.qemu.recv(99) == frame(b"?")
        assert debugger.recv(99) == b"+" + frame(b"OK")


def test_one_debugger_after_the_other(wires: Wires) -> None:
    wires.connect().close()
    wires.turn()  # it is gone
    wires.qemu.sendall(frame(b"T05thread:01;"))
    wires.turn()  # nobody is there to hear that
    with wires.connect() as second:
        wires.qemu.sendall(b"+")
        wires.turn()
        assert second.recv(99) == b"+"


@pytest.mark.parametrize(("packet", "wrote"), [(b"m1000,8", False), (b"M1000,1:00", True), (b"P10=00", True)])
def test_it_is_noted_whether_something_was_written(wires: Wires, packet: bytes, wrote: bool) -> None:
    with wires.connect() as debugger:
        debugger.sendall(frame(packet))
        wires.turn()
    assert wires.relay.wrote is wrote


def test_a_debugger_of_32_bit_code_sees_an_i386(tmp_path: Path) -> None:
    stub, qemu = socket.socketpair()
    qemu.settimeout(5)
    with stub, qemu, Relay(tmp_path / "gdb", stub, narrow=True) as relay:
        wires = Wires(relay, qemu, tmp_path / "gdb")
        with wires.connect() as debugger:
            debugger.sendall(b"+" + frame(b"p8"))
            wires.turn()
            assert qemu.recv(99) == b"+" + frame(b"p10")
            whole = b"+" + frame(b"7856341200000000")
            for part in (whole[:5], whole[5:]):
                qemu.sendall(part)
                wires.turn()
            assert debugger.recv(99) == b"+" + frame(b"78563412")
            debugger.sendall(frame(b"qXfer:features:read:target.xml:0,25"))
            wires.turn()
            assert debugger.recv(99) == b"+" + frame(b'm<?xml version="1.0"?><!DOCTYPE target')
            debugger.sendall(frame(b"D"))
            wires.turn()
            assert debugger.recv(99) == b"+" + frame(b"OK")
