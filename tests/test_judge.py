"""Every check on forged evidence: healthy it passes, damaged it fails, torn it can't judge."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from rig.errors import RequestError
from rig.evidence.reader import Evidence
from rig.evidence.writer import to_json
from rig.facts import RegisterDamage
from rig.judge import judge, judge_dir
from rig.model import CRASH_KERNEL, Checkpoint, CheckResult, Failure, PagingMode, Range, RunResult, Symbol, Verdict
from rig.report.html import render_run
from tests.forge import CRASH, NOTES, PANIC_RIP, PGD, STACK, Machine
from tests.memory.forged_vmcore import vmcore_i386

HUNG = Failure("GuestHung", "waited in vain", "crash-boot")


@pytest.fixture
def machine() -> Machine:
    return Machine()


def of(result: RunResult, name: str) -> CheckResult:
    return next(c for c in result.checks if c.name == name)


def verdict(machine: Machine, tmp_path: Path, name: str) -> CheckResult:
    return of(judge(machine.write(tmp_path)), name)


# ---------------------------------------------------------------- the whole


def test_a_healthy_machine_passes_every_check(machine: Machine, tmp_path: Path) -> None:
    result = judge(machine.write(tmp_path))
    assert {c.name: (c.verdict, c.summary) for c in result.checks if c.verdict is not Verdict.PASS} == {}
    assert result.verdict is Verdict.PASS
    assert result.as_expected
    assert result.id == "panic@i386/forged"


def test_the_same_evidence_gives_the_same_result_bit_for_bit(machine: Machine, tmp_path: Path) -> None:
    evidence = machine.write(tmp_path)
    assert to_json(judge(evidence)) == to_json(judge_dir(evidence.path))


def test_what_was_judged_is_forgotten(machine: Machine, tmp_path: Path) -> None:
    """A night has hundreds of runs. The last two may be asked for again: by their reports."""
    known = []
    for number in range(5):
        evidence = machine.write(tmp_path / str(number))
        render_run(judge(evidence), evidence)
        known.append(weakref.ref(evidence))
        del evidence
    gc.collect()
    assert sum(one() is not None for one in known) <= 2


def test_no_checks_is_no_pass(machine: Machine, tmp_path: Path) -> None:
    machine.expect(checks=())
    result = judge(machine.write(tmp_path))
    assert result.verdict is Verdict.ERROR
    assert not result.as_expected


def test_a_run_that_broke_off_is_an_error_even_if_every_check_passes(machine: Machine, tmp_path: Path) -> None:
    machine.learn(broke_off=HUNG)
    result = judge(machine.write(tmp_path))
    assert result.verdict is Verdict.ERROR
    assert result.surprise == "could not judge"


def test_a_run_that_broke_off_before_there_was_a_guest_has_a_report(machine: Machine, tmp_path: Path) -> None:
    machine.learn(broke_off=replace(HUNG, kind="PackageError", message="no package", phase="prepare"), captured=())
    evidence = machine.write(tmp_path)
    (evidence.path / "console.log").unlink()
    page = render_run(judge(evidence), evidence)
    assert "could not judge" in page
    assert "no package" in page


def test_a_skipped_run_says_why_and_is_no_pass(machine: Machine, tmp_path: Path) -> None:
    machine.learn(skip="CONFIG_KEXEC_FILE: there is none on i386")
    evidence = machine.write(tmp_path)
    (evidence.path / "console.log").unlink()  # nothing was booted
    result = judge(evidence)
    assert {(c.verdict, c.summary) for c in result.checks} == {(Verdict.SKIP, machine.facts.skip)}
    assert result.verdict is Verdict.SKIP
    assert not result.as_expected
    assert machine.facts.skip in render_run(result, evidence)


def test_what_is_no_evidence_directory_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no run\.json"):
        judge_dir(tmp_path)


# ---------------------------------------------------------------- pgd-survives


def test_one_changed_entry_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, PGD + 4 * 85, (0x39E067).to_bytes(4, "little"))
    found = verdict(machine, tmp_path, "pgd-survives")
    assert found.verdict is Verdict.FAIL
    assert found.figures["entries_changed"] == [{"index": 85, "before": 0, "after": 0x39E067, "checkpoint": "handover"}]
    assert found.figures["bytes_changed"] == 3  # 67 e0 39 over zeroes
    assert "[85]" in found.summary


def test_accessed_bit_alone_is_counted_apart(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, PGD, bytes([0x83 | 0x20]))  # A: set by the CPU
    found = verdict(machine, tmp_path, "pgd-survives")
    assert (found.verdict, found.figures["bytes_changed"], found.figures["ad_bits"]) == (Verdict.PASS, 0, 1)


def test_a_damaged_dump_fails_though_memory_is_whole(machine: Machine, tmp_path: Path) -> None:
    machine.dumped_pgd = bytes([0x87]) + machine.dumped_pgd[1:]
    found = verdict(machine, tmp_path, "pgd-survives")
    assert found.verdict is Verdict.FAIL
    assert "first seen at vmcore" in found.summary


def test_unchanged_but_not_seen_to_the_end_is_no_pass(machine: Machine, tmp_path: Path) -> None:
    machine.learn(captured=(Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC))
    found = verdict(machine, tmp_path, "pgd-survives")
    assert found.verdict is Verdict.ERROR
    assert "never seen at handover, crash-kernel" in found.summary


def test_changed_and_not_seen_to_the_end_is_a_failure(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, PGD + 8, b"\x01")
    machine.learn(captured=(Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER), broke_off=HUNG)
    result = judge(machine.write(tmp_path))
    assert (of(result, "pgd-survives").verdict, result.verdict) == (Verdict.FAIL, Verdict.FAIL)


@pytest.mark.parametrize(
    ("news", "words"),
    [
        ({"cr3": None}, "never reached"),
        ({"mode": PagingMode.PAE}, "not the machine asked for"),
        ({"cr3": 0x7000}, "was not kept"),
    ],
)
def test_no_pgd_no_verdict(machine: Machine, tmp_path: Path, news: dict[str, object], words: str) -> None:
    machine.learn(**news)
    found = verdict(machine, tmp_path, "pgd-survives")
    assert found.verdict is Verdict.ERROR
    assert words in found.summary


# ---------------------------------------------------------------- crash-kernel-boots


def test_a_guest_that_died_of_its_panic_has_failed(machine: Machine, tmp_path: Path) -> None:
    machine.learn(vmcore_present=None, died=True, broke_off=replace(HUNG, kind="GuestDied", message="triple fault"))
    result = judge(machine.write(tmp_path))
    assert of(result, "crash-kernel-boots").verdict is Verdict.FAIL
    assert result.verdict is Verdict.FAIL


def test_a_guest_that_hung_could_not_be_judged(machine: Machine, tmp_path: Path) -> None:
    machine.learn(vmcore_present=None, broke_off=HUNG)
    assert verdict(machine, tmp_path, "crash-kernel-boots").verdict is Verdict.ERROR


@pytest.mark.parametrize("news", [{"vmcore_present": False}, {"crash_release": "2.6.18"}])
def test_no_vmcore_or_another_kernel_fails(machine: Machine, tmp_path: Path, news: dict[str, object]) -> None:
    machine.learn(**news)
    assert verdict(machine, tmp_path, "crash-kernel-boots").verdict is Verdict.FAIL


# ---------------------------------------------------------------- memory-accounted


def test_owners_are_named_and_bytes_counted(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, NOTES[1][0] + 16, b"abc")
    machine.change(Checkpoint.HANDOVER, 0x100010, b"x")  # kernel .data
    machine.change(Checkpoint.CRASH_KERNEL, CRASH.start, b"inside the crash region: not counted")
    machine.change(Checkpoint.CRASH_KERNEL, 0x9C000, b"trampoline")
    found = verdict(machine, tmp_path, "memory-accounted")
    assert found.verdict is Verdict.PASS
    assert {e["owner"]: e["bytes"] for e in found.figures["owners"]} == {
        "crash notes of CPU 1": 3,
        "kernel .data": 1,
        "first 640 KiB, given to the crash kernel (saved by purgatory)": 10,
    }
    assert found.figures["bytes_changed"] == 14


def test_where_symbols_are_known_the_owner_is_one(machine: Machine, tmp_path: Path) -> None:
    text = 0xC1000000  # virtual, of physical 0xc0000
    machine.learn(text=text)
    machine.symbols = (
        Symbol("code", text, text + 0x100),  # not in .data or .bss
        Symbol("panic_cpu", text + 0x40010, text + 0x40014),
        Symbol("next", text + 0x40014, text + 0x900000),  # to the end of .bss at most
    )
    machine.change(Checkpoint.HANDOVER, 0x100010, b"xxxx!")
    found = verdict(machine, tmp_path, "memory-accounted")
    assert {e["owner"]: e["bytes"] for e in found.figures["owners"]} == {"kernel panic_cpu": 4, "kernel next": 1}


def test_slab_objects_may_change_only_while_other_cpus_run(machine: Machine, tmp_path: Path) -> None:
    machine.learn(slab_pages=(0x700000,))
    machine.change(Checkpoint.MACHINE_KEXEC, 0x700123, b"ok")
    machine.change(Checkpoint.HANDOVER, 0x700200, b"late")
    found = verdict(machine, tmp_path, "memory-accounted")
    assert {e["owner"]: e["bytes"] for e in found.figures["owners"]} == {"slab object": 2, "unaccounted": 4}


def test_a_byte_without_owner_fails(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, 0x700123, b"?")
    found = verdict(machine, tmp_path, "memory-accounted")
    assert (found.verdict, found.figures["unaccounted"]) == (Verdict.FAIL, 1)
    assert "0x700123" in found.summary


def test_a_byte_that_may_be_of_an_image_never_read_is_nobodys_failure(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, 0x700123, b"?")
    machine.learn(kimage=None, broke_off=HUNG)
    assert verdict(machine, tmp_path, "memory-accounted").verdict is Verdict.ERROR


def test_the_low_one_of_two_reservations_is_the_crash_kernels_to_use(machine: Machine, tmp_path: Path) -> None:
    machine.learn(iomem=(*machine.facts.iomem, Range(0x700000, 0x7FFFFF, CRASH_KERNEL, 1)))
    machine.change(Checkpoint.CRASH_KERNEL, 0x700123, b"?")
    assert verdict(machine, tmp_path, "memory-accounted").verdict is Verdict.PASS
    machine.change(Checkpoint.HANDOVER, 0x700123, b"?")  # not yet
    assert verdict(machine, tmp_path / "early", "memory-accounted").verdict is Verdict.FAIL


def test_low_memory_has_an_owner_only_after_the_hand_over(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, 0x9C000, b"early")
    assert verdict(machine, tmp_path, "memory-accounted").figures["unaccounted"] == 5


def test_accounted_but_not_seen_to_the_end_is_no_pass(machine: Machine, tmp_path: Path) -> None:
    machine.learn(captured=(Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC))
    assert verdict(machine, tmp_path, "memory-accounted").verdict is Verdict.ERROR


# ---------------------------------------------------------------- vmcore-registers


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ([(PANIC_RIP + 0x80, STACK - 0x60)], "1 notes for 2 CPUs"),
        ([(0, 0), (0, 0)], "0 notes place a CPU"),
        ([(PANIC_RIP + 0x80, STACK + 0x60), (0, 0)], "0 notes place a CPU"),
        ([(PANIC_RIP - 1, STACK), (0, 0)], "0 notes place a CPU"),
    ],
)
def test_wrong_notes_fail(machine: Machine, tmp_path: Path, notes: list[tuple[int, int]], words: str) -> None:
    machine.headers = vmcore_i386(notes)
    found = verdict(machine, tmp_path, "vmcore-registers")
    assert found.verdict is Verdict.FAIL
    assert words in found.summary


def test_registers_that_were_saved_before_panic_was_seen_can_not_be_judged(machine: Machine, tmp_path: Path) -> None:
    machine.learn(panic_symbol="machine_kexec")
    found = verdict(machine, tmp_path, "vmcore-registers")
    assert (found.verdict, "saved already" in found.summary) == (Verdict.ERROR, True)


def test_torn_headers_can_not_be_judged(machine: Machine, tmp_path: Path) -> None:
    machine.headers = machine.headers[:40]
    assert verdict(machine, tmp_path, "vmcore-registers").verdict is Verdict.ERROR


def test_no_dump_no_verdict(machine: Machine, tmp_path: Path) -> None:
    machine.learn(dump=None)
    assert verdict(machine, tmp_path, "vmcore-registers").verdict is Verdict.ERROR


# ---------------------------------------------------------------- sabotage


SABOTAGED = {"sabotage": "damage what=pgd", "expect": Verdict.FAIL, "expect_failed": ("pgd-survives",)}
LOW, HIGH = 0x83, 0x67_00000083  # the pgd's entries 0 and 1 as one word, before and after


def sabotaged(machine: Machine) -> Machine:
    """Entry 1 of the pgd was overwritten."""
    machine.expect(**SABOTAGED)
    machine.change(Checkpoint.HANDOVER, PGD + 4, b"\x67")
    machine.damage((PGD, 8, LOW, HIGH))
    return machine


def test_sabotage_that_is_noticed_exactly_is_as_expected(machine: Machine, tmp_path: Path) -> None:
    result = judge(sabotaged(machine).write(tmp_path))
    assert (result.verdict, result.surprise) == (Verdict.FAIL, "")


def test_sabotage_that_goes_unnoticed_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    machine.expect(**SABOTAGED)
    machine.damage((PGD, 8, LOW, HIGH))
    assert judge(machine.write(tmp_path)).surprise == "went unnoticed by pgd-survives"


def test_sabotage_of_other_entries_than_named_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    sabotaged(machine).damage((PGD + 8, 8, 0, 0x67))
    surprise = judge(machine.write(tmp_path)).surprise
    assert surprise == "the sabotage changed entries [(2, 0, 103)], the rig named [(1, 0, 103)]"


def test_an_entry_that_the_cpu_has_used_since_is_the_one_that_was_written(machine: Machine, tmp_path: Path) -> None:
    """QEMU sets the accessed bit (0x20) even in a PDPT entry."""
    machine.expect(**SABOTAGED)
    machine.change(Checkpoint.HANDOVER, PGD + 4, b"\x67")
    machine.damage((PGD, 8, LOW, HIGH & ~(0x20 << 32)))
    assert judge(machine.write(tmp_path)).surprise == ""
    machine.damage((PGD, 8, LOW, HIGH & ~(0x40 << 32)))  # dirty: nothing is mapped by it
    assert "the sabotage changed entries" in judge(machine.write(tmp_path)).surprise


def test_a_pgd_that_was_hit_beside_the_sabotage_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    sabotaged(machine).damage((0x300000, 8, 0, 1))
    assert "the sabotage changed entries [], the rig named [(1, 0, 103)]" in judge(machine.write(tmp_path)).surprise


def test_sabotage_without_a_record_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    sabotaged(machine).damage()
    assert "no record" in judge(machine.write(tmp_path)).surprise


def test_damage_that_memory_does_not_show_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    sabotaged(machine).damage((PGD, 8, LOW, HIGH), (0x300000, 8, 0, 1))
    assert "not in memory at handover: 0x300000" in judge(machine.write(tmp_path)).surprise


@pytest.mark.parametrize(("value", "surprise"), [(0x33, ""), (0x10033, "cr0 is not 0x10033 at handover")])
def test_a_register_must_have_been_set(machine: Machine, tmp_path: Path, value: int, surprise: str) -> None:
    machine.expect(sabotage="stale-cr0", expect=Verdict.PASS)
    machine.learn(register_damage=(RegisterDamage("cr0", 0x22, value),))
    found = judge(machine.write(tmp_path)).surprise
    assert (surprise in found) if surprise else not found


def test_sabotage_that_also_breaks_something_else_is_a_surprise(machine: Machine, tmp_path: Path) -> None:
    sabotaged(machine).learn(vmcore_present=False)
    assert "crash-kernel-boots failed" in judge(machine.write(tmp_path)).surprise


@pytest.mark.parametrize("expected", [True, False])
def test_what_a_death_leaves_unjudged_is_as_expected_only_when_the_death_is(
    machine: Machine, tmp_path: Path, expected: bool
) -> None:
    failed = ("crash-kernel-boots", "pgd-survives") if expected else ("pgd-survives",)
    sabotaged(machine).expect(**{**SABOTAGED, "expect_failed": failed})
    machine.learn(
        captured=(Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER),
        broke_off=replace(HUNG, kind="GuestDied"),
        died=True,
        vmcore_present=None,
        dump=None,
    )
    result = judge(machine.write(tmp_path))
    assert of(result, "vmcore-registers").verdict is Verdict.ERROR
    assert result.as_expected is expected


# ---------------------------------------------------------------- torn evidence


@pytest.mark.parametrize(
    "name", ["memory/panic.pages.zst", "memory/panic.hashes.zst", "memory/handover.pages.zst", "registers/panic.json"]
)
@pytest.mark.parametrize("how", ["missing", "cut", "garbage"])
def test_torn_evidence_is_never_a_verdict(machine: Machine, tmp_path: Path, name: str, how: str) -> None:
    evidence = machine.write(tmp_path)
    file = evidence.path / name
    blob = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(blob[: len(blob) // 2] if how == "cut" else b"\0" * len(blob))
    assert judge(Evidence(evidence.path)).verdict is Verdict.ERROR


def test_a_base_page_that_was_tampered_with_is_noticed(machine: Machine, tmp_path: Path) -> None:
    machine.base[PGD // 4096] = b"\x84" + machine.base[PGD // 4096][1:]
    evidence = machine.write(tmp_path)
    good = Machine().write(tmp_path)
    (good.path / "memory/panic.pages.zst").write_bytes((evidence.path / "memory/panic.pages.zst").read_bytes())
    found = of(judge(Evidence(good.path)), "pgd-survives")
    assert found.verdict is Verdict.ERROR
    assert "does not match its hash" in found.summary


def test_an_unknown_key_in_run_json_names_file_and_key(machine: Machine, tmp_path: Path) -> None:
    evidence = machine.write(tmp_path)
    facts = json.loads((evidence.path / "run.json").read_bytes())
    facts["mode"] = "3-level"
    (evidence.path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(Exception, match=r"run\.json.*3-level.*mode") as caught:
        judge_dir(evidence.path)
    assert getattr(caught.value, "exit_code", None) == 3
