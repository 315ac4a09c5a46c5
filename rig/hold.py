"""`rig run --stop-at`: the guest is held at a checkpoint, and the user looks at it with tools of their own.

gdb speaks to QEMU through a relay, over the rig's own connection (rig/vm/relay.py); QMP has a second monitor, which
such a run's QEMU is started with. Both are Unix sockets in a directory that only the user can enter.

Where the kernel is on its way (PINNED) the rest of the run rests on the guest standing just there: a guest that was
let run on can't be judged. Elsewhere it waits for a command, and may run meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rig import unfinished
from rig.errors import GuestDied, GuestError, RequestError
from rig.guest import arming
from rig.kernel import symbols, symfile
from rig.live import Run, attached
from rig.loads import LOADS
from rig.model import Arch, Checkpoint, CpuState, LoadKind, RunPlan
from rig.stop_at import QMP, Attachment, StopAt
from rig.vm.deadline import POLL, Deadline
from rig.vm.qemu import Vm
from rig.vm.relay import Relay

ORDER = {
    LoadKind.CRASH: (
        Checkpoint.ARMED,
        Checkpoint.PANIC,
        Checkpoint.MACHINE_KEXEC,
        Checkpoint.HANDOVER,
        Checkpoint.CRASH_KERNEL,
    ),
    LoadKind.PLAIN: (Checkpoint.ARMED, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.SECOND_KERNEL),
    LoadKind.JUMP: (Checkpoint.ARMED, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.RETURNED),
    LoadKind.NONE: (Checkpoint.ARMED,),
}
PINNED = (Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.RETURNED)
NEW_KERNEL = (Checkpoint.CRASH_KERNEL, Checkpoint.SECOND_KERNEL)
SUN_PATH = 108  # bytes of a Unix socket's path, with the NUL at its end (unix(7))
GDB, SYMBOLS = "gdb", "symbols"  # file names, beside QMP
_STDIN_HINT = "a line from stdin, or its end, lets the run go on: use a terminal or a pipe"


def require_possible(plans: Sequence[RunPlan], checkpoint: Checkpoint, stdin: int) -> None:
    """:raise RequestError: not just one run, a checkpoint that it has not, or nobody who could let it go on"""
    if len(plans) != 1:
        raise RequestError(
            f"--stop-at holds one guest, but {len(plans)} runs are selected",
            hint=f"choose one with --guest: {', '.join(plan.guest.name for plan in plans)}",
        )
    possible = ORDER[LOADS[plans[0].scenario.load].kind]
    if checkpoint not in possible:
        raise RequestError(
            f"the scenario {plans[0].scenario.name} has no checkpoint {checkpoint}",
            hint=f"it has {', '.join(possible)}",
        )
    try:
        status = os.fstat(stdin)
    except OSError as problem:
        raise RequestError("--stop-at: stdin is closed", hint=_STDIN_HINT) from problem
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        raise RequestError(f"--stop-at: stdin is {os.devnull}", hint=_STDIN_HINT)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new directory that only the user can enter, gone at the end. RequestError when sockets in it can't be named."""
    with unfinished.temporary("held") as folder:
        if len(os.fsencode(folder / QMP)) >= SUN_PATH:
            raise RequestError(
                f"{folder} is too long a name for sockets to be made in", hint="set TMPDIR to a shorter directory"
            )
        yield folder


# ---------------------------------------------------------------- while the run is on


