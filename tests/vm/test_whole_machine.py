"""The virtual machine as a whole, with QEMU, but with a few bytes of code instead of an operating system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.errors import Cancelled, GuestDied, GuestError, GuestHung, MachineError, ProtocolError
from rig.vm.deadline import Deadline
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Vm
from tests.processes import has_ended, is_running
from tests.vm.conftest import CODE, LOOP, say

pytestmark = [pytest.mark.vm, pytest.mark.timeout(60)]
MakeSpec = Callable[..., MachineSpec]

TRIPLE_FAULT = b"\x0f\x01\x1d" + b"\0\0\0\0" + b"\xcc"  # lidt [0]: limit 0 there; int3
RESET = b"\xb0\xfe\xe6\x64"  # mov al, 0xfe; out 0x64, al: the keyboard controller's reset line


def soon(what: str = "the test's guest") -> Deadline:
    return Deadline.after(15, what)


def test_console_carries_what_the_guest_prints(make_spec: MakeSpec) -> None:
    spec = make_spec(say(b"hello, rig\n") + LOOP)
    with Vm(spec) as vm:
        assert vm.console.expect([r"hello, (\w+)\n"], soon())[1] == b"rig"
    assert (spec.run_dir / "console.log").read_bytes() == b"hello, rig\n"


def test_failure_pattern_ends_the_wait_with_the_console(make_spec: MakeSpec) -> None:
    with Vm(make_spec(say(b"one\noops: two\n") + LOOP)) as vm:
        with pytest.raises(GuestError, match=r"waiting for x, the guest said: oops") as caught:
            vm.console.expect(["three"], soon("x"), failures=["oops"])
        assert caught.value.console.startswith("one\noops")


def test_ram_file_is_what_the_cpu_sees(make_spec: MakeSpec) -> None:
    # mov dword [0x200000], 0x12345678
    code = bytes.fromhex("c7050000200078563412") + say(b"done\n") + LOOP
    with Vm(make_spec(code)) as vm:
        vm.console.expect(["done"], soon())
        vm.stop()
        assert os.pread(vm.ram_fd, 4, 0x200000) == bytes.fromhex("78563412")
        assert vm.pmemsave(0x200000, 4096) == os.pread(vm.ram_fd, 4096, 0x200000)
        assert len(vm.pmemsave(0xB8000, 4000)) == 4000


def test_registers_of_all_cpus(make_spec: MakeSpec) -> None:
    with Vm(make_spec(b"\xbb\x44\x33\x22\x11" + say(b"done\n") + LOOP)) as vm:  # mov ebx, 0x11223344
        vm.console.expect(["done"], soon())
        vm.stop()
        first, second = vm.info_registers()
        assert (first.cpu, first.general["rbx"], first.paging) == (0, 0x11223344, None)
        assert second.cpu == 1
        assert second.general["rip"] != first.general["rip"]


def test_breakpoints_steps_and_memory_through_the_gdbstub(make_spec: MakeSpec) -> None:
    # Each round: inc eax, nop, nop, back.
    start = say(b"ready\n")
    loop = CODE + len(start)
    with Vm(make_spec(start + b"\x40\x90\x90\xeb\xfb")) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        vm.gdb.set_breakpoint(loop + 1)
        vm.gdb.set_breakpoint(loop + 2)
        assert vm.gdb.continue_until_stop(soon()).pc in (loop + 1, loop + 2)
        # On from a breakpoint: the next one is reached, not the same again.
        pcs = [vm.gdb.continue_until_stop(soon()).pc for _ in range(3)]
        assert set(pcs) == {loop + 1, loop + 2}
        vm.gdb.remove_breakpoint(loop + 2)
        stops = [vm.gdb.continue_until_stop(soon()) for _ in range(2)]
        assert [(stop.cpu, stop.pc) for stop in stops] == [(0, loop + 1)] * 2
        assert vm.gdb.step().pc == loop + 2
        assert vm.gdb.read_memory(loop, 5) == b"\x40\x90\x90\xeb\xfb"
        data = bytes(range(256)) * 16
        vm.gdb.write_physical(0x300000, data)
        assert os.pread(vm.ram_fd, len(data), 0x300000) == data
        with pytest.raises(ProtocolError, match="refused z1"):
            vm.gdb.remove_breakpoint(0x1234)
        vm.gdb.detach()
        assert vm.qmp.execute("query-status")["status"] == "running"
        vm.gdb.attach()
        vm.gdb.set_breakpoint(loop)
        assert vm.gdb.continue_until_stop(soon()).pc == loop


def test_registers_are_written_through_the_gdbstub(make_spec: MakeSpec) -> None:
    values = {"rbx": 0x11223344, "rflags": 0x202, "cr0": 0x10011, "cr2": 0x5000, "cr4": 0xA0}
    with Vm(make_spec(say(b"ready\n") + LOOP)) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        for name, value in values.items():
            vm.gdb.write_register(name, value)
        cpu, _ = vm.info_registers()
        found = {name: cpu.register(name) for name in values}
        found["rflags"] &= ~0x8D5  # CF, PF, AF, ZF, SF and OF: QEMU computes them from what was executed last
        assert found == values
        with pytest.raises(ProtocolError, match="no register cr9"):
            vm.gdb.write_register("cr9", 0)


def test_attach_to_a_vm_that_is_held_already(make_spec: MakeSpec) -> None:
    with Vm(make_spec(say(b"ready\n") + LOOP)) as vm:
        vm.console.expect(["ready"], soon())
        vm.stop()
        vm.cont()
        vm.stop()
        vm.gdb.attach()
        assert vm.gdb.read_memory(CODE, 1) == b"\xe8"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [(TRIPLE_FAULT, "triple-fault", "triple fault"), (RESET, "guest-reset", "reset the machine")],
)
def test_end_of_the_guest_is_told_with_its_registers(make_spec: MakeSpec, code: bytes, reason: str, words: str) -> None:
    vm = Vm(make_spec(b"\xbb\x44\x33\x22\x11" + say(b"last words\n") + code + LOOP))
    with pytest.raises(GuestDied, match=words) as caught, vm:
        vm.console.expect(["never"], soon())
    assert vm.ending
    assert vm.ending.reason == reason
    assert "last words" in caught.value.console
    assert "EBX=11223344" in caught.value.cpu_state


def test_end_of_the_guest_is_told_to_who_waits_for_a_breakpoint(make_spec: MakeSpec) -> None:
    # Waits for a byte on the control line, then resets: in al, dx; test al, 1; jz back.
    wait = bytes.fromhex("66bafd02eca80174fb")
    with Vm(make_spec(say(b"ready\n") + wait + TRIPLE_FAULT)) as vm:
        vm.console.expect(["ready"], soon())
        vm.gdb.attach()
        vm.gdb.set_breakpoint(0x400000)
        vm.gdb.resume()
        vm.shell.send("x")
        with pytest.raises(GuestDied, match="triple fault"):
            vm.gdb.wait_stop(soon())


def test_hung_guest_is_told_with_console_and_registers(make_spec: MakeSpec) -> None:
    vm = Vm(make_spec(say(b"hm\n") + LOOP))
    with pytest.raises(GuestHung, match="in vain for Godot") as caught, vm:
        vm.console.expect(["hm\n[^$]"], Deadline.after(2, "Godot"))
    assert caught.value.console == "hm"
    assert "EIP=" in caught.value.cpu_state


def test_killed_qemu_is_told_with_its_status(make_spec: MakeSpec) -> None:
    with Vm(make_spec(say(b"ready\n") + LOOP)) as vm:
        vm.console.expect(["ready"], soon())
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(GuestDied, match="QEMU ended with status -9"):
            vm.console.expect(["never"], soon())
        with pytest.raises(GuestDied):
            vm.qmp.execute("query-status")
        assert vm.ending
        assert vm.ending.reason == "qemu-gone"


def test_cancellation_is_seen_at_once(make_spec: MakeSpec) -> None:
    cancel = threading.Event()
    with Vm(make_spec(say(b"ready\n") + LOOP), cancel=cancel) as vm:
        vm.console.expect(["ready"], soon())
        cancel.set()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            vm.console.expect(["never"], soon())
        assert time.monotonic() - started < 0.3


def test_qemu_that_refuses_to_start_is_quoted(make_spec: MakeSpec) -> None:
    with pytest.raises(MachineError, match="unable to find CPU model 'no-such-cpu'") as caught:
        Vm(make_spec(LOOP, cpu="no-such-cpu")).__enter__()
    assert "no-such-cpu" in caught.value.hint


def test_qmp_log_and_refusal(make_spec: MakeSpec) -> None:
    spec = make_spec(LOOP)
    with Vm(spec) as vm, pytest.raises(ProtocolError, match=r"refused no-such-command"):
        vm.qmp.execute("no-such-command")
    log = (spec.run_dir / "qmp.jsonl").read_text()
    assert '"command": "no-such-command"' in log
    assert '"class": "CommandNotFound"' in log


_PARENT = """
import sys, time
from pathlib import Path
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Vm
from tests.processes import is_running
kernel, initrd, run_dir = map(Path, sys.argv[1:])
spec = MachineSpec(64, 1, "pc", "qemu64", "tcg", kernel, initrd, "", run_dir)
with Vm(spec) as vm:
    print(vm.pid, flush=True)
    time.sleep(60)
"""


def test_qemu_dies_with_a_killed_parent(make_spec: MakeSpec) -> None:
    spec = make_spec(LOOP)
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, spec.kernel, str(spec.initrd), spec.run_dir],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert has_ended(pid)


def test_leaving_the_block_leaves_nothing(make_spec: MakeSpec) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with Vm(make_spec(say(b"ready\n") + LOOP)) as vm:
        vm.console.expect(["ready"], soon())
        pid = vm.pid
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads
