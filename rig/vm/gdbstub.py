"""Client of QEMU's gdbstub: breakpoints, stepping and memory, which QMP does not have.

The protocol is GDB's remote serial protocol (GDB manual, appendix E); what QEMU makes of it is in its
gdbstub.c.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.errors import GuestDied, ProtocolError
from rig.late import late
from rig.vm.deadline import POLL, Deadline, Watch

if TYPE_CHECKING:
    from xml.etree import ElementTree
else:  # to write registers, which few runs do
    ElementTree = late("xml.etree.ElementTree")

_TIMEOUT = 10.0  # seconds for a reply while the VM is stopped
_CHUNK = 1024  # bytes per memory packet: QEMU's limit is 4096 characters, two per byte
_PC = slice(128, 136)  # RIP in a `g` reply: after 16 general registers; 8 bytes in every CPU mode
_LONGEST = 1 << 16  # bytes of a packet: far more than QEMU sends in one (its limit is 4096 characters)
_LARGEST = 1 << 20  # characters of a register description
_CPUS = 1 << 16  # more than any machine has
_SIGTRAP = 5
_FLAGS = "eflags"  # rflags' name in GDB's register descriptions
_FIRST_PROCESS = "vAttach;1"  # QEMU shows all CPUs as threads of process 1


@dataclass(frozen=True)
class Stop:
    """A stop at a breakpoint or after a step. cpu: from 0. signal: the stop reply's. pc: virtual."""

    cpu: int
    signal: int
    pc: int


def frame(payload: bytes) -> bytes:
    """A packet as it goes over the wire: $payload#checksum."""
    return b"$" + payload + b"#%02x" % (sum(payload) & 0xFF)


def take_packet(buffer: bytes) -> tuple[bytes | None, bytes]:
    """Split the first packet off a stream: (payload, rest), (None, buffer) while it is incomplete.

    Acknowledgements before it are dropped. Raises ProtocolError for a wrong checksum, a NAK and anything else
    that is not a packet.
    """
    buffer = buffer.lstrip(b"+")
    if not buffer:
        return None, b""
    if not buffer.startswith(b"$"):
        raise ProtocolError("not a gdb packet", received=repr(buffer[:80]))
    end = buffer.find(b"#")
    if (len(buffer) if end < 0 else end) > _LONGEST:
        raise ProtocolError("a gdb packet that does not end", received=repr(buffer[:80]))
    if end < 0 or len(buffer) < end + 3:
        return None, buffer
    payload, checksum = buffer[1:end], buffer[end + 1 : end + 3]
    if checksum.lower() != b"%02x" % (sum(payload) & 0xFF):
        raise ProtocolError("a gdb packet has a wrong checksum", received=repr(buffer[: end + 3]))
    # 0x7d escapes the byte after it, which is sent XOR 0x20 (GDB manual, E.1).
    return re.sub(rb"\}(.)", lambda m: bytes([m[1][0] ^ 0x20]), payload, flags=re.S), buffer[end + 3 :]


def parse_stop(reply: str) -> tuple[int, int]:
    """(signal, cpu) of a stop reply: T05thread:02; is signal 5 on CPU 1, and so is T05thread:p01.02;

    Raises ProtocolError for anything else.
    """
    match = re.match(r"T([0-9a-f]{2})(?:.*;)?thread:(?:p[0-9a-f]+\.)?([0-9a-f]{1,8});", reply)
    if not match or not 0 < int(match[2], 16) <= _CPUS:
        raise ProtocolError("not a stop at a CPU", received=reply)
    return int(match[1], 16), int(match[2], 16) - 1


def watched_address(reply: str) -> int | None:
    """Where the watchpoint is that a stop reply tells of; None when it tells of none."""
    match = re.search(r"^T[0-9a-f]{2}(?:.*;)?[ra]?watch:([0-9a-f]{1,16});", reply)
    return int(match[1], 16) if match else None


