"""control-code-fits and control-pages-placed on a forged hand-over: healthy it passes, each defect fails it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig.checks import run_check
from rig.model import PAGE_SIZE, CheckResult, PagingMode, Range, Symbol, Verdict
from tests.checks.forged_handover import (
    CONTROL,
    ENTRY,
    IDENTITY_PD,
    IDENTITY_PDPT,
    PGD_COPY,
    RELOCATE_KERNEL,
    TRANSITION,
    Handover,
)
from tests.forge import CRASH, Machine

FITS, PLACED = "control-code-fits", "control-pages-placed"


@pytest.fixture
def handover() -> Handover:
    return Handover()


def judged(name: str, machine: Machine, tmp_path: Path) -> CheckResult:
    return run_check(name, machine.write(tmp_path))


# ---------------------------------------------------------------- control-code-fits


def test_code_that_fits(handover: Handover, tmp_path: Path) -> None:
    result = judged(FITS, handover.machine(), tmp_path)
    assert result.verdict is Verdict.PASS, result.summary
    expected = {"bytes": 0x21, "budget": 2048, "page": CONTROL, "copied": (0, 2048), "stack_low": 0xFF0}
    assert {key: result.figures[key] for key in expected} == expected
    assert result.figures["budget_found_by"] == "data behind the code"


def test_code_that_is_not_executed_but_can_be_counts(handover: Handover, tmp_path: Path) -> None:
    handover.more_steps = [(CONTROL + 0x21, "0f8411000000", {})]  # je 0x38, not taken
    handover.page = {0x21: "0f8411000000", 0x27: "c3", 0x38: "90c3"}  # nop, ret
    result = judged(FITS, handover.machine(), tmp_path)
    assert (result.verdict, result.figures["bytes"]) == (Verdict.PASS, 0x3A)


def test_code_into_its_data_does_not_fit(handover: Handover, tmp_path: Path) -> None:
    handover.more_steps = [(CONTROL + 0x7FE, "4883c008", {}), (CONTROL + 0x802, "c3", {})]  # add rax, 8; ret
    handover.page = {0x7FE: "4883c008", 0x802: "c3"}
    result = judged(FITS, handover.machine(), tmp_path)
    assert result.verdict is Verdict.FAIL
    assert "2051 bytes of control code, but only 2048" in result.summary


def test_a_stack_in_the_code_fails(handover: Handover, tmp_path: Path) -> None:
    handover.more_steps = [(CONTROL + 0x20, "c3", {"rsp": CONTROL + 0x18})]
    result = judged(FITS, handover.machine(), tmp_path)
    assert result.verdict is Verdict.FAIL
    assert "the stack came down to +0x18" in result.summary


def test_code_that_was_overwritten_fails(handover: Handover, tmp_path: Path) -> None:
    handover.page = {0x17: "000000"}
    result = judged(FITS, handover.machine(), tmp_path)
    assert result.verdict is Verdict.FAIL
    assert result.figures["overwritten"] == (0x17,)


def test_since_6_14_the_image_carries_its_data(handover: Handover, tmp_path: Path) -> None:
    machine = handover.machine()
    start = RELOCATE_KERNEL
    machine.symbols = (
        Symbol("__relocate_kernel_start", start, start + 0x10),
        Symbol("__relocate_kernel_end", start + 0x810, start + 0x900),
    )
    result = judged(FITS, machine, tmp_path)
    assert (result.verdict, result.figures["bytes"], result.figures["budget"]) == (Verdict.PASS, 0x810, 4096)
    machine.symbols = (machine.symbols[0], replace(machine.symbols[1], start=start + 0x20))
    assert judged(FITS, machine, tmp_path).verdict is Verdict.ERROR  # the code is longer than that: not its symbols


def test_how_much_of_the_kernels_own_code_is_on_the_page(handover: Handover, tmp_path: Path) -> None:
    machine = handover.machine()
    machine.symbols = (Symbol("relocate_kernel", RELOCATE_KERNEL, RELOCATE_KERNEL + 0x100),)
    assert judged(FITS, machine, tmp_path).figures["equal_bytes"] is None  # the kernel's page was not kept
    code = b"".join(bytes.fromhex(code) for code in handover.code().values())
    machine.base[0x210] = code.ljust(0x30, b"\0").ljust(4096, b"\xcc")
    assert judged(FITS, machine, tmp_path).figures["equal_bytes"] == 0x30


@pytest.mark.parametrize("name", [FITS, PLACED, "identity-map-complete"])
def test_a_trace_without_a_switch_can_not_be_judged(name: str, handover: Handover, tmp_path: Path) -> None:
    machine = handover.machine()
    machine.trace = machine.trace[: machine.trace.index("----------------", 100)]
    result = judged(name, machine, tmp_path)
    assert result.verdict is Verdict.ERROR
    assert "before the tables were ever changed" in result.summary


# ---------------------------------------------------------------- control-pages-placed


def test_pages_where_they_must_be(handover: Handover, tmp_path: Path) -> None:
    result = judged(PLACED, handover.machine(), tmp_path)
    assert result.verdict is Verdict.PASS, result.summary
    uses = {page["address"]: (page["use"], page["where"]) for page in result.figures["pages"]}
    identity = dict.fromkeys((PGD_COPY, IDENTITY_PDPT, IDENTITY_PD), ("identity map table", "Crash kernel"))
    transition = dict.fromkeys(TRANSITION, ("transition table", "System RAM"))
    assert uses == {CONTROL: ("control code", "Crash kernel")} | identity | transition
    assert [m["physical"] for m in result.figures["mappings"]] == [CONTROL, CONTROL]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"control": 0x601000}, "control code at 0x601000 (System RAM) is not inside the crash region"),
        ({"identity_pd": 0x403000}, "identity map table at 0x403000 (System RAM) is not inside"),
        ({"pages": TRANSITION[:2]}, "transition table at 0x402000 (System RAM) is not inside"),
        ({"pd": {n: n * 0x200000 | 0xE3 for n in (0, 1, 2, 3, 5, 6, 7)} | {4: 0xA000E3}}, "collide"),
    ],
)
def test_pages_that_are_elsewhere(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    result = judged(PLACED, Handover(**changes).machine(), tmp_path)  # type: ignore[arg-type]
    assert result.verdict is Verdict.FAIL
    assert told in result.summary


def test_a_transition_table_that_is_the_crashed_tasks_or_the_kernels_fails(tmp_path: Path) -> None:
    for change in ({"slab_pages": TRANSITION[1:2]}, {"iomem": (Range(0x400000, 0x402FFF, "Kernel data"), CRASH)}):
        machine = Handover().machine()
        machine.learn(**change)
        assert judged(PLACED, machine, tmp_path).verdict is Verdict.FAIL


def test_tables_that_may_be_an_old_kernels_own_variables_are_not_judged(tmp_path: Path) -> None:
    for control, verdict in ((CONTROL, Verdict.ERROR), (0x601000, Verdict.FAIL)):
        machine = Handover(pages=(), control=control).machine()
        machine.learn(kernel=replace(machine.facts.kernel, release="2.6.20"))
        result = judged(PLACED, machine, tmp_path / verdict)
        assert result.verdict is verdict
        assert ("variables" in result.summary) is (verdict is Verdict.ERROR)


def test_a_stack_elsewhere_fails(handover: Handover, tmp_path: Path) -> None:
    handover.more_steps = [(CONTROL + 0x20, "c3", {"rsp": 0x500100})]
    result = judged(PLACED, handover.machine(), tmp_path)
    assert (result.verdict, "stack at 0x500000" in result.summary) == (Verdict.FAIL, True)


def test_plain_kexec_has_the_architectures_limit(handover: Handover, tmp_path: Path) -> None:
    """No crash region; x86_64 takes control pages from all RAM, i386 from what is below TASK_SIZE."""
    machine = handover.machine()
    assert machine.facts.kimage is not None
    plan = replace(machine.facts.plan, scenario=replace(machine.facts.plan.scenario, load="plain"))
    machine.learn(plan=plan, crash_region=None)
    assert judged(PLACED, machine, tmp_path).verdict is Verdict.PASS
    # a 32-bit kernel of the same place: TASK_SIZE = _text - its physical address
    machine.learn(mode=PagingMode.TWO_LEVEL, text=0x200000 + 0x700000)
    result = judged(PLACED, machine, tmp_path)
    assert (result.verdict, result.figures["must"]) == (
        Verdict.FAIL,
        "in RAM below 0x700000, outside what the image is copied to",
    )


@pytest.mark.parametrize(("copies_at", "verdict"), [(CONTROL, Verdict.PASS), (RELOCATE_KERNEL, Verdict.FAIL)])
def test_a_transition_table_may_be_copied_over_once_it_is_not_needed(
    handover: Handover, tmp_path: Path, copies_at: int, verdict: Verdict
) -> None:
    """The same code copies at its identity address, or still at the kernel's, which those tables lead to."""
    handover.segments = ((ENTRY, 0x2000), (TRANSITION[0], PAGE_SIZE))
    handover.more_steps = [(copies_at + 0x30, "a4", {"rsi": ENTRY, "rdi": ENTRY})]  # movsb
    handover.page = {0x30: "a4"}
    machine = handover.machine()
    plan = replace(machine.facts.plan, scenario=replace(machine.facts.plan.scenario, load="plain"))
    machine.learn(plan=plan, crash_region=None)
    result = judged(PLACED, machine, tmp_path)
    assert result.verdict is verdict
    assert [p["address"] for p in result.figures["pages"] if p["copied_over"]] == [TRANSITION[0]]


