from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rig import catalog
from rig.catalog import Registries
from rig.checks import REGISTRY
from rig.errors import CatalogueError, RequestError
from rig.model import Arch, Kernel, LoadKind, PagingMode, Verdict

ROOT = Path(__file__).resolve().parent.parent
KNOWN = Registries(
    checks={name: tuple(itertools.product(each.dumps, each.kinds)) for name, each in REGISTRY.items()},
    triggers=("sysrq-c", "thread", "kexec-e", "kexec-jump"),
    enters={"kexec-e": LoadKind.PLAIN, "kexec-jump": LoadKind.JUMP},
    loads={"kexec_load": LoadKind.CRASH, "plain": LoadKind.PLAIN, "jump": LoadKind.JUMP, "none": LoadKind.NONE},
    injections=("flip-pgd-bit",),
    own_task=("user-space-survives",),
    strangers=("thread",),
    later=tuple(name for name, each in REGISTRY.items() if not each.by_handover),
)

GUEST = """\
description = "a guest"
arch = "amd64"
paging = "4-level"
flavour = "amd64"
kernel = "stock"
memory = 512
cpus = 2
machine = "pc"
cpu = "qemu64"
crashkernel = "160M"
"""
KERNEL = """\
description = "a kernel"
package = 'linux-image-6\\.1-{flavour}'
"""
SCENARIO = """\
description = "a scenario"
trigger = "sysrq-c"
checks = ["pgd-survives"]
guests = ["box"]
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A whole small catalogue in tmp_path; returns a function that writes one more file of it."""

    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    put("guests/box.toml", GUEST)
    put("kernels/stock.toml", KERNEL)
    put("scenarios/crash.toml", SCENARIO)
    return put


def test_a_small_catalogue(write: Write, tmp_path: Path) -> None:
    found = catalog.read([tmp_path], KNOWN)
    guest = found.guests["box"]
    assert (guest.name, guest.arch, guest.paging, guest.memory) == ("box", Arch.AMD64, PagingMode.FOUR_LEVEL, 512)
    assert guest.cmdline == ""
    assert found.kernels["stock"].package == r"linux-image-6\.1-{flavour}"
    assert found.scenarios["crash"].checks == ("pgd-survives",)
    assert found.scenarios["crash"].expect is Verdict.PASS


def test_the_rigs_own_catalogue() -> None:
    found = catalog.load()
    assert {"i386", "pae", "x86_64"} <= set(found.guests)
    assert {guest.paging for guest in found.guests.values()} == set(PagingMode)
    assert "pgd-survives" in found.scenarios["overwritten-pgd"].expect_failed
    assert "{flavour}" in found.kernels["debian-6.1"].package


