"""One run: the phases in order. The only code that drives a live VM."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import rig
from rig import sabotage, start
from rig.errors import (
    Cancelled,
    CouldNotJudge,
    EvidenceError,
    GuestDied,
    MachineError,
    NotOffered,
    RequestError,
)
from rig.evidence import LISTING, TRACEBACK
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts, Hypervisor
from rig.guest import arming
from rig.guest.cache import blaming, default_root
from rig.kernel import symbols
from rig.late import late
from rig.live import Listener, Run, held, hint_for
from rig.model import (
    Checkpoint,
    Failure,
    HypervisorFiles,
    LoadKind,
    Options,
    RunPlan,
    RunResult,
)
from rig.prepare import Artefacts, prepare
from rig.vm.deadline import Deadline
from rig.vm.machine import ram_ranges
from rig.vm.qemu import Vm
from rig.vm.template import Making
from rig.warmup import judging, warmed_up

if TYPE_CHECKING:
    from rig import crash, jump, plain, trace, xen
    from rig.evidence.reader import Evidence
    from rig.guest import dom0
    from rig.hold import hold
    from rig.judge import judge
    from rig.kernel import efi
    from rig.recorder import Recorder
    from rig.report.html import render_run
    from rig.report.listing import hand_over_listing
    from rig.stop_at import StopAt
else:  # needed once the guest has booted: rig/warmup.py
    crash, jump, plain, trace = late("rig.crash"), late("rig.jump"), late("rig.plain"), late("rig.trace")
    xen, dom0, efi = late("rig.xen"), late("rig.guest.dom0"), late("rig.kernel.efi")
    hold, Recorder, judge = late("rig.hold:hold"), late("rig.recorder:Recorder"), late("rig.judge:judge")
    Evidence, render_run = late("rig.evidence.reader:Evidence"), late("rig.report.html:render_run")
    hand_over_listing = late("rig.report.listing:hand_over_listing")

LIMITS = {  # of this process: room does not help
    errno.EMFILE: "this process may open too few files: `ulimit -n` says how many",
    errno.EFBIG: "files of this process may not be that large: `ulimit -f` says how large",
}
# Phases in which a guest may die of its panic, or of its kexec.
AFTER_TRIGGER = (
    *("ready", "panic", "machine-kexec", "hand-over", "crash-boot", "second-boot"),
    *("return", "user-space", "again"),  # of a kexec jump
)


def run(
    plan: RunPlan, options: Options, listener: Listener, cancel: threading.Event, stop: StopAt | None = None
) -> tuple[RunResult, Path]:
    """Boot, arm, panic, capture, dump, judge. Returns the result and its evidence directory. stop: where to hold it.

    A run's own trouble ends in a result with verdict "error". Raises RequestError for what was asked wrongly, and
    Cancelled; then nothing is left behind, neither processes nor files.
    """
    with contextlib.ExitStack() as afterwards, _writing(plan, options) as writer:
        return _conclude(writer, _Run(plan, options, writer, listener, cancel, stop, afterwards).perform())


def record(plan: RunPlan, options: Options, failure: Failure, trace: str = "") -> tuple[RunResult, Path]:
    """The result, and its evidence directory, of a run that was given up without its guest: it could not be judged.

    trace: Python's, of what the rig itself failed with; kept with the evidence.
    """
    with _writing(plan, options) as writer:
        if trace:
            writer.write(TRACEBACK, trace.encode())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        environment = {**options.remarks, "rig": rig.__version__}
        facts = Facts(rig=rig.__version__, plan=plan, started=now, environment=environment, broke_off=failure)
        return _conclude(writer, facts)


@contextlib.contextmanager
def _writing(plan: RunPlan, options: Options) -> Iterator[EvidenceWriter]:
    """What is written is kept by `_conclude`; when anything is raised, nothing is."""
    writer = EvidenceWriter(options.results, plan.slug)
    try:
        yield writer
    except OSError as problem:
        writer.discard()
        where = problem.filename or writer.path
        raise MachineError(
            f"the evidence can't be kept: {where}: {problem.strerror}",
            hint=LIMITS.get(problem.errno or 0, "make room, or choose --results DIR"),
        ) from problem
    except EvidenceError as problem:  # what was just written can't be read
        writer.discard()
        raise MachineError(
            f"the evidence can't be kept: {problem.message}", hint="did somebody remove or change it under the run?"
        ) from problem
    except MemoryError as problem:
        writer.discard()
        raise MachineError(
            "the memory that this process may have does not suffice",
            hint="`ulimit -v` says how much that is; --jobs 1 runs one guest at a time",
        ) from problem
    except BaseException:
        writer.discard()
        raise


def _conclude(writer: EvidenceWriter, facts: Facts) -> tuple[RunResult, Path]:
    """Judge what was written, write the reports, and give the directory its name."""
    writer.write("run.json", to_json(facts))
    evidence = Evidence(writer.path)
    result = judge(evidence)
    writer.write("result.json", to_json(result))
    listing = hand_over_listing(evidence)
    if listing is not None:
        writer.write(LISTING, "\n".join((*listing.lines, "")).encode())
    writer.write("report.html", render_run(result, evidence, listing).encode())
    trace.parsed.cache_clear()  # a recording can be large
    return result, writer.finish()


def _own_use() -> dict[str, int]:
    """What this process takes, all of its runs together: what grows from run to run would not last a night."""
    # not getrusage(2): its maximum goes on from the process that started this one
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "peak_memory_mib": int(told["VmHWM"].split()[0]) // 1024,
        "memory_mib": int(told["VmRSS"].split()[0]) // 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
    }


class _Run(Run):
    """All phases of one run."""

    def perform(self) -> Facts:
        """All phases. What breaks the run off is recorded in the facts, but for wrong requests and cancellation."""
        if self.plan.skip:
            self.learn(skip=self.plan.skip)
            return self.facts
        try:
            with contextlib.ExitStack() as stack:
                with self.in_phase("prepare", "the artefacts"), blaming(default_root()):
                    artefacts = self.artefacts = stack.enter_context(
                        prepare(self.plan, self.options, self.writer.path, self.listener, self.cancel)
                    )
                    self.learn(
                        kernel=artefacts.kernel,
                        crash_kernel=artefacts.crash_kernel,
                        manifest=artefacts.manifest,
                        environment={**self.facts.environment, **artefacts.environment},
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
        self.learn(environment={**self.facts.environment, **_own_use()})
        return self.facts

    def _break_off(self, problem: CouldNotJudge) -> None:
        phase = problem.phase or self.facts.phases[-1].name  # what breaks between two phases is told of the first
        failure = Failure(
            kind=type(problem).__name__,
            message=problem.message,
            phase=phase,
            hint=problem.hint or hint_for(problem, phase),
            console=problem.console,
            cpu_state=problem.cpu_state,
        )
        self.learn(broke_off=failure, died=self.guest_ended and problem.phase in AFTER_TRIGGER)

    def _drive(self, artefacts: Artefacts, stack: contextlib.ExitStack) -> None:
        vm, making = start.start(self, artefacts, stack)
        ram = ram_ranges(artefacts.machine)
        recorder = stack.enter_context(Recorder(vm.ram, ram, vm.pmemsave))
        self.learn(ram=tuple(ram))
        with self.in_phase("arm", "the new image to be loaded") as deadline:
            record = self._arm(vm, recorder, artefacts, making, deadline)
        beside = functools.partial(warmed_up, judging(self.plan))
        try:
            hold(self, vm, Checkpoint.ARMED)
            if self.load.kind is LoadKind.NONE:
                crash.without_crash_kernel(self, vm)
            elif self.facts.jump:
                with beside():
                    jump.out_and_back(self, vm, recorder)
            elif self.facts.plain:
                with beside():
                    plain.hand_over(self, vm, recorder)
                if self.facts.ends_at_handover:
                    self._end_at_handover(vm, recorder)
                    return
                plain.second_boot(self, vm, recorder)
                hold(self, vm, Checkpoint.SECOND_KERNEL)
            else:
                with beside() if self.facts.ends_at_handover else contextlib.nullcontext():
                    crash.hand_over(self, vm, recorder, record)
                if self.facts.ends_at_handover:
                    self._end_at_handover(vm, recorder)
                    return
                with beside():  # there is time enough now
                    crash.boot(self, vm, recorder)
                hold(self, vm, Checkpoint.CRASH_KERNEL)
                crash.take_dump(self, vm, recorder, artefacts.disk)
        except GuestDied:
            self.guest_ended = self.ended_itself(vm)
            raise
        finally:
            self.learn(captured=tuple(recorder.captured))
            recorder.save(self.writer, self.keep)
            self.keep_recording()
            changed = recorder.all_changed_pages()
            where = symbols.of_interest(self.kallsyms, self.executed, self.facts.iomem, changed)
            self.writer.write_symbols(symbols.placed(self.kallsyms, where))

    # ------------------------------------------------------------ armed

    def _arm(self, vm: Vm, recorder: Recorder, artefacts: Artefacts, making: Making | None, deadline: Deadline) -> int:
        """Load the new image (and the control). Returns the physical address of the control's record, 0 without."""
        if artefacts.hypervisor is not None:
            self._arm_hypervisor(vm, recorder, artefacts.hypervisor, artefacts, deadline)
            return 0
        known = start.arm(self, vm, artefacts, making, deadline)
        if artefacts.vmlinux is not None:
            with blaming(artefacts.cache.root):
                self.kallsyms = symbols.table(symbols.from_vmlinux(artefacts.vmlinux, known.symbols))
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
            modules = symbols.parse_all(vm.shell.run(symbols.COMMAND_MODULES, deadline), modules=True)
            self.kallsyms = symbols.table(self.kallsyms.as_dict() | modules)
        arming.prepare_trigger(vm.shell, self.trigger, deadline)
        with held(vm):
            self.writer.write_registers(Checkpoint.ARMED, vm.info_registers())
        return record

    def _arm_hypervisor(
        self, vm: Vm, recorder: Recorder, files: HypervisorFiles, artefacts: Artefacts, deadline: Deadline
    ) -> None:
        """Have dom0 load the new image. All else that is known of the machine is the hypervisor's."""
        second = (artefacts.crash_cmdline, artefacts.second_hypervisor_cmdline)
        vmcoreinfo = dom0.arm(vm.shell, self.load, *second, deadline)
        arming.prepare_trigger(vm.shell, self.trigger, deadline)
        self.kallsyms = symbols.table(symbols.from_hypervisor(files.symbols))
        at = symbols.named(files.symbols, (*xen.SYMBOLS, symbols.HYPERVISOR_PANIC, symbols.MACHINE_KEXEC))
        wanted = {name: at[name] for name in xen.SYMBOLS}
        with held(vm):
            cpus = vm.info_registers()
            self.writer.write_registers(Checkpoint.ARMED, cpus)
            machine = xen.Hypervisor(recorder.live, cpus[0].cr3, wanted).machine(len(cpus))
        self.learn(
            hypervisor=Hypervisor(files.package, files.version, wanted, machine.allocated, vmcoreinfo),
            text=symbols.text_start(self.kallsyms),
            iomem=machine.iomem,
            crash_region=machine.crash_region,
            crash_notes=machine.crash_notes,
            symbols={name: at[name] for name in (symbols.HYPERVISOR_PANIC, symbols.MACHINE_KEXEC)},
            crash_cmdline=artefacts.crash_cmdline,
        )

    def _end_at_handover(self, vm: Vm, recorder: Recorder) -> None:
        """The new kernel, which has been entered, is not let run."""
        with self.in_phase("survey", "what was captured to be looked at"):
            vm.stop()
            self.survey(recorder)
