"""A kexec jump, out and back: `machine-kexec`, `handover`, `returned`, and the user space that asked for it goes on.

The kernel keeps its state, swaps the image's pages with what lies where they belong, and calls the image, which
returns at once; then it swaps them back and goes on (KEXEC_PRESERVE_CONTEXT; kernel_kexec() in kernel/kexec_core.c,
arch/x86/kernel/relocate_kernel_{32,64}.S). The image is two pages: all of it is recorded, instruction by instruction.
"""

from __future__ import annotations

from rig.errors import EvidenceError, GuestDied, ProtocolError
from rig.evidence import DIED
from rig.facts import Jump
from rig.hold import hold
from rig.kernel import symbols
from rig.kernel.pagelist import PageList
from rig.live import Run, attached
from rig.loads import JUMP
from rig.memory import paging
from rig.model import Checkpoint
from rig.plain import keep_copied, moved, to_machine_kexec
from rig.recorder import Recorder
from rig.trace import code_of
from rig.triggers import BACK, ENTERED
from rig.vm.deadline import Deadline
from rig.vm.gdbstub import GdbStub
from rig.vm.qemu import Vm
from rig.vm.shell import Shell

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def out_and_back(run: Run, vm: Vm, recorder: Recorder) -> None:
    """Pull the trigger, follow the kernel into the image and back, and hear what its user space says of it."""
    with run.in_phase("boot-id", "the guest's boot id") as deadline:
        boot_id = vm.shell.run(BOOT_ID, deadline).strip()
    with attached(vm) as gdb:
        _, pages = to_machine_kexec(run, vm, gdb, recorder)
        run.keep += moved(pages)
        back = _return_address(run, recorder)
        hold(run, vm, Checkpoint.MACHINE_KEXEC)
        try:
            _to_image(run, vm, gdb, recorder, pages)
            hold(run, vm, Checkpoint.HANDOVER)
        except GuestDied:
            if run.ended_itself(vm):
                run.post_mortem(vm, recorder)
            raise
        run.survey(recorder)
        _to_return(run, vm, gdb, recorder, back)
        hold(run, vm, Checkpoint.RETURNED)
    _go_on(run, vm.shell, boot_id)


def _return_address(run: Run, recorder: Recorder) -> int:
    """Where machine_kexec is to return to (virtual): on top of the stack at a function's first instruction."""
    cpu = next(cpu for cpu in run.at_panic if cpu.cpu == run.facts.crashing_cpu)
    assert cpu.paging is not None
    word = run.plan.guest.arch.word
    try:
        at = paging.translate(recorder.live, cpu.paging, cpu.cr3, cpu.general["rsp"]).physical
    except paging.NotMapped as problem:
        raise EvidenceError(f"the stack at {symbols.MACHINE_KEXEC} is not mapped: {problem}") from problem
    return int.from_bytes(recorder.live.read(at, word), "little")


def _to_image(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder, pages: PageList) -> None:
    assert run.facts.kimage is not None
    with run.in_phase("hand-over", f"the image's entry {run.facts.kimage.start:#x}") as deadline:
        with run.recorded(vm):
            run.stop_at(vm, gdb, run.facts.kimage.start, deadline)
        run.capture(vm, recorder, Checkpoint.HANDOVER)
        keep_copied(run, recorder, pages)
        run.inject(vm, gdb, recorder, Checkpoint.RETURNED, moved(pages) | frozenset(pages.lists))


def _to_return(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder, back: int) -> None:
    """The way back is a recording of its own: what instructions are, it knows in part from the way out."""
    with run.in_phase("return", f"the return of {symbols.MACHINE_KEXEC} to {back:#x}") as deadline:
        try:
            with run.recorded(vm):
                run.stop_at(vm, gdb, back, deadline)
        except GuestDied:
            if run.ended_itself(vm):
                _post_mortem(run, vm, recorder)
            raise
        finally:
            if len(run.parts) == 2:
                way_out, way_back = run.parts
                run.writer.write_back(code_of(way_out) + way_back)
        run.capture(vm, recorder, Checkpoint.RETURNED)


def _post_mortem(run: Run, vm: Vm, recorder: Recorder) -> None:
    """The guest died on the way back, and QEMU has paused it as it was."""
    try:
        run.writer.write_registers(DIED, vm.info_registers())
    except ProtocolError as problem:
        run.listener(f"note: why the guest died on the way back can't be seen: {problem.message}")
        return
    recorder.capture_death()
    run.learn(post_mortem=True)


def _go_on(run: Run, shell: Shell, boot_id: str) -> None:
    """The gdbstub is detached: the guest runs. Its shell waits for the process that asked for the jump.

    Nothing may be sent until that process has spoken: a UART that wakes up forgets what it was sent in its sleep.
    """
    with run.in_phase("user-space", "the shell that asked for the kexec jump") as deadline:
        shell.wait_for(BACK, deadline)
        status = int(shell.run(f"cat {ENTERED}", deadline))
        run.learn(jump_ended=Jump(status, None, (boot_id, shell.run(BOOT_ID, deadline).strip())))
    if not run.plan.scenario.sabotage:  # what it damaged may be in use by now
        with run.in_phase("again", "the image to return a second time") as deadline:
            _again(run, shell, deadline)


def _again(run: Run, shell: Shell, deadline: Deadline) -> None:
    """Unwatched: the kernel enters the image where it asked for."""
    first = run.facts.jump_ended
    assert first is not None
    again = int(shell.run(f"{JUMP} enter; echo $?", deadline))
    after = shell.run(BOOT_ID, deadline).strip()
    run.learn(jump_ended=Jump(first.status, again, (first.boot_id[0], after)))
