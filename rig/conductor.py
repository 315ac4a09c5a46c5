"""One run: the phases in order. The only code that drives a live VM."""

from __future__ import annotations

import contextlib
import random
import resource
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import rig
from rig import injection, sabotage, saboteur, trace
from rig.errors import (
    Cancelled,
    CouldNotJudge,
    EvidenceError,
    GuestDied,
    GuestError,
    GuestHung,
    MachineError,
    NotOffered,
    ProtocolError,
    RequestError,
)
from rig.evidence import DIED, LISTING, Evidence, EvidenceWriter, to_json
from rig.facts import DumpInfo, Facts, Kimage, Pattern, PlainPanic
from rig.guest import arming
from rig.guest.keys import RunKeys
from rig.judge import judge
from rig.kernel import efi, exception, kimage, symbols
from rig.loads import LOADS
from rig.memory import levels
from rig.memory.dump import Words, hashes_at
from rig.model import PAGE_SIZE, Checkpoint, CpuState, Dump, Failure, LoadKind, Options, Phase, RunPlan, RunResult
from rig.prepare import Artefacts, prepare
from rig.recorder import Recorder
from rig.report.html import render_run
from rig.report.listing import hand_over_listing
from rig.survey import survey
from rig.triggers import READY, TRIGGERS, trigger_line
from rig.vm import tracing
from rig.vm.deadline import Deadline
from rig.vm.gdbstub import GdbStub
from rig.vm.qemu import Vm, ram_ranges

Listener = Callable[[str], None]

TOKEN_BYTES = 32  # of the pattern: 64 hexadecimal digits
# Signs on the console that the first kernel will never come to a shell, long before the deadline says so.
PANIC = "Kernel panic - not syncing"
BOOT_FAILURES = (PANIC, "No working init found")
# What to think of first when a phase does not come to its end.
HINTS = {
    "boot": "a console that says nothing at all: CONFIG_SERIAL_8250_CONSOLE may be missing; --deadline waits longer",
    "crash-boot": "is crashkernel= large enough? The console shows how far it came; --deadline waits longer",
}
AFTER_TRIGGER = (
    "ready",
    "panic",
    "machine-kexec",
    "hand-over",
    "crash-boot",
)  # phases in which a guest may die of its panic


def run(plan: RunPlan, options: Options, listener: Listener, cancel: threading.Event) -> tuple[RunResult, Path]:
    """Boot, arm, panic, capture, dump, judge. Returns the result and its evidence directory.

    A run's own trouble ends in a result with verdict "error". Raises RequestError for what was asked wrongly, and
    Cancelled; then nothing is left behind, neither processes nor files.
    """
    writer = EvidenceWriter(options.results, plan.slug)
    try:
        facts = _Run(plan, options, writer, listener, cancel).perform()
        writer.write("run.json", to_json(facts))
        evidence = Evidence(writer.path)
        result = judge(evidence)
        writer.write("result.json", to_json(result))
        listing = hand_over_listing(evidence)
        if listing is not None:
            writer.write(LISTING, "\n".join((*listing.lines, "")).encode())
        writer.write("report.html", render_run(result, evidence, listing).encode())
        return result, writer.finish()
    except OSError as problem:
        writer.discard()
        where = problem.filename or writer.path
        raise MachineError(
            f"the evidence can't be kept: {where}: {problem.strerror}", hint="make room, or choose --results DIR"
        ) from problem
    except BaseException:
        writer.discard()
        raise


@contextlib.contextmanager
def _held(vm: Vm) -> Iterator[None]:
    """All CPUs stand still."""
    vm.stop()
    yield
    vm.cont()


@contextlib.contextmanager
def _attached(vm: Vm) -> Iterator[GdbStub]:
    """The debugger holds the VM; at the end it lets go and the VM runs on. After an error the VM is left as it is."""
    vm.gdb.attach()
    yield vm.gdb
    vm.gdb.detach()


