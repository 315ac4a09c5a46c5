from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from rig.errors import GuestDied, GuestHung, ProtocolError
from rig.vm.deadline import Deadline, Ending, Watch
from rig.vm.gdbstub import GdbStub, frame, parse_stop, take_packet


def test_frame_and_take_packet_are_inverse() -> None:
    assert frame(b"OK") == b"$OK#9a"  # 0x4f + 0x4b
    assert take_packet(b"++" + frame(b"OK") + b"$T0") == (b"OK", b"$T0")


@pytest.mark.parametrize("part", [b"", b"+", b"$", b"$OK", b"$OK#", b"$OK#9"])
def test_incomplete_packet(part: bytes) -> None:
    assert take_packet(part) == (None, part.lstrip(b"+"))


def test_escaped_bytes() -> None:
    assert take_packet(frame(b"a}\x03}]b"))[0] == b"a#}b"


@pytest.mark.parametrize(
    ("stream", "message"), [(b"$OK#9b", "wrong checksum"), (b"-$OK#9a", "not a gdb packet"), (b"OK", "not a")]
)
def test_garbled_packet(stream: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        take_packet(stream)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("T05thread:01;", (5, 0)),
        ("T05thread:0a;", (5, 9)),
        ("T02thread:p01.02;", (2, 1)),
        ("T05watch:ffff8000;thread:02;", (5, 1)),
    ],
)
def test_stop_reply(reply: str, expected: tuple[int, int]) -> None:
    assert parse_stop(reply) == expected


@pytest.mark.parametrize("reply", ["W00", "S03", "OK", "T05", "Txxthread:01;"])
def test_not_a_stop_reply(reply: str) -> None:
    with pytest.raises(ProtocolError, match="not a stop"):
        parse_stop(reply)


@pytest.fixture
def watch() -> Watch:
    return Watch(tail=lambda: "the console")


Connect = Callable[[bytes], GdbStub]


@pytest.fixture
def connect(watch: Watch) -> Iterator[Connect]:
    """A function that makes a client whose server has answered in advance."""
    sockets: list[socket.socket] = []

    def make(answers: bytes) -> GdbStub:
        ours, theirs = socket.socketpair()
        sockets.extend((ours, theirs))
        theirs.sendall(answers)
        if answers.endswith(frame(b"W00")):
            theirs.shutdown(socket.SHUT_RDWR)
        return GdbStub(ours, watch)

    yield make
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"E22", "refused Z1,1000,1 with E22"), (b"", "does not know Z1"), (b"yes", "'yes' instead of OK")],
)
def test_refused_command(connect: Connect, answer: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        connect(b"+" + frame(answer)).set_breakpoint(0x1000)
    assert caught.value.sent == "Z1,1000,1"


def test_memory_of_the_wrong_size(connect: Connect) -> None:
    with pytest.raises(ProtocolError, match="sent 2 bytes, not 4"):
        connect(frame(b"abcd")).read_memory(0, 4)


def test_memory_that_is_no_hex(connect: Connect) -> None:
    with pytest.raises(ProtocolError, match="no hex"):
        connect(frame(b"zz")).read_memory(0, 1)


def test_stop_by_shutdown_is_the_end_of_the_guest(connect: Connect, watch: Watch) -> None:
    watch.end(Ending("triple-fault", "a CPU took a triple fault"))
    with pytest.raises(GuestDied, match="triple fault") as caught:
        connect(frame(b"T03thread:01;")).wait_stop(Deadline.after(5, "a breakpoint"))
    assert caught.value.console == "the console"


def test_exit_packet_is_the_end_of_the_guest(connect: Connect, watch: Watch) -> None:
    watch.end(Ending("qemu-gone", "QEMU ended with status 1"))
    with pytest.raises(GuestDied, match="status 1"):
        connect(frame(b"W00")).wait_stop(Deadline.after(5, "a breakpoint"))


def test_stop_where_no_breakpoint_is(connect: Connect, watch: Watch) -> None:
    watch.end(Ending("x", "some end"))
    registers = (bytes(128) + (0x1234).to_bytes(8, "little")).hex().encode()
    with pytest.raises(GuestDied, match="some end"):
        connect(frame(b"T05thread:02;") + frame(b"OK") + frame(registers)).wait_stop(Deadline.after(5, "x"))


@pytest.mark.parametrize("reply", ["T05thread:p01.02;rwatch:1fd000;", "T05watch:1fd000;thread:02;"])
def test_stop_at_a_watchpoint_that_was_set_and_at_no_other(connect: Connect, watch: Watch, reply: str) -> None:
    registers = (bytes(128) + (0x1234).to_bytes(8, "little")).hex().encode()
    stopped = frame(reply.encode()) + frame(b"OK") + frame(registers)
    stub = connect(frame(b"OK") + stopped)
    stub.set_watchpoint(0x1FD000, write=False)
    assert stub.wait_stop(Deadline.after(5, "x")).pc == 0x1234
    watch.end(Ending("x", "some end"))
    other = connect(frame(b"OK") + stopped)
    other.set_watchpoint(0x1FE000, write=True)
    with pytest.raises(GuestDied, match="some end"):
        other.wait_stop(Deadline.after(5, "x"))


def test_breakpoint_not_reached_in_time(connect: Connect) -> None:
    with pytest.raises(GuestHung, match="in vain for the panic"):
        connect(b"+").wait_stop(Deadline.after(0.15, "the panic"))
