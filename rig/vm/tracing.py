"""Recording what a held CPU executes, instruction by instruction, as the text that rig.trace reads.

Under TCG by QEMU's own log: some 30 microseconds an instruction, where a single step over the gdbstub, with the
registers read, takes 2 milliseconds and more. KVM executes by itself and logs nothing: there the rig steps, and writes
the same lines.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from rig.disassembly import length, width
from rig.errors import Cancelled, GuestError, ProtocolError
from rig.model import PAGE_SIZE, RECORDING_LIMIT, CpuState
from rig.trace import CUT, MAX_CODE, code_of
from rig.vm import registers
from rig.vm.deadline import Deadline
from rig.vm.installed import qemu_version
from rig.vm.logs import Marks
from rig.vm.machine import LOG_ALWAYS
from rig.vm.qemu import Vm
from rig.vm.qmp import PATIENCE

Take = Callable[[str], None]  # given a recording

_TRACE = "exec,cpu,in_asm,int,nochain"
_EVENTS = "int"  # interrupts and exceptions only
# One instruction for each translation block: named so since QEMU 8.1, before that as the second says.
_ONE_INSTRUCTION = ("one-insn-per-tb", "singlestep")

_switches: dict[str, str] = {}  # by QEMU's version: the monitor's command for it

_LAST = 3.0  # seconds that QEMU has to answer when something has gone wrong already
_LOOK = 0.1  # seconds between two looks at its size


@contextlib.contextmanager
def events_logged(vm: Vm, take: Take) -> Iterator[None]:
    """Have QEMU record the interrupts and exceptions that its CPUs take, over TCG, but no instruction.

    What runs meanwhile runs fast: it is translated as usual, and again once it is recorded. The VM must be held.
    """
    marks = vm.logs.marks()
    _command(vm, f"log {LOG_ALWAYS},{_EVENTS}")
    try:
        yield
    finally:
        with contextlib.suppress(GuestError, ProtocolError):
            _command(vm, f"log {LOG_ALWAYS}")
        take(together(vm.logs.take(marks, RECORDING_LIMIT)))


@contextlib.contextmanager
def logged(vm: Vm, take: Take) -> Iterator[None]:
    """Have QEMU record all that its CPUs execute, over TCG, until the context ends. The VM must be held at both ends.

    `take` is given it then, one CPU after the other. A recording that reaches its limit ends there, with rig.trace.CUT
    as its last line; the guest goes on.
    """
    switch = _switch(vm)
    marks = vm.logs.marks()
    _command(vm, f"{switch} on")
    _command(vm, f"log {LOG_ALWAYS},{_TRACE}")
    done = threading.Event()
    guard = threading.Thread(target=_guard, args=(vm, switch, marks, done), name="trace-guard", daemon=True)
    guard.start()
    patience = _LAST
    try:
        yield
        patience = PATIENCE
    finally:
        done.set()
        guard.join()
        # after an error as well: a guest that died of the hand-over has left its last instructions there
        with contextlib.suppress(GuestError, ProtocolError):
            _command(vm, f"log {LOG_ALWAYS}", patience)
            _command(vm, f"{switch} off", patience)
        cut = vm.logs.grown(marks) >= RECORDING_LIMIT
        take(together(vm.logs.take(marks, RECORDING_LIMIT)) + (f"\n{CUT}\n" if cut else ""))


def together(parts: Sequence[str]) -> str:
    """One recording of several threads'. What instructions are is told by whichever met them first: it goes ahead."""
    code = "".join(map(code_of, parts)) if len(parts) > 1 else ""
    return "".join([code, *parts])


def _guard(vm: Vm, switch: str, marks: Marks, done: threading.Event) -> None:
    """Stop the log once it is too large, and translating for it: what is translated unseen can't be logged later."""
    while not done.wait(_LOOK):
        try:
            too_large = vm.logs.grown(marks) >= RECORDING_LIMIT
        except OSError:  # whoever reads the log next is told the same, and can tell
            return
        if too_large:
            with contextlib.suppress(GuestError, ProtocolError, Cancelled):
                _command(vm, f"{switch} off")
                _command(vm, f"log {LOG_ALWAYS}")
            return


def stepped(vm: Vm, until: int, deadline: Deadline, take: Take) -> None:
    """Step the CPU that the debugger holds up to address `until`. `take` is given what it executed, however that ends.

    Slow: a millisecond and more an instruction, and as often for each iteration of a string instruction. Other CPUs
    stand still meanwhile. A step that leaves every register as it was, the instruction pointer too, is not written: on
    a busy machine QEMU at times answers one before the instruction was executed (of the instructions themselves only
    a jump to itself does so, and is written once). Raises GuestDied, GuestHung.
    """
    stop, before = vm.gdb.where, ""
    parts: list[str] = []
    try:
        while stop.pc != until:
            deadline.check(tail=vm.watch.tail)
            text = vm.registers_text().split(f"CPU#{stop.cpu}", 1)[1].split("CPU#", 1)[0]
            if text != before:
                code = _code(vm, registers.parse_one(stop.cpu, text))
                parts.append(f"----------------\nIN: \n0x{stop.pc:x}:  {code.hex(' ')}\n\n")
                parts.append(f"Trace {stop.cpu}: step [0/{stop.pc:x}/] \n{text}")
            stop, before = vm.gdb.step(), text
    finally:
        take("".join(parts))


def _code(vm: Vm, cpu: CpuState) -> bytes:
    """The bytes of the instruction that a CPU stands at, through the tables that are live now."""
    address = cpu.general["rip"]
    for size in (MAX_CODE, -address % PAGE_SIZE):  # the next page need not be mapped
        with contextlib.suppress(ProtocolError):
            blob = vm.gdb.read_memory(address, size)
            return blob[: length(blob, address, width(cpu))]
    raise ProtocolError(f"no memory at {address:#x}, where the CPU is")


def _switch(vm: Vm) -> str:
    """The monitor's command for one instruction per block. Each QEMU is asked once."""
    version = qemu_version()
    if version in _switches:
        return _switches[version]
    for name in _ONE_INSTRUCTION:
        told = vm.qmp.monitor(f"help {name}")
        if "unknown command" not in told and name in told:
            _switches[version] = name
            return name
    raise ProtocolError(f"QEMU's monitor knows none of {', '.join(_ONE_INSTRUCTION)}")


def _command(vm: Vm, line: str, patience: float = PATIENCE) -> None:
    if words := vm.qmp.monitor(line, patience).strip():
        raise ProtocolError(f"QEMU's monitor refused {line!r}: {words}", sent=line, received=words)