class GdbStub:
    """A connection to the gdbstub over a connected socket, which it takes over. For one thread at a time.

    QEMU regards the connection as attached from the start, but nothing is sent, and the VM is not touched,
    before attach(). Every wait raises GuestDied when the guest or QEMU ends, and Cancelled.
    """

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self._sock = sock
        self._watch = watch
        self._buffer = b""
        self._detached = False
        self._breakpoints: set[int] = set()
        self._watchpoints: set[int] = set()
        self._stop: Stop | None = None  # where the VM stands, None while it runs
        self._register_numbers: dict[str, int] = {}  # by GDB's name, once they were asked for

    @property
    def where(self) -> Stop:
        """Where the CPU that stopped last stands. The VM must have been stopped by a breakpoint or a step."""
        assert self._stop
        return self._stop

    def attach(self) -> None:
        """Stop the VM, if it runs, and take control of it."""
        self._drain()
        # Any byte stops a running VM. `+` acknowledges what QEMU may have sent while nobody listened: it
        # ignores an interrupt before that. The reply "1" then tells apart an unasked T02, which comes
        # before it.
        self._write(b"+\x03" + frame(b"qAttached"))
        deadline = Deadline.after(_TIMEOUT, "the gdbstub's answer")
        while self._receive(deadline) != "1":
            self._watch.check()
        if self._detached:
            parse_stop(self._ask(_FIRST_PROCESS))
            self._detached = False
        self._select_cpu(0)

    def detach(self) -> None:
        """Remove all breakpoints and let the VM run on. attach() can be called again."""
        # Of process 1: a debugger that the connection was lent to may have told QEMU to number processes.
        self._expect_ok("D;1")
        self._breakpoints.clear()
        self._watchpoints.clear()
        self._stop = None
        self._detached = True

    @contextlib.contextmanager
    def lent(self) -> Iterator[socket.socket]:
        """Another debugger's words pass over this connection meanwhile. Needs attach(), and no breakpoints.

        Afterwards the VM is held, wherever that debugger brought it, and none of its breakpoints is left. After an
        error the VM is left as it is.
        """
        before = self._stop
        yield self._sock
        self.attach()
        parse_stop(self._ask("?"))  # QEMU removes all breakpoints when it is asked that
        self._expect_ok("Qqemu.PhyMemMode:0")
        if before is not None:
            self._select_cpu(before.cpu)

    def close(self) -> None:
        self._sock.close()

    def set_breakpoint(self, address: int) -> None:
        """Hardware breakpoint at a virtual address: the VM stops before that instruction, on any CPU."""
        self._expect_ok(f"Z1,{address:x},1")
        self._breakpoints.add(address)

    def remove_breakpoint(self, address: int) -> None:
        """Raises ProtocolError when there is none at that address."""
        self._expect_ok(f"z1,{address:x},1")
        self._breakpoints.discard(address)

    def set_watchpoint(self, address: int, *, write: bool) -> None:
        """The VM stops after the instruction that writes, or that reads, the byte at a virtual address, on any CPU.

        Of a repeated string instruction after that iteration.
        """
        self._expect_ok(f"Z{2 if write else 3},{address:x},1")
        self._watchpoints.add(address)

    def remove_watchpoint(self, address: int, *, write: bool) -> None:
        """Raises ProtocolError when there is none at that address."""
        self._expect_ok(f"z{2 if write else 3},{address:x},1")
        self._watchpoints.discard(address)

    def resume(self) -> None:
        """Let the VM run on, with its breakpoints, also from one of them. Needs attach()."""
        if self._stop and self._stop.pc in self._breakpoints:
            self._step_off(self._stop.pc)
        self._send("vCont;c")
        self._stop = None

    def wait_stop(self, deadline: Deadline) -> Stop:
        """Wait until a CPU reaches a breakpoint or a watchpoint. Memory is then read as that CPU sees it.

        Raises GuestDied for any other stop, GuestHung when the deadline passes (the VM is left running).
        """
        reply = self._receive(deadline)
        if not reply.startswith("T"):
            raise self._died(f"the gdbstub reports that the guest has ended ({reply})")
        signal, cpu = parse_stop(reply)
        if signal != _SIGTRAP:
            raise self._died(f"the guest was stopped by something other than a breakpoint ({reply})")
        stop = self._stand(cpu, signal)
        if stop.pc not in self._breakpoints and watched_address(reply) not in self._watchpoints:
            raise self._died(f"CPU {cpu} stopped at {stop.pc:#x}, where no breakpoint is")
        return stop

    def continue_until_stop(self, deadline: Deadline) -> Stop:
        """resume() and wait_stop()."""
        self.resume()
        return self.wait_stop(deadline)

    def step(self) -> Stop:
        """Execute one instruction on the CPU that stopped last; the others stand still, interrupts wait."""
        cpu = self._stop.cpu if self._stop else 0
        signal, cpu = parse_stop(self._ask(f"vCont;s:{cpu + 1:x}"))
        if signal != _SIGTRAP:
            raise self._died(f"the guest ended during a single step (signal {signal})")
        return self._stand(cpu, signal)

    def read_memory(self, address: int, size: int) -> bytes:
        """Memory at a virtual address, through the page tables of the CPU that stopped last.

        Raises ProtocolError when a part is not mapped.
        """
        data = b""
        while len(data) < size:
            length = min(_CHUNK, size - len(data))
            command = f"m{address + len(data):x},{length:x}"
            part = self._ask_hex(command)
            if len(part) != length:
                raise ProtocolError(f"the gdbstub sent {len(part)} bytes, not {length}", sent=command)
            data += part
        return data

    def write_physical(self, address: int, data: bytes) -> None:
        """Write to physical memory, whatever the page tables say."""
        self._expect_ok("Qqemu.PhyMemMode:1")
        try:
            for start in range(0, len(data), _CHUNK):
                part = data[start : start + _CHUNK]
                self._expect_ok(f"M{address + start:x},{len(part):x}:{part.hex()}")
        finally:
            self._expect_ok("Qqemu.PhyMemMode:0")

    def write_register(self, name: str, value: int) -> None:
        """Set a register of the CPU that stopped last: rax..r15, rip, rflags, cr0, cr2, cr3, cr4, efer.

        QEMU may ignore bits, or the whole write (target/i386/gdbstub.c): read it back. Raises ProtocolError for a
        name that QEMU's register descriptions don't have.
        """
        self.describe_registers()
        name = _FLAGS if name == "rflags" else name
        if name not in self._register_numbers:
            raise ProtocolError(f"QEMU's gdbstub has no register {name}", received=", ".join(self._register_numbers))
        self._expect_ok(f"P{self._register_numbers[name]:x}={value.to_bytes(8, 'little').hex()}")

    def describe_registers(self) -> None:
        """Have QEMU's target description (GDB manual, G.2). Asking also enables `p` and `P`."""
        if not self._register_numbers:
            self._register_numbers = self._read_numbers()

    def _read_numbers(self) -> dict[str, int]:
        """Register numbers by name."""
        numbers: dict[str, int] = {}
        # Not by the parser: QEMU doesn't declare the prefix xi.
        for included in re.findall(r'<xi:include href="([^"]+)"', self._read_annex("target.xml")):
            text = self._read_annex(included)
            try:
                for register in ElementTree.fromstring(text).iter("reg"):
                    following = max(numbers.values(), default=-1) + 1
                    numbers[register.attrib["name"]] = int(register.get("regnum", following))
            except (ElementTree.ParseError, KeyError, ValueError) as error:
                raise ProtocolError(
                    f"QEMU's register description {included} makes no sense: {error}", received=text[:200]
                ) from error
        return numbers

    def _read_annex(self, annex: str) -> str:
        text, more = "", True
        while more:
            reply = self._ask(f"qXfer:features:read:{annex}:{len(text):x},{_CHUNK:x}")
            if reply[:1] not in ("m", "l") or (reply == "m") or len(text) > _LARGEST:
                raise ProtocolError(f"the gdbstub's register description {annex} does not end", received=reply[:80])
            text, more = text + reply[1:], reply.startswith("m")
        return text

    def _step_off(self, address: int) -> None:
        """One step past a breakpoint: continuing on it would stop at once, at the same instruction."""
        self.remove_breakpoint(address)
        self.step()
        self.set_breakpoint(address)

    def _stand(self, cpu: int, signal: int) -> Stop:
        self._select_cpu(cpu)
        # Not the shorter `p`: QEMU answers that only to clients that have read its register descriptions.
        registers = self._ask_hex("g")
        if len(registers) < _PC.stop:
            raise ProtocolError(f"the gdbstub sent {len(registers)} bytes of registers", sent="g")
        pc = int.from_bytes(registers[_PC], "little")
        self._stop = Stop(cpu, signal, pc)
        return self._stop

    def _select_cpu(self, cpu: int) -> None:
        self._expect_ok(f"Hg{cpu + 1:x}")

    def _expect_ok(self, command: str) -> None:
        reply = self._ask(command)
        if reply != "OK":
            raise ProtocolError(f"the gdbstub answered {reply!r} instead of OK", sent=command, received=reply)

    def _ask_hex(self, command: str) -> bytes:
        reply = self._ask(command)
        try:
            return bytes.fromhex(reply)
        except ValueError as error:
            raise ProtocolError("the gdbstub answered no hex", sent=command, received=reply) from error

    def _ask(self, command: str) -> str:
        """Send a command and return its reply. Raises ProtocolError for an error reply or an empty one."""
        self._send(command)
        reply = self._receive(Deadline.after(_TIMEOUT, f"the gdbstub's answer to {command}"))
        if re.fullmatch(r"E[0-9a-fA-F]{2}", reply):
            raise ProtocolError(f"the gdbstub refused {command} with {reply}", sent=command, received=reply)
        if not reply:
            raise ProtocolError(f"the gdbstub does not know {command}", sent=command)
        return reply

    def _send(self, command: str) -> None:
        self._write(frame(command.encode()))

    def _write(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise self._died("QEMU closed the gdbstub's connection") from error

    def _receive(self, deadline: Deadline) -> str:
        """The next packet, acknowledged."""
        while True:
            packet, self._buffer = take_packet(self._buffer)
            if packet is not None:
                self._write(b"+")
                return packet.decode("latin-1")
            self._fill(deadline)

    def _fill(self, deadline: Deadline) -> None:
        """Wait for more bytes. A stop reply that is there is looked at before the guest's end is."""
        while not select.select([self._sock], [], [], min(POLL, deadline.left))[0]:
            self._watch.check()
            deadline.check(tail=self._watch.tail)
        try:
            data = self._sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise self._died("QEMU closed the gdbstub's connection")
        self._buffer += data

    def _drain(self) -> None:
        """Drop stop replies that QEMU sent while nobody had attached."""
        self._buffer = b""
        while select.select([self._sock], [], [], 0)[0]:
            self._fill(Deadline.after(_TIMEOUT, "the gdbstub"))
            self._buffer = b""

    def _died(self, message: str) -> GuestDied:
        """The error for an unexpected stop: the guest's own end, if QMP tells it in a moment, says more."""
        ending = self._watch.wait_for_end(1.0)
        return GuestDied(ending.message if ending else message, console=self._watch.tail())
