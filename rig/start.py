"""The start of a run: its guest booted and armed, or gone on with from a template of just such a guest."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from rig import armed
from rig.errors import GuestDied, GuestHung, ProtocolError
from rig.guest import arming
from rig.live import Run, held
from rig.prepare import Artefacts
from rig.vm.deadline import Deadline
from rig.vm.qemu import Vm
from rig.vm.template import Making
from rig.warmup import driving, warmed_up

# Signs on the console that the first kernel will never come to a shell, long before the deadline says so.
PANIC = "Kernel panic - not syncing"
BOOT_FAILURES = (PANIC, "No working init found")


def start(run: Run, artefacts: Artefacts, stack: contextlib.ExitStack) -> tuple[Vm, Making | None]:
    """The guest at its first kernel's shell, and the template that is to be made of it, if this run is to make one."""
    if artefacts.template is not None:
        return _restored(run, artefacts, stack), None
    making = None
    if artefacts.template_key:
        making = stack.enter_context(artefacts.templates.making(artefacts.template_key))
    return _booted(run, artefacts, stack), making


def arm(run: Run, vm: Vm, artefacts: Artefacts, making: Making | None, deadline: Deadline) -> arming.Self:
    """Have the guest load the new image, and tell of itself. A template's has done so."""
    if artefacts.template is not None:
        return armed.unpack(artefacts.template).known
    known = arming.arm(vm.shell, run.load, artefacts.crash_cmdline, deadline, artefacts.crash_linked_at)
    if making is not None:
        told = armed.Armed(artefacts.keys, known, artefacts.environment["initramfs"])
        try:
            with held(vm):
                making.keep(vm, armed.pack(told))
        except OSError as problem:  # the run has its guest, and does without
            run.listener(f"note: the guest can't be kept as a template: {problem.strerror}")
    return known


def _booted(run: Run, artefacts: Artefacts, stack: contextlib.ExitStack) -> Vm:
    with run.in_phase("boot", "the first kernel's shell") as deadline:
        vm = _started(run, artefacts, stack)
        vm.shell.wait_hello("first", deadline, BOOT_FAILURES)
    for number in range(run.plan.scenario.hops):
        with run.in_phase(f"hop-{number + 1}", "the first kernel's shell, after a plain kexec") as deadline:
            arming.hop(vm.shell, artefacts.machine.cmdline, deadline)
            vm.shell.wait_hello("first", deadline, BOOT_FAILURES)
    return vm


def _restored(run: Run, artefacts: Artefacts, stack: contextlib.ExitStack) -> Vm:
    """What the guest said while it was booted comes first in this run's logs."""
    assert artefacts.template is not None
    with run.in_phase("restore", "the guest of the template"):
        for name, said in artefacts.template.logs.items():
            run.writer.write(name, said)
        try:
            vm = _started(run, artefacts, stack)
        except (GuestDied, GuestHung, ProtocolError) as problem:
            artefacts.templates.drop(artefacts.template_key)
            problem.hint = problem.hint or "the template is dropped: run again, and the guest is booted"
            raise
        vm.cont()
    return vm


def _started(run: Run, artefacts: Artefacts, stack: contextlib.ExitStack) -> Vm:
    monitor = run.stop.monitor if run.stop is not None else None
    standing = artefacts.template.standing if artefacts.template is not None else None
    stack.enter_context(warmed_up(driving(run.plan)))
    machine = replace(artefacts.machine, monitor=monitor)
    vm = stack.enter_context(Vm(machine, cancel=run.cancel, standing=standing, afterwards=run.afterwards))
    run.learn(environment={**run.facts.environment, "argv": list(vm.argv)})
    return vm
