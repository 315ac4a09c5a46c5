"""The crashed task's address space on forged evidence: two page tables of its own, a pattern, and a user twin."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rig.checks import run_check
from rig.facts import Pattern
from rig.model import Checkpoint, CheckResult, Symbol, Verdict
from tests.forge import PGD, Machine
from tests.forged_trace import Instruction, record

TABLE = 0x6000  # the page table behind PDE [1]
PAGE = 0x7000  # what its entry 0 maps: 0x400000, with the pattern
TWIN, TWINS_TABLE = 0x9000, 0xA000
TOKEN = "0123456789abcdef"
VIRTUAL = 0x400010
MACHINE_KEXEC = 0xC0011000
SPACE, USER = "address-space-survives", "user-space-survives"


def words(entries: dict[int, int]) -> bytes:
    return struct.pack("<1024I", *(entries.get(i, 0) for i in range(1024)))


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.base = {
        PGD // 4096: words({0: 0x83, 1: TABLE | 7, 768: 0x83}),
        TABLE // 4096: words({0: PAGE | 7, 1: 0x8067}),
        PAGE // 4096: bytes(16) + (TOKEN * 4).encode() + bytes(4096 - 16 - 64),
    }
    machine.learn(tables=(PGD, TABLE), pattern=Pattern(TOKEN, VIRTUAL, PAGE + 16, 64))
    return machine


def with_twin(machine: Machine) -> None:
    machine.base |= {TWIN // 4096: words({1: TWINS_TABLE | 7}), TWINS_TABLE // 4096: words({0: PAGE | 7})}
    machine.learn(user_pgd=TWIN, user_tables=(TWIN, TWINS_TABLE))


def verdict(machine: Machine, tmp_path: Path, name: str) -> CheckResult:
    return run_check(name, machine.write(tmp_path))


@pytest.mark.parametrize("twin", [False, True])
def test_a_whole_address_space_passes(machine: Machine, tmp_path: Path, twin: bool) -> None:
    if twin:
        with_twin(machine)
    space, user = verdict(machine, tmp_path, SPACE), verdict(machine, tmp_path, USER)
    assert (space.verdict, user.verdict) == (Verdict.PASS, Verdict.PASS), (space.summary, user.summary)
    figures = space.figures
    assert (figures["tables_compared"], figures["translations_before"]) == ((4, 5) if twin else (2, 4))
    assert figures["translations_after"] == figures["translations_before"]
    assert (user.figures["virtual"], user.figures["physical"], user.figures["bytes"]) == (VIRTUAL, PAGE + 16, 64)


def test_a_redirected_page_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, TABLE, struct.pack("<I", 0xB007))
    space, user = verdict(machine, tmp_path, SPACE), verdict(machine, tmp_path, USER)
    assert (space.verdict, user.verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert (space.figures["lost"], space.figures["redirected"], space.figures["tables_changed"]) == (0, 1, 1)
    assert list(space.figures["examples"]) == [{"virtual": 0x400000, "before": PAGE, "after": 0xB000}]
    assert space.figures["changes"][0]["entries"] == [{"index": 0, "before": 0x7007, "after": 0xB007}]
    assert "leads to 0xb010" in user.summary


def test_a_clobbered_table_loses_its_translations(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, TABLE, bytes(4096))
    space, user = verdict(machine, tmp_path, SPACE), verdict(machine, tmp_path, USER)
    assert (space.verdict, space.figures["lost"], space.figures["translations_after"]) == (Verdict.FAIL, 2, 2)
    assert space.figures["changes"][0]["checkpoint"] == "machine-kexec"
    assert (user.verdict, "no longer mapped: not present at PTE [0]" in user.summary) == (Verdict.FAIL, True)


def test_a_table_that_maps_nothing_more_or_less_may_still_not_change(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.CRASH_KERNEL, TABLE + 8, struct.pack("<I", 0x1000))  # not present: a swap entry
    space = verdict(machine, tmp_path, SPACE)
    assert (space.verdict, space.figures["lost"], space.figures["added"]) == (Verdict.FAIL, 0, 0)
    assert "are not recorded" in space.figures["writer"]


def test_a_clobbered_twin_fails_though_the_pgd_is_whole(machine: Machine, tmp_path: Path) -> None:
    with_twin(machine)
    machine.change(Checkpoint.HANDOVER, TWIN + 4, struct.pack("<I", 0))
    space, user = verdict(machine, tmp_path, SPACE), verdict(machine, tmp_path, USER)
    assert (space.verdict, space.figures["lost"], space.figures["changes"][0]["table"]) == (Verdict.FAIL, 1, TWIN)
    assert (user.verdict, "through the user pgd" in user.summary) == (Verdict.FAIL, True)


def test_a_clobbered_table_of_the_twin_only_fails(machine: Machine, tmp_path: Path) -> None:
    with_twin(machine)
    machine.change(Checkpoint.HANDOVER, TWINS_TABLE, struct.pack("<I", PAGE | 5))  # no longer writable
    space = verdict(machine, tmp_path, SPACE)
    assert (space.verdict, space.figures["permissions"]) == (Verdict.FAIL, 1)


def test_accessed_and_dirty_bits_are_counted_apart(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, TABLE, struct.pack("<I", PAGE | 0x67))
    space = verdict(machine, tmp_path, SPACE)
    assert (space.verdict, space.figures["ad_bits"]) == (Verdict.PASS, 2)


def test_an_overwritten_pattern_fails_only_the_user_space(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.CRASH_KERNEL, PAGE + 20, b"??")
    space, user = verdict(machine, tmp_path, SPACE), verdict(machine, tmp_path, USER)
    assert (space.verdict, user.verdict) == (Verdict.PASS, Verdict.FAIL)
    assert "2 of 64 bytes differ" in user.summary


@pytest.mark.parametrize(
    ("name", "news", "words"),
    [
        (SPACE, {"cr3": None}, "never reached"),
        (SPACE, {"cr3": 0x700000}, "not all there"),
        (SPACE, {"captured": (Checkpoint.PANIC, Checkpoint.HANDOVER)}, "never seen at machine-kexec, crash-kernel"),
        (USER, {"pattern": None}, "never found"),
        (USER, {"pattern": Pattern(TOKEN, VIRTUAL + 1, PAGE + 17, 64)}, "is not at 0x400011 at panic"),
        (USER, {"pattern": Pattern("", VIRTUAL, PAGE + 16, 0)}, "is not at"),
        (USER, {"captured": (Checkpoint.PANIC, Checkpoint.HANDOVER)}, "not captured at crash-kernel"),
    ],
)
def test_what_was_not_seen_is_no_verdict(
    machine: Machine, tmp_path: Path, name: str, news: dict[str, object], words: str
) -> None:
    machine.learn(**news)
    found = verdict(machine, tmp_path, name)
    assert (found.verdict, words in found.summary) == (Verdict.ERROR, True), found.summary


# ---------------------------------------------------------------- who wrote it


STORE = "8903"  # mov [ebx], eax
BEFORE: Instruction = (0xC0010000, "90", {})  # __crash_kexec: nop
FIRST: Instruction = (MACHINE_KEXEC, "90", {})


def test_the_instruction_that_overwrote_the_pgd_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, PGD + 4 * 85, struct.pack("<I", 0x39E067))
    machine.learn(symbols={"machine_kexec": MACHINE_KEXEC})
    machine.symbols = (Symbol("machine_kexec", MACHINE_KEXEC, MACHINE_KEXEC + 0x100),)
    record(machine, [BEFORE, FIRST, (MACHINE_KEXEC + 0x42, STORE, {"rbx": 0xC0000000 + PGD + 4 * 85})])
    evidence = machine.write(tmp_path)
    for name in ("pgd-survives", SPACE):
        found = run_check(name, evidence)
        assert found.verdict is Verdict.FAIL
        assert found.figures["writer"] == "machine_kexec+0x42"
        assert found.figures["writers"] == [
            {
                "step": 1,
                "address": MACHINE_KEXEC + 0x42,
                "symbol": "machine_kexec+0x42",
                "called_from": [],
                "instruction": "movl %eax, (%ebx)",
                "physical": PGD + 4 * 85,
                "bytes": 3,
            }
        ]


@pytest.mark.parametrize(
    ("checkpoint", "steps", "words"),
    [
        (Checkpoint.MACHINE_KEXEC, [(0xC0010004, STORE, {"rbx": PGD + 8}), FIRST], "0xc0010004"),
        (
            Checkpoint.MACHINE_KEXEC,
            [FIRST, (0xC0011004, STORE, {"rbx": PGD + 8})],
            "between panic and machine-kexec: not recor",
        ),
        (Checkpoint.HANDOVER, [FIRST, (0xC0011004, STORE, {"rbx": PGD + 12})], "no instruction of CPU 0"),
        (Checkpoint.HANDOVER, [], "unknown, between machine-kexec and handover"),
    ],
)
def test_a_writer_that_was_not_recorded_is_not_invented(
    machine: Machine, tmp_path: Path, checkpoint: Checkpoint, steps: list[Instruction], words: str
) -> None:
    machine.change(checkpoint, PGD + 8, struct.pack("<I", 0x39E067))
    machine.learn(symbols={"machine_kexec": MACHINE_KEXEC})
    record(machine, steps)
    found = run_check("pgd-survives", machine.write(tmp_path))
    assert found.verdict is Verdict.FAIL
    assert words in found.figures["writer"]


def test_tables_that_are_garbage_are_not_judged(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are followed: what the others map is not known."""
    machine.base[PGD // 4096] = words({0: 0x83, **{i: TABLE + (i % 2) * 0x1000 | 7 for i in range(1, 9)}})
    monkeypatch.setattr("rig.memory.walk.MOST_TABLES", 1)
    space = verdict(machine, tmp_path, SPACE)
    assert (space.verdict, "2 tables PT, of which 1 were read" in space.summary) == (Verdict.ERROR, True)
