"""Recording what a machine executes: QEMU's log and single steps must tell the same, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rig.errors import EvidenceError, GuestDied
from rig.trace import Trace, parse
from rig.vm import tracing
from rig.vm.deadline import Deadline
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Vm
from tests.vm.conftest import CODE, say

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]
MakeSpec = Callable[..., MachineSpec]

READY = say(b"ready\n")
START = CODE + len(READY)
COPIED = 256  # bytes
ROUNDS = 500
COPY = (
    b"\xb9" + COPIED.to_bytes(4, "little")  # mov $256, %ecx
    + b"\xbe" + (0x200000).to_bytes(4, "little")  # mov $0x200000, %esi
    + b"\xbf" + (0x201000).to_bytes(4, "little")  # mov $0x201000, %edi
    + b"\xf3\xa4"  # rep movsb
)  # fmt: skip
COUNT = b"\xb9" + ROUNDS.to_bytes(4, "little") + b"\x49\x75\xfd"  # mov $500, %ecx; dec %ecx; jnz to the dec


def again(body: bytes) -> bytes:
    """The body, a nop at which recordings end, and a jump back to the body."""
    return body + b"\x90" + b"\xe9" + (-len(body) - 6).to_bytes(4, "little", signed=True)


def soon() -> Deadline:
    return Deadline.after(60, "the test's guest")


def record(vm: Vm, end: int, *, step: bool) -> tuple[Trace, float]:
    """From START to `end`, and the seconds that it took. The VM runs, or stands at `end`."""
    vm.gdb.set_breakpoint(START)
    vm.gdb.continue_until_stop(soon())
    vm.gdb.remove_breakpoint(START)
    parts: list[str] = []
    started = time.monotonic()
    if step:
        tracing.stepped(vm, end, soon(), parts.append)
    else:
        vm.gdb.set_breakpoint(end)
        with tracing.logged(vm, parts.append):
            vm.gdb.continue_until_stop(soon())
        vm.gdb.remove_breakpoint(end)
    seconds = time.monotonic() - started
    return parse("".join(parts), 0), seconds


def both(make_spec: MakeSpec, body: bytes) -> tuple[tuple[Trace, float], tuple[Trace, float]]:
    """What the log and what single steps say of one round of the body."""
    end = START + len(body)
    with Vm(make_spec(READY + again(body))) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        # the quickest of a few: of 25 milliseconds a busy machine can make hundreds
        logged = min((record(vm, end, step=False) for _ in range(3)), key=lambda done: done[1])
        stepped = record(vm, end, step=True)
        vm.gdb.detach()
    return logged, stepped


def test_the_log_and_single_steps_tell_the_same(make_spec: MakeSpec) -> None:
    (logged, _), (stepped, _) = both(make_spec, COPY)
    assert [(step.pc - START, step.code, step.repeats) for step in logged.steps] == [
        (0, COPY[0:5], 1),
        (5, COPY[5:10], 1),
        (10, COPY[10:15], 1),
        (15, b"\xf3\xa4", COPIED),
    ]
    assert [(s.pc, s.code, s.repeats) for s in stepped.steps] == [(s.pc, s.code, s.repeats) for s in logged.steps]
    # the second round starts with what the first left in the registers, and differs in nothing from the copy on
    assert stepped.steps[3].state.general == logged.steps[3].state.general
    assert stepped.steps[3].state.segments == logged.steps[3].state.segments
    assert logged.events == stepped.events == ()


def test_the_log_is_ten_times_as_fast_at_least(make_spec: MakeSpec) -> None:
    (logged, log_seconds), (stepped, step_seconds) = both(make_spec, COUNT)
    assert len(logged.steps) == len(stepped.steps) == 1 + 2 * ROUNDS
    rates = [len(trace.steps) / seconds for trace, seconds in ((logged, log_seconds), (stepped, step_seconds))]
    print(f"logged {rates[0]:,.0f}, stepped {rates[1]:,.0f} instructions a second")
    assert rates[0] > 10 * rates[1]


def test_the_exception_that_a_guest_dies_of_is_recorded(make_spec: MakeSpec) -> None:
    # lidt [0]: what the BIOS keeps there are no gates of protected mode; ud2
    body = b"\x0f\x01\x1d\0\0\0\0" + b"\x0f\x0b"
    parts: list[str] = []
    wait = bytes.fromhex("66bafd02eca80174fb")  # in al, dx; test al, 1; jz back: a byte on the control line
    with Vm(make_spec(READY + wait + body)) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        vm.gdb.set_breakpoint(START + len(wait))
        vm.gdb.resume()
        vm.shell.send("x")
        vm.gdb.wait_stop(soon())
        with pytest.raises(GuestDied, match="triple fault"), tracing.logged(vm, parts.append):
            vm.gdb.continue_until_stop(soon())
        (first, last) = parse("".join(parts), 0).steps
        assert (first.code, last.code) == (body[:7], body[7:])
        fault = parse("".join(parts), 0).events[0]
        assert (fault.before, fault.vector, fault.software) == (2, 6, False)
        assert fault.state.general["rip"] == last.pc


def test_a_recording_that_grows_too_large_is_cut_and_the_guest_goes_on(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "RECORDING_LIMIT", 1 << 20)
    long = b"\xb9" + (1 << 24).to_bytes(4, "little") + b"\x49\x75\xfd"  # COUNT, for far more than a MiB
    parts: list[str] = []
    end = START + len(long)
    with Vm(make_spec(READY + again(long))) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        vm.gdb.set_breakpoint(end)
        with tracing.logged(vm, parts.append):
            assert vm.gdb.continue_until_stop(soon()).pc == end
    assert 1 << 20 <= sum(map(len, parts)) < 2 << 20
    with pytest.raises(EvidenceError, match="is cut"):
        parse("".join(parts), 0)