@pytest.mark.parametrize(
    ("name", "before", "after", "message", "hint"),
    [
        ("guests/box", "memory", "memroy", "unknown key 'memroy'; did you mean 'memory'?", "valid: arch, cmdline"),
        ("guests/box", "cpus = 2\n", "", "missing key 'cpus'", "a Guest needs: description, arch, paging"),
        ("guests/box", "= 512", '= "512"', "memory: Expected `int`, got `str`", ""),
        ("guests/box", "= 512", "= 512.0", "memory: Expected `int`, got `float`", ""),
        ("guests/box", "= 2\n", "= true\n", "cpus: Expected `int`, got `bool`", ""),
        ("guests/box", "= 2\n", "= 0\n", "cpus: 0 is less than one", ""),
        ("guests/box", "= 512", "= -512", "memory: -512 MiB is less", ""),
        ("guests/box", "= 512", "= 2_000_000", "memory: 2000000 MiB is more", ""),
        ("guests/box", '"amd64"\npaging', '"amd46"\npaging', "arch: 'amd46' is none", "valid: amd64, i386"),
        ("guests/box", "4-level", "6-level", "paging: '6-level' is none", "valid: 2-level, 4-level, 5-level, pae"),
        ("guests/box", '"stock"', '"stok"', "kernel: unknown name 'stok'; did you mean 'stock'?", "valid: stock"),
        ("guests/box", "memory =", "memory", "not valid TOML", ""),
        ("guests/box", "description", "hypervisor_cmdline = 'x'\ndescription", "cmdline: there is no hypervisor", ""),
        (
            "guests/box",
            'arch = "amd64"',
            'arch = "i386"\nhypervisor = "xen"',
            "hypervisor: there are hypervisors for amd64 only",
            "",
        ),
        ("guests/box", "description", "name = 'x'\ndescription", "unknown key 'name'", ""),
        ("kernels/stock", "package", "suite = 'a b'\npackage", "suite: 'a b' is no suite's name", ""),
        ("kernels/stock", "{flavour}", "(", "package: not a regular expression", ""),
        ("kernels/stock", "package", "vmlinux = 'nowhere'\npackage", "vmlinux: no such file", ""),
        (
            "kernels/stock",
            "package = 'linux-image-6\\.1-{flavour}'",
            "",
            "exactly one of package, source and image",
            "",
        ),
        (
            "scenarios/crash",
            "sysrq-c",
            "sysrq-d",
            "trigger: unknown name 'sysrq-d'",
            "valid: kexec-e, kexec-jump, sysrq-c",
        ),
        ("scenarios/crash", '"pgd-survives"', '"pgd-survive"', "did you mean 'pgd-survives'?", "valid: address-"),
        ("scenarios/crash", '["pgd-survives"]', "[]", "checks: the list is empty", ""),
        ("scenarios/crash", '["pgd-survives"]', '["pgd-survives", 1]', "checks: Expected `str`, got `int`", ""),
        ("scenarios/crash", '["pgd-survives"]', '"pgd-survives"', "checks: Expected `array`, got `str`", ""),
        ("scenarios/crash", '["box"]', '["box", "box"]', "guests: a name is listed twice", ""),
        ("scenarios/crash", '["box"]', '["bax"]', "guests: unknown name 'bax'; did you mean 'box'?", ""),
        ("scenarios/crash", "trigger", "expect = 'fail'\ntrigger", "expect_failed: must name the checks", ""),
        ("scenarios/crash", "trigger", "expect_failed = ['pgd-survives']\ntrigger", "and only then", ""),
        ("scenarios/crash", '"pgd-survives"', '"vmcore-faithful"', "dump: vmcore-faithful can't be judged", "valid: m"),
        ("scenarios/crash", "trigger", "expect = 'skip'\ntrigger", "expect: 'skip' can't be expected", ""),
        (
            "scenarios/crash",
            "trigger",
            "expect = 'fail'\nexpect_failed = ['x']\ntrigger",
            "expect_failed: unknown",
            "valid: pgd",
        ),
        (
            "scenarios/crash",
            "trigger",
            "sabotage = 'nothing'\ntrigger",
            "sabotage: unknown name 'nothing'",
            "flip-pgd-bit",
        ),
        (
            "scenarios/crash",
            "trigger",
            "dump = 'makedumpfile'\ndump_options = '-q'\ntrigger",
            "dump_options: '-q' is not valid; valid: [-E|-c|-l]",
            "",
        ),
        ("scenarios/crash", "trigger", "dump_options = '-c'\ntrigger", "only with dump = 'makedumpfile'", ""),
        ("scenarios/crash", "trigger", "dump_to = 'disk'\ntrigger", "dump_to: only with a whole dump", ""),
        ("scenarios/crash", "trigger", "dump_to = 'tape'\ntrigger", "dump_to: 'tape' is none", "valid: disk, ssh"),
        ("scenarios/crash", "trigger", "sabotage = 'x y'\ntrigger", "sabotage: 'y' is not a module parameter", ""),
    ],
)
def test_bad_files_are_refused_by_file_and_key(
    write: Write, tmp_path: Path, name: str, before: str, after: str, message: str, hint: str
) -> None:
    good = (tmp_path / f"{name}.toml").read_text()
    assert before in good
    path = write(f"{name}.toml", good.replace(before, after))
    with pytest.raises(CatalogueError) as raised:
        catalog.read([tmp_path], KNOWN)
    assert str(path) in raised.value.message
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.exit_code == 2


