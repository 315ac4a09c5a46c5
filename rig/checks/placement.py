"""Where the pages lie that the kernel hands over from, what fits on them, and what is mapped meanwhile."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from rig import operands
from rig.control import Layout, Way, lay_out, way_of
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.handover import Live, touches
from rig.kernel import ages, symbols
from rig.memory import paging
from rig.memory.identity import subtract
from rig.memory.levels import MODES
from rig.memory.paging import NotMapped
from rig.memory.physical import OutsideMemory
from rig.memory.twins import StrayTwin, stray_twins
from rig.memory.walk import AddressSpace, require_all_read, walk
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, PagingMode, Range, Verdict

CODE, STACK, DATA = "control code", "stack", "data"
IDENTITY, TRANSITION = "identity map table", "transition table"
# KEXEC_CONTROL_MEMORY_LIMIT is MAXMEM on x86_64 (arch/x86/include/asm/kexec.h): MAX_PHYSMEM_BITS of sparsemem.h. On
# i386 it is TASK_SIZE, which the split decides.
CONTROL_LIMIT = {PagingMode.FOUR_LEVEL: 1 << 46, PagingMode.FIVE_LEVEL: 1 << 52}


# ---------------------------------------------------------------- control-code-fits


def control_code_fits(evidence: Evidence) -> CheckResult:
    """The end of the control code against what begins behind it on the control page.

    Up to 6.13 that is data at a fixed offset (KEXEC_CONTROL_CODE_MAX_SIZE, arch/x86/include/asm/kexec.h), seen by how
    the code uses it. Where no such data is seen, as since 6.14, whose image carries its data inside, it is the end of
    the page, which the stack grows down from. The image's size comes from the kernel's symbols, where it has them;
    otherwise it is all code that was executed, or that direct branches lead to from there.
    """
    name = "control-code-fits"
    image = _image_size(evidence)
    layout = lay_out(way_of(evidence), image or 0)
    if image is not None and image < layout.code[1]:
        raise EvidenceError(
            f"control code reaches to +{layout.code[1]:#x}, but the kernel's symbols end it at +{image:#x}",
            hint="the symbols are another kernel's, or code on the control page was decoded wrongly",
        )
    size, budget = image or layout.code[1], layout.data or PAGE_SIZE
    figures: dict[str, Any] = {
        "bytes": size,
        "budget": budget,
        "bytes_found_by": f"{symbols.CODE_END} of the kernel's symbols" if image else "the code that can be reached",
        "budget_found_by": "data behind the code" if layout.data is not None else "the end of the page",
        "equal_bytes": _equal_bytes(evidence, layout),
        **asdict(layout),
    }
    problems = []
    if size > budget:
        problems.append(f"{size} bytes of control code, but only {budget} until {figures['budget_found_by']}")
    if layout.stack_low is not None and layout.stack_low < size:
        problems.append(f"the stack came down to +{layout.stack_low:#x}, into the code, which ends at +{size:#x}")
    if layout.overwritten:
        told = ", ".join(f"+{at:#x}" for at in layout.overwritten[:4])
        problems.append(f"{len(layout.overwritten)} instructions were overwritten after they had been executed: {told}")
    if problems:
        return CheckResult(name, Verdict.FAIL, f"control page {layout.page:#x}: {'; '.join(problems)}", figures)
    stack = "no stack on it" if layout.stack_low is None else f"stack down to +{layout.stack_low:#x}"
    summary = f"{size} of {budget} bytes on the control page at {layout.page:#x}, {stack}"
    return CheckResult(name, Verdict.PASS, summary, figures)


def _image_size(evidence: Evidence) -> int | None:
    """Bytes of the control code and its data by the kernel's symbols (6.14 and newer)."""
    places = {s.name: s.start for s in evidence.symbols}
    start = next((places[n] for n in symbols.CODE_START if n in places), None)
    return places[symbols.CODE_END] - start if start is not None and symbols.CODE_END in places else None


def _equal_bytes(evidence: Evidence, layout: Layout) -> int | None:
    """How many bytes from its start on the control page has in common with the kernel's own text at the first capture.

    None when the evidence doesn't say where that is, or doesn't hold it.
    """
    facts = evidence.facts
    places = {s.name: s.start for s in evidence.symbols}
    start = next((places[n] for n in symbols.CODE_START if n in places), None)
    code = next((r for r in facts.iomem if r.name == "Kernel code"), None)
    if start is None or code is None or facts.text is None:
        return None
    try:
        own = evidence.memory(evidence.base).read(start - facts.text + code.start, PAGE_SIZE)
        page = evidence.memory(Checkpoint.HANDOVER).read(layout.page, PAGE_SIZE)
    except OutsideMemory:
        return None
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, page, strict=True)))


# ---------------------------------------------------------------- control-pages-placed


@dataclass(frozen=True)
class Page:
    """A page used on the way. where: the innermost range of /proc/iomem."""

    address: int
    use: str
    where: str
    ok: bool
    copied_over: bool = False  # a page of a plain kexec's image goes there


