"""What `rig selftest` runs, and what it makes of the results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig.catalog import Catalogue
from rig.errors import RequestError
from rig.model import (
    Arch,
    CheckResult,
    Guest,
    Kernel,
    KernelIdentity,
    PagingMode,
    RunResult,
    Scenario,
    Verdict,
)
from rig.selftest import lines, plans, rows, unproved

BOX = Guest("box", "", Arch.AMD64, PagingMode.FOUR_LEVEL, "amd64", "stock", 512, 1, "pc", "qemu64", "160M")
GUESTS = {
    "x86_64": replace(BOX, name="x86_64"),
    "x86_64-pti": replace(BOX, name="x86_64-pti", cmdline="pti=on"),
    "pae": replace(BOX, name="pae", arch=Arch.I386, paging=PagingMode.PAE),
}
KERNELS = {
    "stock": Kernel("stock", "", package="linux"),
    "built": Kernel("built", "", source="linux-source"),
    "built-bad": Kernel("built-bad", "", source="linux-source", patch="bad"),
}


def scenario(name: str, *guests: str, sabotage: str = "", kernel: str = "") -> Scenario:
    return Scenario(name, "", "sysrq-c", guests, ("pgd-survives",), kernel=kernel, sabotage=sabotage)


SCENARIOS = [
    scenario("panic", "x86_64", "pae"),
    scenario("built-panic", "x86_64", kernel="built"),
    scenario("module", "x86_64", "pae", sabotage="damage what=pgd"),
    scenario("twin", "x86_64-pti", sabotage="damage what=user-twin"),
    scenario("only-pae", "pae", sabotage="damage what=pte"),
    scenario("patched", "x86_64", "pae", kernel="built-bad"),
    replace(scenario("torn", "x86_64", sabotage="torn-image"), load="plain"),
]
CATALOGUE = Catalogue(GUESTS, KERNELS, {s.name: s for s in SCENARIOS}, selections={}, files={})


@pytest.mark.parametrize(
    ("guests", "quick", "expected"),
    [
        (
            (),
            False,
            [
                "module@x86_64",
                "module@pae",
                "twin@x86_64-pti",
                "only-pae@pae",
                "patched@x86_64",
                "patched@pae",
                "torn@x86_64",
            ],
        ),
        # x86_64-pti pages like x86_64, and stands in for it
        ((), True, ["module@x86_64", "twin@x86_64-pti"]),
        (("pae",), True, ["module@pae", "only-pae@pae"]),
        (("pae",), False, ["module@pae", "only-pae@pae", "patched@pae"]),
        (("x86_64-pti",), True, ["module@x86_64", "twin@x86_64-pti"]),
    ],
)
def test_what_is_run(guests: tuple[str, ...], quick: bool, expected: list[str]) -> None:
    assert [one.id.split("/")[0] for one in plans(CATALOGUE, guests, quick)] == expected


def test_nothing_to_run_is_a_wrong_request() -> None:
    none = replace(CATALOGUE, scenarios={"only-pae": CATALOGUE.scenarios["only-pae"]})
    with pytest.raises(RequestError, match="no sabotage runs on x86_64"):
        plans(none, ("x86_64",))
    with pytest.raises(RequestError, match="unknown guest 'x86'"):
        plans(CATALOGUE, ("x86",))


IDENTITY = KernelIdentity("stock", "6.1", "0")
REGISTRY = ("pgd-survives", "crash-kernel-boots", "memory-accounted", "vmcore-registers", "vmcore-faithful")


def result(name: str, verdicts: str, *expected: str, surprise: str = "") -> RunResult:
    """verdicts: of the registry's checks in order: p(ass), f(ail), e(rror); blank: not asked for."""
    named = {"p": Verdict.PASS, "f": Verdict.FAIL, "e": Verdict.ERROR}
    checks = [
        CheckResult(check, named[v], "", {"entries_changed": [{"index": 3}]} if check == "pgd-survives" else {})
        for check, v in zip(REGISTRY, verdicts, strict=False)
        if v != " "
    ]
    return RunResult(
        id=f"{name}@box/stock",
        scenario=name,
        guest="box",
        kernel=IDENTITY,
        crash_kernel=IDENTITY,
        expect=Verdict.FAIL if expected else Verdict.PASS,
        verdict=Verdict.worst(c.verdict for c in checks),
        checks=tuple(checks),
        phases=(),
        environment={},
        expect_failed=expected,
        surprise=surprise,
    )


RESULTS = [
    result("pgd", "fppp", "pgd-survives"),
    result("dead", "efee", "crash-kernel-boots"),
    result("missed", "pppp", "memory-accounted", surprise="went unnoticed by memory-accounted"),
    result("extra", "ffpp", "pgd-survives", surprise="crash-kernel-boots failed"),
]


def test_the_table_says_expected_and_seen_for_each_check() -> None:
    printed = lines(rows(RESULTS), REGISTRY)
    assert printed[:5] == [
        "            a b c d e",
        "pgd@box     F . . .",
        "dead@box    - F - -",
        "missed@box  . . ! .",
        "extra@box   F X . .",
    ]
    assert "e vmcore-faithful" in printed
    text = "\n".join(printed)
    assert "MISSED  missed@box/stock: memory-accounted should fail\n  went unnoticed by memory-accounted" in text
    assert text.endswith("2 of 4 sabotages were caught by exactly the checks that should catch them")
    assert all(len(line) <= 80 for line in printed)


def test_a_check_is_proved_only_by_a_sabotage_that_was_caught_as_it_should() -> None:
    """memory-accounted noticed nothing, crash-kernel-boots failed for a death alone."""
    assert unproved(rows(RESULTS), REGISTRY) == ["memory-accounted", "vmcore-registers", "vmcore-faithful"]
    assert "pgd-survives" in unproved(rows(RESULTS[1:]), REGISTRY)  # `extra` hit something else as well


def test_the_entries_named_are_kept() -> None:
    assert rows(RESULTS)[0].entries == (3,)
