"""A run while it lives: what it has learned so far, and what all ways through it do to the held machine."""

from __future__ import annotations

import contextlib
import functools
import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rig
from rig.errors import CouldNotJudge, EvidenceError, GuestDied, GuestError, GuestHung, ProtocolError
from rig.evidence import CONSOLE, DIED, TRACEBACK
from rig.evidence.writer import EvidenceWriter
from rig.facts import Facts, Pattern
from rig.kernel import symbols
from rig.late import late
from rig.loads import LOADS
from rig.memory.physical import OutsideMemory
from rig.model import Checkpoint, CpuState, Options, Phase, Range, RunPlan
from rig.reading import stumbling
from rig.triggers import READY, TRIGGERS, trigger_line
from rig.vm.deadline import Deadline
from rig.vm.gdbstub import GdbStub
from rig.vm.qemu import Vm
from rig.vm.shell import Hello

if TYPE_CHECKING:
    from rig import injection, saboteur, trace
    from rig.kernel import kimage
    from rig.kernel.table import SymbolTable
    from rig.memory import levels, paging
    from rig.prepare import Artefacts
    from rig.recorder import Recorder
    from rig.stop_at import StopAt
    from rig.survey import survey
    from rig.vm import tracing
else:  # needed once the guest has booted: rig/warmup.py
    injection, saboteur = late("rig.injection"), late("rig.saboteur")
    trace, tracing = late("rig.trace"), late("rig.vm.tracing")
    kimage, levels, paging = late("rig.kernel.kimage"), late("rig.memory.levels"), late("rig.memory.paging")
    survey = late("rig.survey:survey")

Listener = Callable[[str], None]

TOKEN_BYTES = 32  # of the pattern: 64 hexadecimal digits
# What to think of first when a phase does not come to its end.
HINTS = {
    "boot": "a console that says nothing at all: CONFIG_SERIAL_8250_CONSOLE may be missing; --deadline waits longer",
    "crash-boot": "is crashkernel= large enough? The console shows how far it came; --deadline waits longer",
    "machine-kexec": "did the trigger do anything? The console's last lines are the first kernel's; "
    "--deadline waits longer",
    "return": "the image was entered and did not come back; the console shows how far it came",
    "user-space": "the kernel is back, its user space is not: the console shows what it waits for",
    "second-boot": "the console shows how far it came: `digests do not match` is purgatory's; --deadline waits longer",
}
HUNG = "the console's last lines show how far it came; --deadline waits longer"
DIED_OF = "console.log shows what the guest did last, qemu.log and qemu.stderr what QEMU said; did somebody end QEMU?"
BROKEN = "what was said is in console.log, control.log and qmp.jsonl; does it happen again?"


@contextlib.contextmanager
def held(vm: Vm) -> Iterator[None]:
    """All CPUs stand still."""
    vm.stop()
    yield
    vm.cont()


@contextlib.contextmanager
def attached(vm: Vm) -> Iterator[GdbStub]:
    """The debugger holds the VM; at the end it lets go and the VM runs on. After an error the VM is left as it is."""
    vm.gdb.attach()
    yield vm.gdb
    vm.gdb.detach()


def hint_for(problem: CouldNotJudge, phase: str) -> str:
    """What to do about an error that doesn't say it itself, by its kind and the phase that it broke off."""
    if isinstance(problem, GuestHung):
        return HINTS.get(phase, HUNG)
    return DIED_OF if isinstance(problem, GuestDied) else BROKEN