def hold(run: Run, vm: Vm, checkpoint: Checkpoint) -> None:
    """Hold the guest until the user lets it go on, if this is where they asked for it.

    At a checkpoint of PINNED the gdbstub must be attached; elsewhere the guest must be running, at its shell.

    :raise GuestError: the guest ended meanwhile, or was let run on from where it has to stand
    """
    stop = run.stop
    if stop is None or stop.checkpoint is not checkpoint:
        return
    with run.in_phase("hold", "the user"):
        arch = (run.plan.into or run.plan.guest if checkpoint in NEW_KERNEL else run.plan.guest).arch
        options = _symbol_options(run, vm, stop, arch)
        started = time.monotonic()
        with contextlib.nullcontext() if checkpoint in PINNED else attached(vm):
            before = vm.info_registers()
            relay = _until_released(vm, stop, _attachment(run, stop, options, before), arch is Arch.I386)
            moved = [cpu.general["rip"] for cpu in before] != [cpu.general["rip"] for cpu in vm.info_registers()]
        held = {"checkpoint": checkpoint, "seconds": round(time.monotonic() - started, 1)}
        by_gdb = {"debugger": relay.served, "written": relay.wrote}
        run.learn(environment={**run.facts.environment, "held": {**held, **by_gdb}})
        if moved and checkpoint in PINNED:
            raise GuestError(
                f"the guest was let run on from {checkpoint}: what came after was not seen",
                hint="one that is only looked at, or written to, goes on with the run",
            )


def _until_released(vm: Vm, stop: StopAt, attachment: Attachment, narrow: bool) -> Relay:
    """Tell the user, and serve their debugger until a line comes from stdin, or its end. narrow: show it an i386."""
    if narrow:
        vm.gdb.describe_registers()
    with vm.gdb.lent() as stub, Relay(stop.folder / GDB, stub, narrow=narrow) as relay:
        stop.tell(attachment)
        while True:
            wanted: list[int | socket.socket] = [stop.stdin, *relay.sockets]
            ready = select.select(wanted, [], [], POLL)[0]
            try:
                vm.watch.check()
            except GuestDied as problem:
                raise GuestError(f"the guest ended while it was held: {problem.message}") from problem
            relay.serve(ready)
            if stop.stdin in ready:
                os.read(stop.stdin, 4096)
                return relay


def _symbol_options(run: Run, vm: Vm, stop: StopAt, arch: Arch) -> list[str]:
    """What gdb is to be told for names of the kernel that is there; nothing when there are none."""
    files = run.artefacts
    vmlinux = None if run.facts.hypervisor else files.vmlinux
    known, running = run.kallsyms, run.facts.symbols
    if stop.checkpoint in NEW_KERNEL:
        deadline = Deadline.after(run.options.deadline, "the new kernel's symbols")
        running = symbols.parse_kallsyms(vm.shell.run(f"{symbols.COMMAND}; true", deadline))
        same = files.kernel.sha256 == files.crash_kernel.sha256
        vmlinux = files.vmlinux if same else None
        if vmlinux is None and symbols.MACHINE_KEXEC in running:
            store = (files.cache, files.crash_kernel.sha256)
            known = arming.all_symbols(vm.shell, store, running, deadline, run.listener)
        else:
            known = symbols.table({})
    if vmlinux is not None and symbols.MACHINE_KEXEC in running:
        linked = symbols.named(vmlinux, (symbols.MACHINE_KEXEC,))[symbols.MACHINE_KEXEC]
        offset = (running[symbols.MACHINE_KEXEC] - linked) % (1 << 8 * arch.word)
        return ["-ex", f"symbol-file {shlex.quote(str(vmlinux))} -o {offset:#x}"]
    if not known:
        return []
    (stop.folder / SYMBOLS).write_bytes(symfile.elf(known.as_dict(), arch))
    return ["-ex", f"symbol-file {stop.folder / SYMBOLS}"]


def _attachment(run: Run, stop: StopAt, options: list[str], cpus: Sequence[CpuState]) -> Attachment:
    qmp_shell = Path(sys.executable).with_name("qmp-shell")  # of qemu.qmp, which the rig stands on
    return Attachment(
        run=run.plan.id,
        checkpoint=stop.checkpoint,
        gdb=shlex.join(["gdb", *options, "-ex", f"target remote {stop.folder / GDB}"]),
        qmp=shlex.join([str(qmp_shell), str(stop.monitor)]),
        console=shlex.join(["tail", "-f", str(run.writer.path.resolve() / "console.log")]),
        cpus=tuple(
            f"CPU {cpu.cpu} at {cpu.general['rip']:#x}, CR3 {cpu.cr3:#x}, {cpu.paging or 'no'} paging" for cpu in cpus
        ),
    )
