"""A panic, from its trigger to the crash kernel's user space and its dump: `panic`, `machine-kexec`, `handover`,
`crash-kernel`."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from rig import start
from rig.errors import GuestDied, GuestError
from rig.facts import DumpInfo, Kimage, PlainPanic
from rig.hold import hold
from rig.kernel import ages, exception, kimage, symbols
from rig.late import late
from rig.live import Run, attached, held
from rig.memory import levels
from rig.memory.dump import Words, hashes_at
from rig.model import PAGE_SIZE, Checkpoint, CpuState, Dump
from rig.recorder import Recorder
from rig.vm import tracing
from rig.vm.gdbstub import GdbStub
from rig.vm.qemu import Vm

if TYPE_CHECKING:
    from rig import dump, saboteur
    from rig.guest import disk
else:  # of few runs, or at their end
    dump, saboteur, disk = late("rig.dump"), late("rig.saboteur"), late("rig.guest.disk")

# ---------------------------------------------------------------- panic to hand-over


def hand_over(run: Run, vm: Vm, recorder: Recorder, record: int) -> None:
    """Pull the trigger, follow the kernel to the new image's first instruction. record: physical address of the control
    module's record, 0 without."""
    names = (*symbols.PANIC_SYMBOLS, symbols.HYPERVISOR_PANIC, symbols.MACHINE_KEXEC)
    name = next((n for n in names if n in run.facts.symbols), "")
    run.make_ready(vm)
    with attached(vm) as gdb:
        with run.in_phase("panic", f"the panicking CPU at {name}") as deadline:
            cpu = run.stop_at(vm, gdb, run.facts.symbols[name], deadline, lambda: run.pull(vm))
            if cpu.paging is None:
                raise GuestError(f"paging is off at {name}")
            run.learn(crashing_cpu=cpu.cpu, panic_symbol=name, mode=cpu.paging, cr3=cpu.cr3)
            if name not in (symbols.PANIC_SYMBOLS[0], symbols.HYPERVISOR_PANIC):
                run.learn(environment={**run.facts.environment, "panic_symbol": name})
                run.listener(f"note: the kernel has no {symbols.PANIC_SYMBOLS[0]}: `panic` is taken at {name}")
            run.keep.append(levels.root(cpu.paging, cpu.cr3))
            run.at_panic = vm.info_registers()
            run.capture(vm, recorder, Checkpoint.PANIC)
            run.learn_text(recorder)
        hold(run, vm, Checkpoint.PANIC)
        try:
            with run.recorded(vm):
                image = _to_machine_kexec(run, vm, gdb, recorder, name, cpu)
            hold(run, vm, Checkpoint.MACHINE_KEXEC)
            with run.recorded(vm):
                _to_new_image(run, vm, gdb, recorder, image, record)
            hold(run, vm, Checkpoint.HANDOVER)
        except GuestDied:
            if run.facts.kimage is not None and run.ended_itself(vm):
                run.post_mortem(vm, recorder)
            raise


def _to_machine_kexec(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder, name: str, panicked: CpuState) -> Kimage:
    """From where `panic` was taken, the first instruction of `name`, on. panicked: the CPU there."""
    with run.in_phase("machine-kexec", f"CPU {panicked.cpu} at {symbols.MACHINE_KEXEC}") as deadline:
        cpu = panicked
        if name != symbols.MACHINE_KEXEC:
            cpu = run.stop_at(vm, gdb, run.facts.symbols[symbols.MACHINE_KEXEC], deadline)
        run.capture(vm, recorder, Checkpoint.MACHINE_KEXEC)
        assert run.facts.mode is not None
        assert run.facts.crash_region is not None
        arch, below = run.plan.guest.arch, run.facts.hypervisor is not None
        region, tables = run.facts.crash_region, ages.allocates_tables(run.facts.kernel.release)
        image = kimage.read(recorder.live, run.facts.mode, cpu, arch, region, own_tables=tables, xen=below)
        # which place a function's first argument has is known only now
        run.learn(kimage=image, exception=_exception(run, recorder, panicked, image))
        run.inject(vm, gdb, recorder, Checkpoint.MACHINE_KEXEC)
    return image


def _exception(run: Run, recorder: Recorder, cpu: CpuState, image: Kimage) -> dict[str, int]:
    """The registers of the exception that led to `panic`, if one did. cpu: at `panic`."""
    assert run.facts.mode is not None
    function, release = (run.facts.panic_symbol, image.place), run.facts.kernel.release
    return exception.read(recorder.at_panic, run.facts.mode, cpu, run.plan.guest.arch, function, release)


