"""A plain kexec, from its trigger to the second kernel's user space: `machine-kexec`, `handover`, `second-kernel`.

The image lies scattered in RAM, and relocate_kernel copies it to its place, page by page: some ten million iterations
of a string instruction, which no recording could hold. So the recording stops at the first byte that is written to its
place, and goes on when the end of the list of pages has been read, whatever the code is that does so. While it stops,
interrupts and exceptions are recorded all the same. What was copied is judged by what is in memory before and after.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import xxhash

from rig.errors import EvidenceError, GuestDied, GuestError
from rig.evidence import Copied
from rig.facts import Kimage
from rig.hold import hold
from rig.kernel import ages, kimage, symbols
from rig.kernel.pagelist import NOWHERE, PageList, wanted_hashes
from rig.live import Run, attached, held
from rig.memory import levels
from rig.memory.dump import hashes_at
from rig.model import PAGE_SIZE, Checkpoint, Range
from rig.recorder import Recorder
from rig.vm.deadline import Deadline
from rig.vm.gdbstub import GdbStub
from rig.vm.qemu import Vm

RAM = "System RAM"


def ram(iomem: Iterable[Range]) -> list[Range]:
    """All RAM, ranges that meet joined, ascending.

    In a kernel that kexec started, setup_data splits one (e820__reserve_setup_data(), arch/x86/kernel/e820.c), and
    segments lie across.
    """
    found: list[Range] = []
    for r in sorted((r for r in iomem if r.name == RAM), key=lambda r: r.start):
        if found and found[-1].last + 1 == r.start:
            found[-1] = replace(found[-1], last=r.last)
        else:
            found.append(r)
    return found


def hand_over(run: Run, vm: Vm, recorder: Recorder) -> None:
    """Pull the trigger, follow the kernel to the new image's first instruction."""
    with attached(vm) as gdb:
        image, pages = to_machine_kexec(run, vm, gdb, recorder)
        hold(run, vm, Checkpoint.MACHINE_KEXEC)
        try:
            _to_new_image(run, vm, gdb, recorder, image, pages)
            hold(run, vm, Checkpoint.HANDOVER)
        except GuestDied:
            if run.ended_itself(vm):
                run.post_mortem(vm, recorder)
            raise


def to_machine_kexec(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder) -> tuple[Kimage, PageList]:
    """The image that a CPU is about to enter, and what is copied where on the way."""
    with run.in_phase("machine-kexec", f"a CPU at {symbols.MACHINE_KEXEC}") as deadline:
        cpu = run.stop_at(vm, gdb, run.facts.symbols[symbols.MACHINE_KEXEC], deadline, lambda: run.pull(vm))
        if cpu.paging is None:
            raise GuestError(f"paging is off at {symbols.MACHINE_KEXEC}")
        run.learn(crashing_cpu=cpu.cpu, mode=cpu.paging, cr3=cpu.cr3)
        run.keep.append(levels.root(cpu.paging, cpu.cr3))
        run.at_panic = vm.info_registers()
        run.capture(vm, recorder, Checkpoint.MACHINE_KEXEC)
        run.learn_text(recorder)
        where, tables = ram(run.facts.iomem), ages.allocates_tables(run.facts.kernel.release)
        arch, below = run.plan.guest.arch, run.facts.hypervisor is not None
        image, pages = kimage.read_plain(recorder.live, cpu.paging, cpu, arch, where, own_tables=tables, xen=below)
        if not len(pages.destinations):
            raise EvidenceError("the image's list of pages is empty: nothing would be moved")
        run.learn(kimage=image)
        run.inject(vm, gdb, recorder, Checkpoint.MACHINE_KEXEC, moved(pages) | frozenset(pages.lists))
    return image, pages


def _to_new_image(run: Run, vm: Vm, gdb: GdbStub, recorder: Recorder, image: Kimage, pages: PageList) -> None:
    away = moved(pages)
    with run.in_phase("hand-over", f"the new image's entry {image.start:#x}") as deadline:
        with run.recorded(vm):
            _until(run, vm, gdb, int(pages.destinations[0]), deadline, write=True)
        before = recorder.differing(away)
        with run.unrecorded(vm, f"the rest of the copying of {len(pages.destinations)} pages"):
            _until(run, vm, gdb, pages.end, deadline, write=False)
        with run.recorded(vm, join=True):
            run.stop_at(vm, gdb, image.start, deadline)
        run.inject(vm, gdb, recorder, Checkpoint.HANDOVER)
        run.capture(vm, recorder, Checkpoint.HANDOVER, leave_out=away)
        recorder.add(Checkpoint.HANDOVER, before | keep_copied(run, recorder, pages))
        vm.shell.discard()


def moved(pages: PageList) -> frozenset[int]:
    """Physical addresses of all pages that are copied from and to."""
    return frozenset(np.concatenate([pages.destinations, pages.sources]).tolist()) - {NOWHERE}


def _until(run: Run, vm: Vm, gdb: GdbStub, address: int, deadline: Deadline, *, write: bool) -> None:
    """Let the guest run until it has accessed a byte at an address that is physical, and virtual too by then.

    :raise GuestError: that address was accessed through the old tables, by which it means something else
    """
    gdb.set_watchpoint(address, write=write)
    stop = gdb.continue_until_stop(deadline)
    gdb.remove_watchpoint(address, write=write)
    cpu = vm.info_registers()[stop.cpu]
    if cpu.paging is not None and cpu.cr3 == run.facts.cr3:
        raise GuestError(f"CPU {cpu.cpu} accessed {address:#x} at {stop.pc:#x}, before the tables were switched")


def keep_copied(run: Run, recorder: Recorder, pages: PageList) -> dict[int, bytes]:
    """Keep what was copied as hashes. Returns the destinations that don't hold what was to be copied there, by pfn."""
    now = [recorder.live.read(int(address), PAGE_SIZE) for address in pages.destinations]
    hashes = np.array([xxhash.xxh3_64_intdigest(page) for page in now], np.uint64)
    run.writer.write_image(Copied(pages.destinations, pages.sources, hashes))
    wanted = wanted_hashes(pages.sources, lambda where: hashes_at(where, recorder.hash_pages(), run.facts.ram))
    torn = np.flatnonzero(hashes != wanted).tolist()
    run.keep += {int(pages.sources[index]) for index in torn} - {NOWHERE}
    return {int(pages.destinations[index]) // PAGE_SIZE: now[index] for index in torn}


def second_boot(run: Run, vm: Vm, recorder: Recorder) -> None:
    """The gdbstub is detached: the guest runs. While it boots, look at what was captured."""
    with run.in_phase("second-boot", "the second kernel's shell") as deadline:
        started = time.monotonic()
        run.survey(recorder)
        run.meet(vm, "second", started, deadline)
        with held(vm):
            run.writer.write_registers(Checkpoint.SECOND_KERNEL, vm.info_registers())
