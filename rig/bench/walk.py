"""All translations of a guest's address space, ours beside volatility3's, on the same image; they must be the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rig.bench import volatility
from rig.bench.figures import Bound, Figure, Samples
from rig.bench.setting import REPEATS, Bench, booted, timed
from rig.errors import EvidenceError, GuestError, MachineError
from rig.memory import image
from rig.memory.image import FileMemory, FileRange
from rig.memory.levels import Words
from rig.memory.paging import walk
from rig.memory.walk import AddressSpace
from rig.model import PagingMode, RunPlan

FASTER = Bound(20.0, at_least=True)
_LOOK = 1024  # translations of volatility3's between two looks at whether the user wants to stop


def measure(bench: Bench) -> list[Figure]:
    """Of the last guest: of the three x86_64's address space is the largest."""
    return _of_guest(bench, bench.plans[-1])


def _of_guest(bench: Bench, plan: RunPlan) -> list[Figure]:
    if plan.guest.paging not in volatility.LAYERS:
        raise MachineError(
            f"volatility3 has no layer for {plan.guest.paging} paging", hint="name another guest with --guest"
        )
    bench.say(f"walk: {plan.guest.name} boots, for an image")
    copied = os.memfd_create("rig-image")
    try:
        with booted(bench, plan) as bare:
            bare.vm.stop()
            cpu = bare.vm.info_registers()[0]
            image.copy(bare.vm.ram_fd, copied, bare.artefacts.machine.ram_size)
        if cpu.paging is None:
            raise GuestError("paging is off at the guest's shell")
        return _compared(bench, plan, copied, cpu.paging, cpu.cr3)
    finally:
        os.close(copied)


def _compared(bench: Bench, plan: RunPlan, fd: int, mode: PagingMode, cr3: int) -> list[Figure]:
    """volatility3's walk takes too long to be done more than once."""
    memory = FileMemory(fd, [FileRange(0, os.fstat(fd).st_size, 0)])
    found: list[AddressSpace] = []
    (own,) = bench.alternate(lambda: found.append(walk(memory, mode, cr3)), times=REPEATS)
    bench.say("walk: volatility3 walks the same image")
    theirs: list[tuple[int, int, int]] = []
    seconds = timed(lambda: _walk_theirs(bench, theirs, fd, mode, cr3))
    require_same(found[0], np.array(theirs, np.uint64).reshape(-1, 3))
    ratios = Samples(tuple(seconds / one for one in own.values))
    name = "all translations of an address space: faster"
    beside = f"volatility3: {seconds:.1f} s for the same {found[0].count}"
    speed = Samples(tuple(found[0].count / one for one in own.values))
    guest = plan.guest.name
    return [
        Figure("walk", name, ratios.median, "x", guest, beside, FASTER, ratios.noise),
        Figure("walk", "translations", speed.median, "/s", guest, noise=speed.noise, larger_is_better=True),
    ]


def _walk_theirs(bench: Bench, into: list[tuple[int, int, int]], fd: int, mode: PagingMode, cr3: int) -> None:
    for number, one in enumerate(volatility.mappings(volatility.layer(Path(f"/proc/self/fd/{fd}"), mode, cr3))):
        if number % _LOOK == 0:
            bench.check()
        into.append(one)


def require_same(ours: AddressSpace, theirs: Words) -> None:
    """theirs: rows of virtual, physical, size. EvidenceError, with the first one that differs, unless they are equal.

    Compared is which addresses are mapped, to what, in pages of which size, both ways round.
    """
    width = np.uint64((1 << 48) - 1)  # volatility3's addresses are not sign-extended
    mine = np.column_stack([ours.virtual & width, ours.physical, ours.size])
    if len(mine) != len(theirs):
        raise EvidenceError(f"the rig found {len(mine)} translations, volatility3 {len(theirs)}")
    if len(different := np.flatnonzero((mine != theirs).any(axis=1))):
        one, other = (" -> ".join(f"{word:#x}" for word in rows[different[0]].tolist()[:2]) for rows in (mine, theirs))
        raise EvidenceError(f"{len(different)} translations differ, the first is {one} here, {other} by volatility3")