def test_a_file_that_is_not_text(write: Write, tmp_path: Path) -> None:
    (tmp_path / "guests/box.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CatalogueError, match="not valid TOML"):
        catalog.read([tmp_path], KNOWN)


def test_a_directory_where_a_file_should_be(write: Write, tmp_path: Path) -> None:
    (tmp_path / "guests/dir.toml").mkdir()
    with pytest.raises(CatalogueError, match="Is a directory"):
        catalog.read([tmp_path], KNOWN)


def test_a_name_that_would_break_ids(write: Write, tmp_path: Path) -> None:
    write("guests/a@b.toml", GUEST)
    with pytest.raises(CatalogueError, match="'a@b' can't be one"):
        catalog.read([tmp_path], KNOWN)


def test_paths_in_a_file_are_relative_to_it(write: Write, tmp_path: Path) -> None:
    write("kernels/images/bzImage", "")
    write("kernels/mine.toml", 'description = "my kernel"\nimage = "images/bzImage"\n')
    expected = Kernel(name="mine", description="my kernel", image=tmp_path / "kernels/images/bzImage", home=tmp_path)
    assert catalog.read([tmp_path], KNOWN).kernels["mine"] == expected


def test_sabotage_names_a_control_or_an_injection(write: Write, tmp_path: Path) -> None:
    write("kernels/controls/spoil/Makefile", "")
    write("scenarios/spoilt.toml", SCENARIO + 'sabotage = "spoil what=pte"\n')
    write("scenarios/flipped.toml", SCENARIO + 'sabotage = "flip-pgd-bit"\n')
    scenario = catalog.read([tmp_path], KNOWN).scenarios["spoilt"]
    assert (scenario.control, scenario.parameters) == ("spoil", "what=pte")
    assert catalog.control(scenario) == tmp_path / "kernels/controls/spoil"
    own = dataclasses.replace(scenario, sabotage="damage what=pte")
    assert catalog.control(own) == ROOT / "kernels/controls/damage"
    assert catalog.control(dataclasses.replace(scenario, sabotage="flip-pgd-bit")) is None  # an injection, no module


@pytest.mark.parametrize(("dump", "faithful"), [("headers", False), ("raw", True)])
def test_without_checks_a_scenario_has_all_that_its_dump_allows(
    write: Write, tmp_path: Path, dump: str, faithful: bool
) -> None:
    every = SCENARIO.replace('checks = ["pgd-survives"]', f'dump = "{dump}"')
    write("scenarios/every.toml", every + 'expect = "fail"\nexpect_failed = ["memory-accounted"]\n')
    found = catalog.read([tmp_path], KNOWN).scenarios["every"].checks
    crash = {name for name, ways in KNOWN.checks.items() if any(kind is LoadKind.CRASH for _, kind in ways)}
    assert set(found) == {name for name in crash if faithful or name != "vmcore-faithful"}


def test_without_a_crash_kernel_only_the_plain_panic_is_judged(write: Write, tmp_path: Path) -> None:
    write("scenarios/none.toml", SCENARIO.replace('checks = ["pgd-survives"]', 'load = "none"'))
    assert catalog.read([tmp_path], KNOWN).scenarios["none"].checks == ("plain-panic",)


def test_a_task_that_does_not_die_is_not_judged(write: Write, tmp_path: Path) -> None:
    write("scenarios/thread.toml", SCENARIO.replace('checks = ["pgd-survives"]', "").replace("sysrq-c", "thread"))
    found = catalog.read([tmp_path], KNOWN).scenarios["thread"].checks
    assert "user-space-survives" not in found
    assert "address-space-survives" in found
    named = SCENARIO.replace('"pgd-survives"', '"user-space-survives"').replace("sysrq-c", "thread")
    write("scenarios/thread.toml", named)
    with pytest.raises(CatalogueError, match="user-space-survives can't be judged with thread"):
        catalog.read([tmp_path], KNOWN)


@pytest.mark.parametrize(
    ("load", "trigger", "valid"),
    [
        ("plain", "sysrq-c", "kexec-e"),
        ("none", "kexec-e", "sysrq-c, thread"),
        ("jump", "kexec-e", "kexec-jump"),
        ("plain", "kexec-jump", "kexec-e"),
    ],
)
def test_a_trigger_enters_the_kind_of_image_that_is_loaded(
    write: Write, tmp_path: Path, load: str, trigger: str, valid: str
) -> None:
    other = SCENARIO.replace("sysrq-c", trigger).replace('checks = ["pgd-survives"]', f'load = "{load}"')
    path = write("scenarios/other.toml", other)
    with pytest.raises(CatalogueError, match=f"{path}: trigger: '{trigger}'") as caught:
        catalog.read([tmp_path], KNOWN)
    assert caught.value.hint == f"valid: {valid}"


def test_a_users_catalogue_adds_to_the_first(write: Write, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write("own/guests/mine.toml", GUEST)  # refers to a kernel of the other directory
    found = catalog.read([tmp_path, own], KNOWN)
    assert set(found.guests) == {"box", "mine"}
    assert found.files["guests", "mine"] == own / "guests/mine.toml"


def test_duplicates_name_both_files(write: Write, tmp_path: Path) -> None:
    second = write("own/guests/box.toml", GUEST)
    with pytest.raises(CatalogueError) as raised:
        catalog.read([tmp_path, tmp_path / "own"], KNOWN)
    assert str(second) in raised.value.message
    assert str(tmp_path / "guests/box.toml") in raised.value.message


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_an_extra_directory_that_is_no_catalogue(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is not a catalogue directory"):
        catalog.load([tmp_path / name], known=KNOWN)


def test_extra_directories_from_environment_and_options(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    environ = {"RIG_CATALOGUE": f"{a}{os.pathsep}{os.pathsep}{b}"}
    assert catalog.extra_roots([], environ) == (a, b)
    assert catalog.extra_roots([b, tmp_path / "c"], environ) == (a, b, tmp_path / "c")
    assert catalog.extra_roots([], {}) == ()


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(RequestError) as raised:
        catalog.find({"i386": 1, "pae": 2, "x86_64": 3}, "x86-64", "guest")
    assert raised.value.message == "unknown guest 'x86-64'; did you mean 'x86_64'?"
    assert raised.value.hint == "valid: i386, pae, x86_64"
    assert catalog.find({"pae": 2}, "pae", "guest") == 2


def test_a_name_near_nothing_suggests_nothing() -> None:
    with pytest.raises(RequestError, match=r"^unknown guest 'zzz'\n"):
        catalog.find({"pae": 2}, "zzz", "guest")


def test_a_guest_like_another_differs_in_what_it_says(write: Write, tmp_path: Path) -> None:
    write("guests/wide.toml", 'like = "box"\ndescription = "more of it"\ncpus = 4\n')
    guests = catalog.read([tmp_path], KNOWN).guests
    assert guests["wide"] == dataclasses.replace(guests["box"], name="wide", description="more of it", cpus=4)


@pytest.mark.parametrize(("other", "message"), [("bocks", "unknown name 'bocks'"), ("wide", "is itself like box")])
def test_likeness_that_leads_nowhere(write: Write, tmp_path: Path, other: str, message: str) -> None:
    write("guests/wide.toml", 'like = "box"\n')
    write("guests/wider.toml", f'like = "{other}"\n')
    with pytest.raises(CatalogueError, match=message):
        catalog.read([tmp_path], KNOWN)


def test_a_check_of_a_crash_kernel_is_refused_without_one(write: Write, tmp_path: Path) -> None:
    write("scenarios/crash.toml", SCENARIO + 'load = "none"\n')
    with pytest.raises(CatalogueError, match=r"load: pgd-survives can't be judged with none") as caught:
        catalog.read([tmp_path], KNOWN)
    assert "kexec_load" in caught.value.hint


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ('scenarios = ["crash*", "crush*"]', r"cells.scenarios: unknown name 'crush\*'"),
        ('scenarios = ["crash"]\nkernel = ["stock"]', "unknown key 'kernel'; did you mean 'kernels'"),
        ('guests = ["box"]', "cells: .*scenarios"),
    ],
)
def test_wrong_selections(write: Write, tmp_path: Path, cells: str, message: str) -> None:
    path = write("scenarios/selections/night.toml", f'description = "some"\n[[cells]]\n{cells}\n')
    with pytest.raises(CatalogueError, match=message) as caught:
        catalog.read([tmp_path], KNOWN)
    assert str(path) in caught.value.message


def test_a_scenario_that_ends_at_the_handover_has_all_that_is_judged_by_then(write: Write, tmp_path: Path) -> None:
    write("scenarios/short.toml", SCENARIO.replace('checks = ["pgd-survives"]', 'until = "handover"'))
    found = catalog.read([tmp_path], KNOWN).scenarios["short"].checks
    assert "pgd-survives" in found
    assert not {*found} & {*KNOWN.later}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('checks = ["vmcore-registers"]\nuntil = "handover"', "checks: vmcore-registers is judged by what comes after"),
        ('load = "none"\nuntil = "handover"', "until: a run with load = 'none' does not end at a hand-over"),
        ('dump = "raw"\nuntil = "handover"', "until: there is no dump to take"),
        ('until = "panic"', "until: 'panic' is none of the valid values"),
    ],
)
def test_what_can_not_end_at_the_handover(write: Write, tmp_path: Path, line: str, says: str) -> None:
    path = write("scenarios/short.toml", SCENARIO.replace('checks = ["pgd-survives"]', line))
    with pytest.raises(CatalogueError, match=rf"{path}: {re.escape(says)}"):
        catalog.read([tmp_path], KNOWN)