class Run:
    """The mutable state of one run: the facts gathered so far."""

    artefacts: Artefacts  # once they are there

    def __init__(
        self,
        plan: RunPlan,
        options: Options,
        writer: EvidenceWriter,
        listener: Listener,
        cancel: threading.Event,
        stop: StopAt | None = None,
        afterwards: contextlib.ExitStack | None = None,
    ) -> None:
        """afterwards: what is to be done when all has been judged."""
        self.plan = plan
        self.options = options
        self.writer = writer
        self.listener = listener
        self.cancel = cancel
        self.afterwards = afterwards
        self.stop = stop  # where the user wants to have the guest held
        self.token = secrets.token_hex(TOKEN_BYTES)
        self.guest_ended = False  # the guest reset, triple-faulted or powered off
        self.parts: list[str] = []  # of the recording, as they were taken
        self.recording = ""  # of the hand-over, as rig.trace reads it
        self.at_panic: tuple[CpuState, ...] = ()  # all CPUs, at the first capture
        self.no_network = "the crash kernel never said"  # why there is no SSH; empty when there is
        self.keep: list[int] = []  # physical: pages to keep of the first capture whether or not they change
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.facts = Facts(rig=rig.__version__, plan=plan, started=now, environment=options.remarks)
        self.trigger = TRIGGERS[plan.scenario.trigger]
        self.load = LOADS[plan.scenario.load]

    @functools.cached_property
    def kallsyms(self) -> SymbolTable:
        """The first kernel's: none, until it is armed."""
        return symbols.table({})

    def learn(self, **news: Any) -> None:
        """Add to the facts."""
        self.facts = replace(self.facts, **news)

    @contextlib.contextmanager
    def in_phase(self, name: str, what: str) -> Iterator[Deadline]:
        """Tell the listener, hand down the phase's deadline, take the time, and mark errors with the phase."""
        self.listener(name)
        console = self.writer.size(CONSOLE)
        started = time.monotonic()
        try:
            with stumbling(self._makes_no_sense):
                yield Deadline.after(self.options.deadline, what)
        except CouldNotJudge as problem:
            problem.phase = problem.phase or name
            problem.hint = problem.hint or hint_for(problem, name)
            raise
        finally:
            phase = Phase(name, round(time.monotonic() - started, 3), console)
            self.learn(phases=(*self.facts.phases, phase))

    def _makes_no_sense(self, problem: Exception) -> ProtocolError:
        """What was read may be anything: a guest says it."""
        self.writer.write(TRACEBACK, "".join(traceback.format_exception(problem)).encode())
        return ProtocolError(
            f"what was read from the guest or from QEMU makes no sense: {type(problem).__name__}: {problem}",
            hint=f"{TRACEBACK} shows where it was read, console.log and control.log what the guest said",
        )

    def ended_itself(self, vm: Vm) -> bool:
        """Was it the guest's own doing, or QEMU's? QMP may tell a moment later than the gdbstub."""
        ending = vm.watch.wait_for_end(2.0)
        return ending is not None and ending.by_guest

    def make_ready(self, vm: Vm) -> None:
        """Have the process that an act is to hit wait for it."""
        if self.trigger.act is not None and self.trigger.command:
            with self.in_phase("ready", "the process that is to be hit") as deadline:
                vm.shell.send(trigger_line(self.trigger, self.token))
                vm.shell.wait_for(READY, deadline)

    def pull(self, vm: Vm) -> None:
        """The trigger. The guest must be running: QEMU drops keys otherwise."""
        if self.trigger.act is not None:
            self.trigger.act(vm)
        else:
            vm.shell.send(trigger_line(self.trigger, self.token))

    def meet(self, vm: Vm, role: str, started: float, deadline: Deadline) -> Hello:
        """Wait for the new kernel's user space, and learn what it says of itself. started: time.monotonic()."""
        hello = vm.shell.wait_hello(role, deadline)
        news = replace(
            self.facts,
            crash_release=hello.release,
            crash_seconds=round(time.monotonic() - started, 3),
            crash_proc_cmdline=hello.cmdline,
            second_is_dom0=hello.dom0,
            vmcore_present=hello.vmcore,
        )
        if news.unlike_loaded:  # a failure, which a line that anybody can print does not make
            vm.shell.confirm(hello, deadline)
        self.facts = news
        return hello

    def stop_at(
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
    def recorded(self, vm: Vm, *, join: bool = False) -> Iterator[None]:
        """Every instruction that is executed meanwhile is recorded, and kept even when the guest dies on it.

        Under TCG by QEMU; elsewhere nothing is, but for what is stepped. join: it goes on where the last recording
        ended.
        """
        take = functools.partial(self.add_recording, join=join)
        with tracing.logged(vm, take) if vm.spec.accel == "tcg" else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def unrecorded(self, vm: Vm, what: str) -> Iterator[None]:
        """What is executed meanwhile is not recorded, but for interrupts: the recording says so, and `what` it was."""
        self.add_recording(trace.gap(what), join=True)
        with tracing.events_logged(vm, functools.partial(self.add_recording, join=True)):
            yield

    def add_recording(self, text: str, *, join: bool = False) -> None:
        """A new part of the recording, or more of the last one."""
        if join:
            text = self.parts.pop() + text
        self.parts.append(text)

    @functools.cached_property
    def executed(self) -> list[int]:
        """The addresses of all instructions recorded. To be asked for once no more is."""
        return trace.addresses("".join(self.parts))

    def keep_recording(self) -> None:
        """Into the evidence, once: the hand-over, and apart from it what led there."""
        if not self.parts or self.recording:
            return
        *before, last = self.parts
        led_there = "".join(before)
        self.recording = trace.code_of(led_there) + last
        self.writer.write_trace(self.recording)
        if led_there and not trace.is_cut(led_there):
            self.writer.write_before(led_there)

    def post_mortem(self, vm: Vm, recorder: Recorder) -> None:
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
            self.survey(recorder, DIED, final)
        except EvidenceError as problem:
            self.listener(f"note: why the guest died in the hand-over can't be seen in full: {problem.message}")

    def capture(
        self, vm: Vm, recorder: Recorder, checkpoint: Checkpoint, leave_out: Collection[int] | Range | None = None
    ) -> None:
        """Registers and memory of the held machine. leave_out: pages (physical addresses) that are not kept."""
        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
        self.writer.write_registers(checkpoint, vm.info_registers())
        if checkpoint is Checkpoint.CRASH_KERNEL:  # it runs there
            leave_out = self.facts.crash_region
        recorder.capture(checkpoint, leave_out=leave_out or ())
        recorder.cross_check(levels.root(self.facts.mode, self.facts.cr3))
        if self.options.keep_memory:
            self.listener(f"note: writing all of memory at {checkpoint}")
            self.writer.write_ram(checkpoint, vm.ram)

    def learn_text(self, recorder: Recorder) -> None:
        """Where the kernel's image begins, by the page tables, if its symbols have not told."""
        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
        if self.facts.text is not None:
            return
        address = self.facts.symbols[symbols.MACHINE_KEXEC]
        with contextlib.suppress(paging.NotMapped, OutsideMemory):
            physical = paging.translate(recorder.at_panic, self.facts.mode, self.facts.cr3, address).physical
            text = symbols.text_from(address, physical, self.facts.iomem)
            if text is not None:
                self.kallsyms = symbols.table(self.kallsyms.as_dict() | {text: symbols.TEXT})
                self.learn(text=text)

    def inject(
        self, vm: Vm, gdb: GdbStub, recorder: Recorder, when: Checkpoint, moved: frozenset[int] = frozenset()
    ) -> None:
        """The debugger's sabotage, if the scenario asks for one at this checkpoint. moved: see rig.injection.Scene."""
        chosen = injection.INJECTIONS.get(self.plan.scenario.control)
        if chosen is None or chosen.when is not when:
            return
        assert self.facts.mode is not None
        assert self.facts.cr3 is not None
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
            moved=moved,
            chance=random.Random(seed),
        )
        self.learn(**saboteur.carry_out(chosen.choose(scene), gdb, recorder.live, cpu))
        self.learn(environment={**self.facts.environment, "sabotage_seed": seed})

    def survey(self, recorder: Recorder, end: str = Checkpoint.HANDOVER, final: CpuState | None = None) -> None:
        """What else can be told from the captures of `panic` and of where the hand-over ended.

        final: the crashing CPU's state there, when that is not the new image's entry.
        """
        assert self.facts.crashing_cpu is not None
        self.keep_recording()
        recorded = trace.parsed(self.recording, self.facts.crashing_cpu, self.facts.symbols[symbols.MACHINE_KEXEC])
        ended = (recorder.at(end), final)
        token = self.token.encode() if self.trigger.own_task and not self.facts.plain else None
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
            pgd_owner=found.pgd_owner,
        )
