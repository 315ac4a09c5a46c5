"""What is looked up in memory as it was at `panic`, while the crash kernel boots. Reads captures, drives nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from rig import xen
from rig.errors import EvidenceError
from rig.facts import Facts, PgdOwner
from rig.memory import paging, pti
from rig.memory.levels import Flags
from rig.memory.pagetypes import PageTypes, parse_vmcoreinfo
from rig.memory.physical import Memory, OutsideMemory
from rig.memory.twins import twin_of
from rig.memory.walk import AddressSpace, walk
from rig.model import PAGE_SIZE, Checkpoint, CpuState, PagingMode
from rig.recorder import Recorder
from rig.trace import MAX_CODE, Trace, after

USER_DATA = Flags.USER | Flags.WRITABLE


@dataclass(frozen=True)
class Survey:
    """Physical addresses, as in Facts; pattern: virtual, physical, bytes; None without a token.

    keep: pages that checks want from `panic`, changed or not: all tables and the pattern's page, what an instruction
    after a CR3 load lies in by the tables before and after it, what PTI takes for user twins of what CR3 pointed to.
    """

    tables: tuple[int, ...]
    user_pgd: int | None
    user_tables: tuple[int, ...]
    other_tables: tuple[int, ...]
    handover_tables: tuple[int, ...]
    slab_pages: tuple[int, ...]
    pattern: tuple[int, int, int] | None
    pgd_owner: PgdOwner | None
    keep: tuple[int, ...]


def survey(
    recorder: Recorder,
    facts: Facts,
    trace: Trace,
    ended: tuple[Memory, CpuState | None],
    cpus: Sequence[CpuState],
    token: bytes | None,
) -> Survey:
    """Walk the crashed task's tables, find the pattern in its memory; hash memory, which takes a while as well.

    ended: memory where the hand-over ended, and the crashing CPU's state when that was not the new image's entry.
    cpus: at the first capture: at `panic`, and at `machine-kexec` for a plain kexec. token: None when nobody's memory
    holds a pattern, or another task than the one that does was to die. Raises EvidenceError when it is not there.
    """
    assert facts.mode is not None
    assert facts.cr3 is not None
    recorder.hash_pages()
    space = walk(recorder.at_panic, facts.mode, facts.cr3)
    others = [walk(recorder.at_panic, facts.mode, cpu.cr3) for cpu in cpus if cpu.cpu != facts.crashing_cpu]
    idt = next(cpu.idt_base for cpu in cpus if cpu.cpu == facts.crashing_cpu)
    tables = _table_pages([space])
    user_pgd = pti.user_pgd(recorder.at_panic, facts.mode, facts.cr3, idt)
    twin = [] if user_pgd is None else [walk(recorder.at_panic, facts.mode, user_pgd)]
    handover_tables, code_pages = _survey_hand_over(*ended, trace, user_pgd)
    user_tables = tuple(t for t in _table_pages(twin) if t not in set(tables))
    pattern = None if token is None else _find_pattern(recorder, space, token)
    return Survey(
        tables=tables,
        user_pgd=user_pgd,
        user_tables=user_tables,
        other_tables=_table_pages(others),
        handover_tables=handover_tables,
        slab_pages=_slab_pages(recorder, facts) if recorder.captured[0] is Checkpoint.PANIC else (),
        pattern=pattern,
        pgd_owner=_pgd_owner(recorder, facts),
        keep=(
            *tables,
            *user_tables,
            *_table_pages(others),
            *handover_tables,
            *code_pages,
            *_twin_pages(trace),
            *([pattern[1]] if pattern else []),
        ),
    )


def _pgd_owner(recorder: Recorder, facts: Facts) -> PgdOwner | None:
    """Without a hypervisor there is but one whose pgd it can be."""
    if facts.hypervisor is None:
        return None
    assert facts.cr3 is not None
    return xen.Hypervisor(recorder.at_panic, facts.cr3, facts.hypervisor.symbols).pgd_owner()


def _survey_hand_over(
    memory: Memory, final: CpuState | None, trace: Trace, user_pgd: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(tables, pages that instructions at switches lie in).

    Tables also of what was changed on the way, the user twin's too.

    memory, final: as in `ended`; no switch of tables leads directly to the new image's entry. The new image hasn't run
    yet, so all tables of the way there still are as they were used.
    """
    pairs = [(step.state, after(trace, step.number, final)) for step in trace.steps]
    states = [state for pair in pairs for state in pair if state is not None]
    roots = dict.fromkeys((state.paging, state.cr3) for state in states)
    if user_pgd is not None:
        # entries that were changed on the way may lead to tables that weren't its own
        roots[trace.steps[0].state.paging, user_pgd] = None
    tables = _table_pages([walk(memory, mode, cr3) for mode, cr3 in roots if mode is not None])
    pages: dict[int, None] = {}
    for old, new in pairs:
        if new is None or (old.cr3, old.paging) == (new.cr3, new.paging):
            continue
        for state in (old, new):
            # an instruction may go on in the next page; how long it is isn't known when it was never executed
            for virtual in (new.general["rip"], new.general["rip"] + MAX_CODE - 1):
                with contextlib.suppress(paging.NotMapped, OutsideMemory):
                    physical = virtual
                    if state.paging is not None:
                        physical = paging.translate(memory, state.paging, state.cr3, virtual).physical
                    memory.read(physical, 1)  # what damaged tables lead to may be no RAM: nothing can be kept of it
                    pages[physical & ~(PAGE_SIZE - 1)] = None
    return tables, tuple(pages)