def control_pages_placed(evidence: Evidence) -> CheckResult:
    """Pages used after the first change of the tables: code, stack, data, and the tables themselves.

    Code, data and the tables that are live during the copy must be control memory: for kdump the crash region, which
    is reserved from boot on; for plain kexec RAM within KEXEC_CONTROL_MEMORY_LIMIT where no page of the image goes
    (kimage_alloc_control_pages(), kernel/kexec_core.c); the list of pages to copy is read there and counts as data.
    Tables for the transition alone the kernel takes from its page allocator (machine_kexec_alloc_page_tables() in
    machine_kexec_32.c, init_transition_pgtable() in machine_kexec_64.c): they may be any RAM as long as struct kimage
    itself points to them and nobody else is known to own them. Where they lie is in the figures. The kernel doesn't
    keep them away from where a plain kexec's image goes: one that is copied over must have done its service, that is no
    instruction from the first copied word on may be found through it.

    The image's pgd is a single page: with PTI on, kernels before d0ceea662d45 (6.13) write what lies after it as if it
    were its user twin.

    Code runs at its virtual address first, then at its physical one: both must lead to it in the tables loaded first.
    """
    name = "control-pages-placed"
    way = way_of(evidence)
    memory, limits = _control_memory(evidence.facts)
    used = _used(evidence, way)
    busy = _tables_while_copying(way)
    pages = [_place(evidence, page, use, memory, busy) for page, use in used.items()]
    mappings = _mappings(way)
    twins = _stray_twins(evidence)
    figures = {
        "pages": [asdict(p) for p in pages],
        "must": limits,
        "mappings": mappings,
        "stray_twins": [asdict(twin) for twin in twins],
    }
    static = [p for p in pages if not p.ok and p.use == TRANSITION] if _tables_are_static(evidence.facts) else []
    problems = [f"{p.use} at {p.address:#x} ({p.where}) is not {limits}" for p in pages if not p.ok and p not in static]
    problems += [m["problem"] for m in mappings if m["problem"]]
    problems += map(str, twins)
    if problems:
        return CheckResult(name, Verdict.FAIL, "; ".join(problems), figures)
    if static:
        told = ", ".join(f"{p.address:#x}" for p in static)
        raise EvidenceError(f"whether the transition tables {told} are the kernel's own variables can't be told")
    outside = [p for p in pages if not any(p.address in r for r in memory)]
    summary = f"{len(pages) - len(outside)} of {len(pages)} pages {limits}"
    if outside:
        told = ", ".join(f"{p.address:#x}" for p in outside)
        summary += f"; the others are struct kimage's own tables for the transition, in ordinary RAM: {told}"
    if gone := [p.address for p in pages if p.copied_over]:
        summary += f"; the image is copied over {', '.join(map(hex, gone))}, after their last use"
    return CheckResult(name, Verdict.PASS, summary, figures)


def _tables_are_static(facts: Facts) -> bool:
    """Whether the kernel has its transition tables in .bss, which no device writes to: but old ones don't tell where
    that is."""
    return not ages.allocates_tables(facts.kernel.release)


def _stray_twins(evidence: Evidence) -> list[StrayTwin]:
    """Pages that PTI took for the user twins of pgds that the hand-over loads, as they were at the first capture.

    Later, control code may hide them: up to 6.13 it is copied over such a page. The crashed task's own pgd has a twin.
    """
    facts = evidence.facts
    if facts.mode not in (PagingMode.FOUR_LEVEL, PagingMode.FIVE_LEVEL):
        return []
    own = {(facts.cr3 or 0) & ~(PAGE_SIZE - 1), *facts.tables, *facts.other_tables}
    loaded = {s.state.cr3 & ~(PAGE_SIZE - 1): None for s in evidence.trace.steps if s.state.paging is not None}
    try:
        return stray_twins(evidence.memory(evidence.base), [root for root in loaded if root not in own])
    except OutsideMemory as problem:
        raise EvidenceError(f"a pgd or the page after it was not kept at {evidence.base}: {problem}") from problem


def _control_memory(facts: Facts) -> tuple[tuple[Range, ...], str]:
    """Where control pages must lie, and in words."""
    if facts.kimage is None or facts.mode is None:
        raise EvidenceError("the image was never seen: machine_kexec was not reached")
    if not facts.plain:
        if facts.crash_region is None:
            raise EvidenceError("the crash region is not known")
        return (facts.crash_region,), "inside the crash region"
    limit = CONTROL_LIMIT.get(facts.mode) or _page_offset(facts)
    ram = [(r.start, min(r.last + 1, limit)) for r in facts.iomem if r.name == "System RAM" and r.start < limit]
    taken = sorted((mem, mem + size) for mem, size in facts.kimage.segments)
    words = f"in RAM below {limit:#x}, outside what the image is copied to"
    return tuple(Range(start, end - 1, "System RAM") for start, end in subtract(ram, taken)), words