def test_control_memory_that_the_image_is_copied_over_fails(handover: Handover, tmp_path: Path) -> None:
    handover.segments = ((ENTRY, 0x2000), (CONTROL, 0x1000))
    machine = handover.machine()
    plan = replace(machine.facts.plan, scenario=replace(machine.facts.plan.scenario, load="plain"))
    machine.learn(plan=plan, crash_region=None)
    result = judged(PLACED, machine, tmp_path)
    assert (result.verdict, f"control code at {CONTROL:#x}" in result.summary) == (Verdict.FAIL, True)


def test_the_virtual_mapping_must_lead_to_what_is_executed(handover: Handover, tmp_path: Path) -> None:
    handover.page = {0x0B: "00"}
    result = judged(PLACED, handover.machine(), tmp_path)
    assert (result.verdict, "doesn't hold the code" in result.summary) == (Verdict.FAIL, True)


def test_a_stray_user_twin_is_named_though_code_was_copied_over_it_later(handover: Handover, tmp_path: Path) -> None:
    machine = handover.machine()
    # PTI took the control page for the twin of the image's pgd, the page before it: entry [0], as it was at panic
    pgd = machine.base[PGD_COPY // PAGE_SIZE]
    machine.base[CONTROL // PAGE_SIZE] = pgd[:8] + bytes(PAGE_SIZE - 8)
    result = judged(PLACED, machine, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert f"page {CONTROL:#x}, after the image's pgd {PGD_COPY:#x}, holds its [0]" in result.summary
    assert [twin["page"] for twin in result.figures["stray_twins"]] == [CONTROL]


def test_the_page_after_the_images_pgd_must_have_been_kept(handover: Handover, tmp_path: Path) -> None:
    machine = handover.machine()
    del machine.base[CONTROL // PAGE_SIZE]
    assert judged(PLACED, machine, tmp_path).verdict is Verdict.ERROR