class _Run:
    """The mutable state of one run: the facts gathered so far."""

    def __init__(
        self, plan: RunPlan, options: Options, writer: EvidenceWriter, listener: Listener, cancel: threading.Event
    ) -> None:
        self.plan = plan
        self.options = options
        self.writer = writer
        self.listener = listener
        self.cancel = cancel
        self.keys = RunKeys.make()
        self.token = secrets.token_hex(TOKEN_BYTES)
        self.guest_ended = False  # the guest reset, triple-faulted or powered off
        self.kallsyms: dict[int, str] = {}  # of the first kernel, address -> name
        self.parts: list[str] = []  # of the recording, as they were taken
        self.recording = ""  # of the hand-over, as rig.trace reads it
        self.at_panic: tuple[CpuState, ...] = ()  # all CPUs
        self.no_network = "the crash kernel never said"  # why there is no SSH; empty when there is
        self.keep: list[int] = []  # physical: pages to keep from `panic` whether or not they change
        self.facts = Facts(rig=rig.__version__, plan=plan)
        self.trigger = TRIGGERS[plan.scenario.trigger]
        self.load = LOADS[plan.scenario.load]

    def learn(self, **news: Any) -> None:
        """Add to the facts."""
        self.facts = replace(self.facts, **news)

    @contextlib.contextmanager
    def in_phase(self, name: str, what: str) -> Iterator[Deadline]:
        """Tell the listener, hand down the phase's deadline, take the time, and mark errors with the phase."""
        self.listener(name)
        started = time.monotonic()
        try:
            yield Deadline.after(self.options.deadline, what)
        except CouldNotJudge as problem:
            problem.phase = problem.phase or name
            if isinstance(problem, GuestHung):
                problem.hint = problem.hint or HINTS.get(name, "")
            raise
        finally:
            phase = Phase(name, round(time.monotonic() - started, 3))
            self.learn(phases=(*self.facts.phases, phase))

    def perform(self) -> Facts:
        """All phases. What breaks the run off is recorded in the facts, but for wrong requests and cancellation."""
        if self.plan.skip:
            self.learn(skip=self.plan.skip)
            return self.facts
        try:
            with contextlib.ExitStack() as stack:
                with self.in_phase("prepare", "the artefacts"):
                    artefacts = stack.enter_context(
                        prepare(self.plan, self.options, self.keys, self.writer.path, self.listener, self.cancel)
                    )
                    self.learn(
                        kernel=artefacts.kernel,
                        crash_kernel=artefacts.crash_kernel,
                        environment=artefacts.environment,
                    )
                self._drive(artefacts, stack)
        except Cancelled:
            raise
        except RequestError as problem:
            if not self.options.refused_is_error:
                raise
            phase = self.facts.phases[-1].name
            self.learn(broke_off=Failure(type(problem).__name__, problem.message, phase, problem.hint))
        except NotOffered as problem:
            self.learn(skip=problem.message)
        except CouldNotJudge as problem:
            self._break_off(problem)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # of the whole process, other runs included
        self.learn(environment={**self.facts.environment, "peak_memory_mib": peak})
        return self.facts

    def _break_off(self, problem: CouldNotJudge) -> None:
        failure = Failure(
            kind=type(problem).__name__,
            message=problem.message,
            phase=problem.phase,
            hint=problem.hint,
            console=problem.console,
            cpu_state=problem.cpu_state,
        )
        self.learn(broke_off=failure, died=self.guest_ended and problem.phase in AFTER_TRIGGER)

    def _drive(self, artefacts: Artefacts, stack: contextlib.ExitStack) -> None:
        with self.in_phase("boot", "the first kernel's shell") as deadline:
            vm = stack.enter_context(Vm(artefacts.machine, cancel=self.cancel))
            self.learn(environment={**self.facts.environment, "argv": list(vm.argv)})
            vm.shell.wait_hello("first", deadline, BOOT_FAILURES)
        ram = ram_ranges(artefacts.machine)
        recorder = stack.enter_context(Recorder(vm.ram_fd, artefacts.machine.ram_size, ram, vm.pmemsave))
        self.learn(ram=tuple(ram))
        with self.in_phase("arm", "the crash kernel to be loaded") as deadline:
            record = self._arm(vm, recorder, artefacts, deadline)
        try:
            if self.load.kind is LoadKind.NONE:
                self._plain_panic(vm)
                return
            self._hand_over(vm, recorder, record)
            self._crash_boot(vm, recorder)
            self._dump(vm, recorder)
        except GuestDied:
            self.guest_ended = self._ended_itself(vm)
            raise
        finally:
            self.learn(captured=tuple(recorder.captured))
            recorder.save(self.writer, self.keep)
            self._keep_recording()
            executed = trace.addresses("".join(self.parts))
            where = symbols.of_interest(self.kallsyms, executed, self.facts.iomem, recorder.all_changed_pages())
            self.writer.write_symbols(symbols.placed(self.kallsyms, where))

    def _ended_itself(self, vm: Vm) -> bool:
        """Was it the guest's own doing, or QEMU's? QMP may tell a moment later than the gdbstub."""
        ending = vm.watch.wait_for_end(2.0)
        return ending is not None and ending.by_guest

    # ------------------------------------------------------------ armed

    def _arm(self, vm: Vm, recorder: Recorder, artefacts: Artefacts, deadline: Deadline) -> int:
        """Load the crash kernel (and the control). Returns the physical address of the control's record, 0 without."""
        known = arming.arm(vm.shell, self.load, artefacts.crash_cmdline, deadline)
        if artefacts.vmlinux is not None:
            self.kallsyms = symbols.from_vmlinux(artefacts.vmlinux, known.symbols)
        else:
            store = (artefacts.cache, artefacts.kernel.sha256)
            self.kallsyms = arming.all_symbols(vm.shell, store, known.symbols, deadline, self.listener)
        self.learn(
            text=symbols.text_start(self.kallsyms),
            given_back=symbols.given_back(self.kallsyms),
            iomem=known.iomem,
            crash_region=known.crash_region,
            symbols=known.symbols,
            crash_notes=known.crash_notes,
            per_cpu=known.per_cpu,
            vmcoreinfo=known.vmcoreinfo,
            crash_cmdline=" ".join(filter(None, (artefacts.crash_cmdline, self.load.word))),
            efi_tables=efi.spans(recorder.live, *known.efi) if known.efi else (),
        )
        record = 0
        if artefacts.control:
            notes = known.crash_notes[0][0] if known.crash_notes else 0
            places = {"pattern": self.token, "crash_notes": f"{notes:#x}"}
            parameters = sabotage.fill(self.plan.scenario.parameters, places)
            record = arming.load_control(vm.shell, parameters, deadline)
            self.kallsyms |= symbols.parse_all(vm.shell.run(symbols.COMMAND_MODULES, deadline), modules=True)
        arming.prepare_trigger(vm.shell, self.trigger, deadline)
        with _held(vm):
            self.writer.write_registers(Checkpoint.ARMED, vm.info_registers())
        return record

    # ------------------------------------------------------------ panic to hand-over

    def _hand_over(self, vm: Vm, recorder: Recorder, record: int) -> None:
        name = next((n for n in (*symbols.PANIC_SYMBOLS, symbols.MACHINE_KEXEC) if n in self.facts.symbols), "")
        self._make_ready(vm)
        with _attached(vm) as gdb:
            with self.in_phase("panic", f"the panicking CPU at {name}") as deadline:
                cpu = self._stop_at(vm, gdb, self.facts.symbols[name], deadline, lambda: self._pull(vm))
                if cpu.paging is None:
                    raise GuestError(f"paging is off at {name}")
                self.learn(crashing_cpu=cpu.cpu, panic_symbol=name, mode=cpu.paging, cr3=cpu.cr3)
                self.keep.append(levels.root(cpu.paging, cpu.cr3))
                self.at_panic = vm.info_registers()
                self._capture(vm, recorder, Checkpoint.PANIC)
                self._learn_exception(gdb, cpu)
            try:
                with self._recorded(vm):
                    image = self._to_machine_kexec(vm, gdb, recorder, name, cpu)
                with self._recorded(vm):
                    self._to_new_image(vm, gdb, recorder, image, record)
            except GuestDied:
                if self.facts.kimage is not None and self._ended_itself(vm):
                    self._post_mortem(vm, recorder)
                raise

    def _make_ready(self, vm: Vm) -> None:
        """Have the process that an act is to hit wait for it."""
        if self.trigger.act is not None and self.trigger.command:
            with self.in_phase("ready", "the process that is to be hit") as deadline:
                vm.shell.send(trigger_line(self.trigger, self.token))
                vm.shell.wait_for(READY, deadline)

    def _pull(self, vm: Vm) -> None:
        """The trigger. The guest must be running: QEMU drops keys otherwise."""
        if self.trigger.act is not None:
            self.trigger.act(vm)
        else:
            vm.shell.send(trigger_line(self.trigger, self.token))

    def _learn_exception(self, gdb: GdbStub, cpu: CpuState) -> None:
        """The registers of the exception that led to `panic`, if one did."""
        arch = self.plan.guest.arch
        if at := exception.pointer(arch, self.facts.panic_symbol, cpu):
            with contextlib.suppress(ProtocolError):  # nothing is mapped there: not a pointer
                registers = exception.parse(arch, gdb.read_memory(at, exception.size(arch)))
                if exception.plausible(registers, cpu):
                    self.learn(exception=registers)

    def _plain_panic(self, vm: Vm) -> None:
        """No crash kernel is loaded: the kernel says that it panics, and resets, for it was booted with panic=-1."""
        self._make_ready(vm)
        with self.in_phase("panic", "the reset after a panic") as deadline:
            self._pull(vm)
            said = vm.console.expect([rf"{PANIC}[^\r\n]*"], deadline)[0].decode(errors="replace")
            try:
                started = vm.console.expect([r"Linux version [^\r\n]*"], deadline)[0].decode(errors="replace")
                self.learn(plain_panic=PlainPanic(said, "", started))
            except GuestDied:
                ending = vm.watch.ending
                self.learn(plain_panic=PlainPanic(said, ending.reason if ending else "unknown"))

    def _to_machine_kexec(self, vm: Vm, gdb: GdbStub, recorder: Recorder, name: str, cpu: CpuState) -> Kimage:
        """From where `panic` was taken, the first instruction of `name`, on."""
        with self.in_phase("machine-kexec", f"CPU {cpu.cpu} at {symbols.MACHINE_KEXEC}") as deadline:
            if name != symbols.MACHINE_KEXEC:
                cpu = self._stop_at(vm, gdb, self.facts.symbols[symbols.MACHINE_KEXEC], deadline)
            self._capture(vm, recorder, Checkpoint.MACHINE_KEXEC)
            assert self.facts.mode is not None
            assert self.facts.crash_region is not None
            image = kimage.read(recorder.live, self.facts.mode, cpu, self.plan.guest.arch, self.facts.crash_region)
            self.learn(kimage=image)
            self._inject(vm, gdb, recorder, Checkpoint.MACHINE_KEXEC)
        return image

    def _to_new_image(self, vm: Vm, gdb: GdbStub, recorder: Recorder, image: Kimage, record: int) -> None:
        """Up to the entry of the new image. record: physical address of the control module's record, 0 without."""
        with self.in_phase("hand-over", f"the new image's entry {image.start:#x}") as deadline:
            if vm.spec.accel == "tcg":
                self._stop_at(vm, gdb, image.start, deadline)
            else:
                tracing.stepped(vm, vm.trace_log, image.start, deadline)
            self._inject(vm, gdb, recorder, Checkpoint.HANDOVER)
            self._capture(vm, recorder, Checkpoint.HANDOVER)
            if record:
                self.learn(**saboteur.read_record(recorder.live, record))
            # what the first kernel printed, its panic first of all, must not be taken for the crash kernel's
            vm.console.discard()

    def _stop_at(
        self, vm: Vm, gdb: GdbStub, address: int, deadline: Deadline, running: Callable[[], None] = lambda: None
    ) -> CpuState:
        """Let the guest run to an address; `running` is called as it does. The state of the CPU that got there."""
        gdb.set_breakpoint(address)
        gdb.resume()
        running()
        stop = gdb.wait_stop(deadline)
        gdb.remove_breakpoint(address)
        cpu = vm.info_registers()[stop.cpu]
        if cpu.general["rip"] != address:
            raise GuestError(f"CPU {cpu.cpu} stopped at {cpu.general['rip']:#x}, not at {address:#x}")
        return cpu

    @contextlib.contextmanager
    def _recorded(self, vm: Vm) -> Iterator[None]:
        """Every instruction that is executed meanwhile is recorded, and kept even when the guest dies on it.

        Under TCG by QEMU; elsewhere this only keeps what rig.vm.tracing.stepped writes.
        """
        try:
            with tracing.logged(vm, vm.trace_log) if vm.spec.accel == "tcg" else contextlib.nullcontext():
                yield
        finally:
            if vm.trace_log.exists():
                self.parts.append(vm.trace_log.read_text(errors="replace"))
                vm.trace_log.unlink()

    def _keep_recording(self) -> None:
        """Into the evidence, once: the hand-over, and apart from it what led there."""
        if not self.parts or self.recording:
            return
        *before, last = self.parts
        led_there = "".join(before)
        self.recording = trace.code_of(led_there) + last
        self.writer.write_trace(self.recording)
        if led_there and not trace.is_cut(led_there):
            self.writer.write_before(led_there)

    def _post_mortem(self, vm: Vm, recorder: Recorder) -> None:
        """The guest died in the hand-over, and QEMU has paused it as it was: take what shows why."""
        assert self.facts.crashing_cpu is not None
        try:
            cpus = vm.info_registers()
        except ProtocolError as problem:
            self.listener(f"note: why the guest died in the hand-over can't be seen: {problem.message}")
            return
        self.writer.write_registers(DIED, cpus)
        recorder.capture_death()
        self.learn(post_mortem=True)
        final = next(cpu for cpu in cpus if cpu.cpu == self.facts.crashing_cpu)
        try:
            self._survey(recorder, DIED, final)
        except EvidenceError as problem:
            self.listener(f"note: why the guest died in the hand-over can't be seen in full: {problem.message}")

    def _capture(self, vm: Vm, recorder: Recorder, checkpoint: Checkpoint) -> None:
        """Registers and memory of the held machine."""
        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
        self.writer.write_registers(checkpoint, vm.info_registers())
        running = checkpoint is Checkpoint.CRASH_KERNEL  # in the crash region
        recorder.capture(checkpoint, leave_out=self.facts.crash_region if running else None)
        recorder.cross_check(levels.root(self.facts.mode, self.facts.cr3))
        if self.options.keep_memory:
            self.listener(f"note: writing all of memory at {checkpoint}")
            self.writer.write_ram(checkpoint, vm.ram_fd, vm.spec.ram_size)

    def _inject(self, vm: Vm, gdb: GdbStub, recorder: Recorder, when: Checkpoint) -> None:
        """The debugger's sabotage, if the scenario asks for one at this checkpoint."""
        chosen = injection.INJECTIONS.get(self.plan.scenario.control)
        if chosen is None or chosen.when is not when:
            return
        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
        assert self.facts.crash_region is not None
        assert self.facts.kimage is not None

        def cpu() -> CpuState:
            return next(c for c in vm.info_registers() if c.cpu == self.facts.crashing_cpu)

        seed = self.options.seed if self.options.seed is not None else secrets.randbits(32)
        scene = injection.Scene(
            arch=self.plan.guest.arch,
            mode=self.facts.mode,
            cr3=self.facts.cr3,
            cpu=cpu(),
            memory=recorder.live,
            iomem=self.facts.iomem,
            crash_region=self.facts.crash_region,
            kimage=self.facts.kimage,
            chance=random.Random(seed),
        )
        self.learn(**saboteur.carry_out(chosen.choose(scene), gdb, recorder.live, cpu))
        self.learn(environment={**self.facts.environment, "sabotage_seed": seed})

    # ------------------------------------------------------------ the crash kernel

    def _crash_boot(self, vm: Vm, recorder: Recorder) -> None:
        """The gdbstub is detached: the guest runs. While it boots, look at what was captured at `panic`."""
        started = time.monotonic()
        with self.in_phase("crash-boot", "the crash kernel's shell") as deadline:
            # now: they take a while, and there is time
            import capstone  # noqa: F401

            import rig.dump  # noqa: F401

            self._survey(recorder)
            hello = vm.shell.wait_hello("crash", deadline)
            self.learn(
                crash_release=hello.release,
                crash_seconds=round(time.monotonic() - started, 3),
                vmcore_present=hello.vmcore,
                crash_proc_cmdline=vm.shell.run("cat /proc/cmdline", deadline).strip(),
            )
            self.no_network = "" if hello.net == "yes" else hello.net
            with _held(vm):
                self._capture(vm, recorder, Checkpoint.CRASH_KERNEL)

    def _survey(self, recorder: Recorder, end: str = Checkpoint.HANDOVER, final: CpuState | None = None) -> None:
        """What else can be told from the captures of `panic` and of where the hand-over ended.

        final: the crashing CPU's state there, when that is not the new image's entry.
        """
        assert self.facts.crashing_cpu is not None
        self._keep_recording()
        recorded = trace.parse(self.recording, self.facts.crashing_cpu, self.facts.symbols[symbols.MACHINE_KEXEC])
        ended = (recorder.at(end), final)
        token = self.token.encode() if self.trigger.own_task else None
        found = survey(recorder, self.facts, recorded, ended, self.at_panic, token)
        self.keep += found.keep
        self.keep += kimage.code_pages(self.kallsyms, self.facts.text, self.facts.iomem)
        self.learn(
            tables=found.tables,
            user_pgd=found.user_pgd,
            user_tables=found.user_tables,
            other_tables=found.other_tables,
            handover_tables=found.handover_tables,
            slab_pages=found.slab_pages,
            pattern=Pattern(self.token, *found.pattern) if found.pattern else None,
        )

    def _dump(self, vm: Vm, recorder: Recorder) -> None:
        """The dump as far as the scenario asks for it."""
        if not self.facts.vmcore_present:
            return  # crash-kernel-boots says so
        from rig import dump  # its imports were loaded while the crash kernel booted

        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
        pgd = levels.root(self.facts.mode, self.facts.cr3) & ~(PAGE_SIZE - 1)

        with self.in_phase("dump", "the headers of /proc/vmcore") as deadline, contextlib.ExitStack() as stack:
            session, why = dump.log_in(vm, self.keys, self.no_network, stack, deadline)
            if session is None:
                self.listener(f"note: no SSH ({why}); the dump's headers come over the console")
                dump.fetch_front(lambda at, n: vm.shell.read_file(dump.VMCORE, at, n, deadline), pgd, self.writer)
                self.learn(dump=DumpInfo("console", pgd, why))
                return
            headers = dump.fetch_front(lambda at, n: session.read(dump.VMCORE, at, n, deadline), pgd, self.writer)
            info = DumpInfo("ssh", pgd)
            self.learn(dump=info)
            if (kind := self.plan.scenario.dump) is Dump.HEADERS:
                return

            def at_panic(addresses: Words) -> Words:
                return hashes_at(addresses, recorder.hash_pages(), self.facts.ram)

            whole = dump.take(kind, session, headers, at_panic, self.writer, self.listener, self.options.deadline)
            self.keep += whole.differing
            self.learn(dump=replace(info, transfer=whole.transfer))