def _page_offset(facts: Facts) -> int:
    """PAGE_OFFSET of i386, which TASK_SIZE equals: how far the kernel's image is mapped above its physical place."""
    code = next((r for r in facts.iomem if r.name == "Kernel code"), None)
    if code is None or facts.text is None:
        raise EvidenceError("where the kernel is mapped is not known: no _text, or no Kernel code in /proc/iomem")
    return facts.text - code.start


def _used(evidence: Evidence, way: Way) -> dict[int, str]:
    """Physical address -> use. A page with several uses counts as the first of them."""
    facts = evidence.facts
    used = dict.fromkeys(way.control_pages, CODE)
    for touch in touches((s for s in way.switched if not operands.moves_string(s)), way.tables):
        used.setdefault(touch.start & ~(PAGE_SIZE - 1), STACK if touch.stack else DATA)
    for table in _copying_tables(way):
        used.setdefault(table, IDENTITY)
    own = set(facts.tables)
    # not those of the old CR3: what hangs below the crashed task's pgd now may be damage, which others judge
    for tables in dict.fromkeys(Live.of(step.state) for step in way.switched):
        if tables.mode is not None:
            for reached in _space(way, tables).tables:
                page = reached.address & ~(PAGE_SIZE - 1)
                if page not in own:
                    used.setdefault(page, TRANSITION)
    return used


def _space(way: Way, tables: Live) -> AddressSpace:
    assert tables.mode is not None
    return require_all_read(walk(way.memory, tables.mode, tables.root, pse=tables.pse, nx=tables.nx))


def _copying_tables(way: Way) -> list[int]:
    """Tables that are live during the copy; in 64-bit modes only those for the lower half, where the identity is."""
    found = []
    for tables in way.copying_maps:
        if tables.mode is not None:
            bits = MODES[tables.mode].virtual_bits
            lower = 1 << (bits if bits == 32 else bits - 1)
            space = _space(way, tables)
            found += [t.address & ~(PAGE_SIZE - 1) for t in space.tables if t.virtual < lower]
    return found


def _tables_while_copying(way: Way) -> set[int]:
    """Physical addresses of the tables through which instructions are found from the first one that copies on."""
    fetches = {
        (Live.of(step.state), virtual & ~(PAGE_SIZE - 1))
        for step in way.switched
        for virtual in (step.pc, step.pc + len(step.code) - 1)
        if step.number >= way.copying[0].number
    }
    found: set[int] = set()
    for tables, virtual in fetches:
        if tables.mode is not None:
            path = paging.translate(way.memory, tables.mode, tables.root, virtual).path
            found |= {address & ~(PAGE_SIZE - 1) for _, address, _ in path}
    return found


def _place(evidence: Evidence, address: int, use: str, memory: Iterable[Range], busy: Container[int]) -> Page:
    """busy: tables that are in use while the image is copied."""
    facts = evidence.facts
    assert facts.kimage is not None
    # what the kernel's image has given back is RAM like any other
    freed = any(address in part for part in evidence.given_back)
    holders = sorted((r for r in facts.iomem if address in r and not (freed and r.depth)), key=lambda r: r.depth)
    where = holders[-1].name if holders else "not in /proc/iomem"
    ok = any(address in r for r in memory)
    over = facts.plain and any(mem <= address < mem + size for mem, size in facts.kimage.segments)
    if use == TRANSITION and not ok:
        others = {*facts.tables, *facts.other_tables, *facts.slab_pages}
        ok = where == "System RAM" and address in facts.kimage.pages and address not in others
        ok = ok and not (over and address in busy)
    return Page(address, use, where, ok, over)


def _mappings(way: Way) -> list[dict[str, Any]]:
    """The control page's virtual and identity mapping in the tables that were loaded first; none with paging off."""
    step = way.switched[0]
    live = Live.of(step.state)
    if live.mode is None:
        return []
    page = way.physical(step.state, step.pc) & ~(PAGE_SIZE - 1)
    found = []
    for kind, virtual in (("virtual", step.pc & ~(PAGE_SIZE - 1)), ("identity", page)):
        mapping: dict[str, Any] = {"kind": kind, "cr3": step.state.cr3, "virtual": virtual, "problem": ""}
        translation = way.tables.lookups(live, virtual)[0]
        if isinstance(translation, NotMapped):
            found.append(mapping | {"problem": f"control page's {kind} mapping: {translation}"})
            continue
        mapping |= {"physical": translation.physical, "path": [list(entry) for entry in translation.path]}
        if translation.physical != page:
            mapping["problem"] = f"the two mappings of the control page collide: {virtual:#x} leads to " + hex(
                translation.physical
            )
        elif kind == "virtual" and not _holds(way, page + step.pc % PAGE_SIZE, step.code):
            mapping["problem"] = f"{virtual:#x} leads to {page:#x}, which doesn't hold the code that was executed"
        found.append(mapping)
    return found


def _holds(way: Way, physical: int, code: bytes) -> bool:
    code = code[: PAGE_SIZE - physical % PAGE_SIZE]
    try:
        return way.memory.read(physical, len(code)) == code
    except OutsideMemory as problem:
        raise EvidenceError(f"the control page {physical & ~(PAGE_SIZE - 1):#x} was not kept") from problem