def _to_new_image(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder, image: Kimage, record: int) -> None:
    """Up to the entry of the new image."""
    with run.in_phase("hand-over", f"the new image's entry {image.start:#x}") as deadline:
        if vm.spec.accel == "tcg":
            run.stop_at(vm, gdb, image.start, deadline)
        else:
            tracing.stepped(vm, image.start, deadline, run.add_recording)
        run.inject(vm, gdb, recorder, Checkpoint.HANDOVER)
        run.capture(vm, recorder, Checkpoint.HANDOVER)
        if record:
            run.learn(**saboteur.read_record(recorder.live, record))
        if vm.spec.disk:
            disk.require_untouched(vm)
        # what the first kernel printed, its panic first of all, must not be taken for the crash kernel's
        vm.shell.discard()


def without_crash_kernel(run: Run, vm: Vm) -> None:
    """No crash kernel is loaded: the kernel says that it panics, and resets, for it was booted with panic=-1."""
    run.make_ready(vm)
    with run.in_phase("panic", "the reset after a panic") as deadline:
        run.pull(vm)
        said = vm.console.expect([rf"{start.PANIC}[^\r\n]*"], deadline)[0].decode(errors="replace")
        try:
            started = vm.console.expect([r"Linux version [^\r\n]*"], deadline)[0].decode(errors="replace")
            run.learn(plain_panic=PlainPanic(said, "", started))
        except GuestDied:
            ending = vm.watch.ending
            run.learn(plain_panic=PlainPanic(said, ending.reason if ending else "unknown"))


# ---------------------------------------------------------------- the crash kernel


def boot(run: Run, vm: Vm, recorder: Recorder) -> None:
    """The gdbstub is detached: the guest runs. While it boots, look at what was captured at `panic`."""
    started = time.monotonic()
    with run.in_phase("crash-boot", "the crash kernel's shell") as deadline:
        run.survey(recorder)
        _ = run.executed  # it takes a moment
        hello = run.meet(vm, "crash", started, deadline)
        run.no_network = "" if hello.net == "yes" else hello.net
        with held(vm):
            run.capture(vm, recorder, Checkpoint.CRASH_KERNEL)


def take_dump(run: Run, vm: Vm, recorder: Recorder, drive: IO[bytes] | None) -> None:
    """The dump as far as the scenario asks for it. drive: the guest's disk, when it is to be written there."""
    if not run.facts.vmcore_present:
        return  # crash-kernel-boots says so
    assert run.facts.mode is not None
    assert run.facts.cr3 is not None
    pgd = levels.root(run.facts.mode, run.facts.cr3) & ~(PAGE_SIZE - 1)

    with run.in_phase("dump", "the headers of /proc/vmcore") as deadline, contextlib.ExitStack() as stack:
        session, why = dump.log_in(vm, run.artefacts.keys, run.no_network, stack, deadline)
        if session is None:
            run.listener(f"note: no SSH ({why}); the dump's headers come over the console")
        read = vm.shell.read_file if session is None else session.read

        def front(at: int, size: int) -> bytes:
            return read(dump.VMCORE, at, size, deadline)

        headers = dump.fetch_front(front, pgd, run.writer)
        if run.facts.hypervisor is not None and run.facts.hypervisor.vmcoreinfo is not None:
            dump.fetch_dom0(front, headers, run.facts.hypervisor.vmcoreinfo, run.writer)
        info = DumpInfo("ssh" if session else "console", pgd, why)
        run.learn(dump=info)
        if run.plan.scenario.dump is Dump.HEADERS:
            return
        if run.facts.hypervisor is not None:
            dump.require_filterable(run.plan.scenario, headers)
        if drive is not None:
            source = dump.over_disk(vm.shell, drive)
        elif session is not None:
            source = dump.over_ssh(session)
        else:
            return  # vmcore-faithful says so

        def at_panic(addresses: Words) -> Words:
            return hashes_at(addresses, recorder.hash_pages(), run.facts.ram)

        scenario, tell = run.plan.scenario, run.listener
        whole = dump.take(scenario, source, headers, at_panic, run.writer, tell, run.options)
        run.keep += whole.differing
        run.learn(dump=replace(info, transfer=whole.transfer))