def _twin_pages(trace: Trace) -> tuple[int, ...]:
    roots = {s.state.cr3 for s in trace.steps if s.state.paging in (PagingMode.FOUR_LEVEL, PagingMode.FIVE_LEVEL)}
    return tuple(sorted(page for page in map(twin_of, roots) if page is not None))


def _table_pages(spaces: Sequence[AddressSpace]) -> tuple[int, ...]:
    """The pages that hold the tables, physical, once each; a root's before its children's."""
    return tuple(dict.fromkeys(t.address & ~(PAGE_SIZE - 1) for space in spaces for t in space.tables))


def _find_pattern(recorder: Recorder, space: AddressSpace, token: bytes) -> tuple[int, int, int]:
    """The first page of the task's own data that holds the token, repeated: (virtual, physical, bytes)."""
    own = (space.flags & USER_DATA == USER_DATA) & (space.size == PAGE_SIZE)
    for virtual, physical in zip(space.virtual[own].tolist(), space.physical[own].tolist(), strict=True):
        if found := recorder.find(token, physical):
            offset, length = found
            return virtual + offset, physical + offset, length
    raise EvidenceError("the pattern is nowhere in the crashing task's own memory: another task died of the panic")


def _slab_pages(recorder: Recorder, facts: Facts) -> tuple[int, ...]:
    """Pages of slab objects that changed before `machine-kexec`, while other CPUs still ran.

    Empty when the kernel has no vmcoreinfo, or doesn't say enough in it: their bytes then stay without an owner.
    """
    mode, cr3 = facts.mode, facts.cr3
    assert mode is not None
    assert cr3 is not None
    memory = recorder.at_panic
    if facts.vmcoreinfo is None:
        return ()

    def read(virtual: int, size: int) -> bytes:
        return memory.read(paging.translate(memory, mode, cr3, virtual).physical, size)

    types = PageTypes(read, parse_vmcoreinfo(memory.read(*facts.vmcoreinfo)), facts.plan.guest.arch.word)
    try:
        changed = recorder.changed_pages(Checkpoint.MACHINE_KEXEC)
        return tuple(pfn * PAGE_SIZE for pfn in changed if types.is_slab(pfn))
    except LookupError:
        return ()
