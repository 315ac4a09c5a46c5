"""What a run would be if it were done again: by forged evidence of one, and files that are tampered with."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rig
from rig import ingredients, prepare, rerun
from rig.errors import Cancelled, EvidenceError, PackageError, RequestError
from rig.evidence.reader import Evidence
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts
from rig.guest.packages import PackageCache
from rig.model import CheckResult, Ingredients, Options, RunPlan, RunResult, Verdict
from rig.vm.machine import Wiring, argv
from tests.forge import GUEST, IDENTITY, KERNEL, scenario
from tests.test_ingredients import PACKAGE, made

QEMU = "QEMU emulator version 7.2.22 (Debian 1:7.2-1)"
PLAN = RunPlan(scenario(), GUEST, replace(KERNEL, package="linux-image-.*"), KERNEL)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has that QEMU; the initramfs is no more than the names of what is in it."""
    monkeypatch.setattr(rerun, "qemu_version", lambda: QEMU)
    monkeypatch.setattr(prepare, "keyless", lambda _, made_of: made_of.init.name)
    monkeypatch.setattr(prepare, "gather", lambda *_: pytest.fail("asked the package sources"))


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache", sources="")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "linux/bzImage"


@pytest.fixture
def facts(cache: PackageCache, mine: Path) -> Facts:
    """Of a run that was done here a moment ago."""
    made_of = made(cache.cache.root, mine)
    first, crash = prepare.cmdlines(GUEST, PLAN.scenario, "6.1")
    spec = replace(prepare.machine(PLAN, made_of, "tcg", Path("results/.run"), None), initrd=Path("/proc/7/fd/9"))
    told: dict[str, Any] = {"qemu": QEMU, "accel": "tcg", "cmdline": first, "crash_cmdline": crash}
    return Facts(
        rig=rig.__version__,
        plan=PLAN,
        kernel=IDENTITY,
        crash_kernel=IDENTITY,
        manifest=ingredients.record(made_of, cache.cache.root, "init"),
        environment={**told, "argv": argv(spec, Wiring(5, 11, 13, 15, 17)), "sabotage_seed": 7, "deadline": 90.0},
    )


def examine(facts: Facts, cache: PackageCache, accel: str = "tcg") -> rerun.Outlook:
    return rerun.examine(facts, cache, Options(accel=accel), threading.Event())


def told(facts: Facts, **changes: object) -> Facts:
    return replace(facts, environment={**facts.environment, **changes})


def test_nothing_has_changed(facts: Facts, cache: PackageCache, mine: Path) -> None:
    outlook = examine(facts, cache)
    assert (outlook.differences, outlook.notes) == ((), ())
    assert outlook.made_of == made(cache.cache.root, mine)


def left(facts: Facts, results: Path) -> Path:
    """An evidence directory that says so."""
    writer = EvidenceWriter(results, "run")
    writer.write("run.json", to_json(facts))
    return writer.finish()


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ({"guest": replace(GUEST, machine="pc,dumpdtb=/tmp/x")}, "plan.guest.machine: 'pc,dumpdtb=/tmp/x' is not a"),
        ({"kernel": replace(KERNEL, source="-oX")}, "plan.kernel.source: '-oX' is not a package's name"),
        ({"scenario": scenario(cmdline="a\nreboot")}, "plan.scenario.cmdline: 'a\\\\nreboot' is not a command line"),
    ],
)
def test_what_no_rig_would_have_written_is_not_run(
    facts: Facts, tmp_path: Path, plan: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        rerun.read_evidence(left(replace(facts, plan=replace(PLAN, **plan)), tmp_path))


def test_evidence_does_not_say_what_is_unpacked_where(facts: Facts, tmp_path: Path) -> None:
    """A package's name is part of the path that it is unpacked to."""
    assert facts.manifest is not None
    packages = {path: replace(package, name="../../x") for path, package in facts.manifest.packages.items()}
    with pytest.raises(RequestError, match=r"'\.\./\.\./x' is not a package's name"):
        rerun.read_evidence(left(replace(facts, manifest=replace(facts.manifest, packages=packages)), tmp_path))


def test_evidence_does_not_say_what_make_is_run_on(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's evidence names a catalogue of its own, with a module in it that has a Makefile."""
    (tmp_path / "theirs/kernels/controls/evil").mkdir(parents=True)
    plan = replace(PLAN, scenario=replace(scenario(), sabotage="evil", home=tmp_path / "theirs"))
    directory = left(replace(facts, plan=plan), tmp_path)
    with pytest.raises(RequestError, match="evil is to be built from files of the catalogue") as caught:
        rerun.read_evidence(directory)
    assert caught.value.hint.endswith(f"RIG_CATALOGUE={tmp_path / 'theirs'}")
    monkeypatch.setenv("RIG_CATALOGUE", str(tmp_path / "theirs"))
    assert rerun.read_evidence(directory).facts.plan == plan


def test_what_the_user_built_again_or_removed(facts: Facts, cache: PackageCache, mine: Path) -> None:
    mine.write_text("built again")
    (difference,) = examine(facts, cache).differences
    assert difference.startswith(f"{mine} has changed: sha256 ")
    mine.unlink()
    assert examine(facts, cache).differences == (f"{mine} is gone",)


def test_a_package_that_is_offered_no_more(facts: Facts, cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files of the package are one line; the very package is what is asked for."""
    asked: list[str] = []

    def gather(plan: RunPlan, *_: object) -> Ingredients:
        asked.append(plan.kernel.package)
        raise PackageError("no such package any more")

    monkeypatch.setattr(prepare, "gather", gather)
    for name in ("boot/vmlinuz", "a.ko"):
        (cache.cache.root / "trees/kernel-0123456789ab" / name).unlink()
    outlook = examine(facts, cache)
    assert outlook.differences == (
        f"{PACKAGE} is no longer in the cache",
        "could not be fetched: no such package any more",
    )
    assert outlook.made_of is None
    assert asked == [r"linux\-image\-6\.1"]


def test_a_package_that_is_still_offered_comes_back(
    facts: Facts, cache: PackageCache, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "gather", lambda *_: made(cache.cache.root, mine))
    (cache.cache.root / "trees/kernel-0123456789ab/a.ko").unlink()
    assert examine(facts, cache).differences == ()


def test_cancelled_while_asking(facts: Facts, cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(*_: object) -> Ingredients:
        raise Cancelled("stopped on request")

    monkeypatch.setattr(prepare, "gather", gather)
    (cache.cache.root / "modules/damage.ko").unlink()
    with pytest.raises(Cancelled):
        examine(facts, cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qemu": QEMU.replace("7.2.22", "9.1.0")}, "QEMU is another"),
        ({"cmdline": "console=ttyS0 nokaslr"}, "cmdline is another"),
        ({"crash_cmdline": "nosmp"}, "crash_cmdline is another: nosmp then"),
        ({"accel": "kvm"}, "it ran under kvm"),
    ],
)
def test_another_machine_or_other_command_lines(
    facts: Facts, cache: PackageCache, changes: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rig.vm.accel._find_trouble", lambda: "no /dev/kvm")
    monkeypatch.setattr("rig.vm.accel.qemu_version", lambda: QEMU)
    outlook = examine(told(facts, **changes), cache, changes.get("accel", "tcg"))
    assert any(words in difference for difference in outlook.differences), outlook


def test_another_machine_than_qemu_was_given(facts: Facts, cache: PackageCache) -> None:
    words = ["999M" if word == f"{GUEST.memory}M" else word for word in facts.environment["argv"]]
    (difference,) = examine(told(facts, argv=words), cache).differences
    assert difference == f"QEMU's options are others: 999M then, {GUEST.memory}M now"


def test_the_monitor_of_a_held_guest_is_no_other_machine(facts: Facts, cache: PackageCache) -> None:
    held = [
        "-chardev",
        "socket,id=monitor,path=/tmp/rig-x/qmp,server=on,wait=off",
        "-mon",
        "chardev=monitor,mode=control",
    ]
    assert not examine(told(facts, argv=[*facts.environment["argv"], *held]), cache).differences


def test_another_initramfs_of_the_same_files(facts: Facts, cache: PackageCache) -> None:
    assert facts.manifest is not None
    other = replace(facts, manifest=replace(facts.manifest, initramfs="another rig's"))
    assert examine(other, cache).differences == ("this rig makes another initramfs of the same files",)


def test_what_is_only_noted(facts: Facts, cache: PackageCache) -> None:
    outlook = examine(replace(told(facts, qemu=QEMU.replace("7.2-1", "7.2-2")), rig="0.0.1"), cache)
    assert outlook.differences == ()
    assert ["the same version of QEMU" in outlook.notes[0], "rig 0.0.1" in outlook.notes[1]] == [True, True]


def test_anyway_takes_what_is_there_and_says_what_is_not(
    facts: Facts, cache: PackageCache, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text("built again")
    outlook = examine(facts, cache)
    fresh = made(tmp_path / "fresh", tmp_path / "fresh/linux/bzImage")
    monkeypatch.setattr(prepare, "gather", lambda *_: fresh)
    made_of = rerun.substitute(facts, outlook, cache, threading.Event())
    assert (made_of.crash_kernel, made_of.kernel) == (fresh.crash_kernel, made(cache.cache.root, mine).kernel)
    repeat = rerun.repeat(Path("/there"), facts, outlook, made_of)
    assert repeat.told["of"] == "/there"
    assert any(str(mine) in line for line in repeat.told["differences"])
    lines = str(rerun.refuse(Path("/there"), outlook)).splitlines()
    assert lines[0] == "/there can't be repeated as it was:"
    assert "--anyway" in lines[-1]


def test_evidence_of_an_older_rig(facts: Facts, cache: PackageCache, mine: Path) -> None:
    outlook = examine(replace(facts, manifest=None), cache)
    assert "does not say what it was made of" in outlook.differences[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "gather", lambda *_: made(cache.cache.root, mine))
        assert rerun.substitute(facts, outlook, cache, threading.Event()).crash_kernel.bzimage == mine


# ---------------------------------------------------------------- the directory, and what comes after


def written(tmp_path: Path, facts: Facts) -> Path:
    writer = EvidenceWriter(tmp_path / "results", "run")
    writer.write("run.json", to_json(facts))
    return writer.finish()


def test_options_that_matter_are_those_of_the_run(facts: Facts, tmp_path: Path) -> None:
    directory = written(tmp_path, facts)
    (directory / "memory/panic.ram.zst").touch()
    options = rerun.options_of(rerun.read_evidence(directory), Options(results=Path("new")))
    expected = Options(results=Path("new"), accel="tcg", deadline=90.0, seed=7, keep_memory=True)
    assert options == expected


def test_what_can_be_no_run(facts: Facts, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no run\.json"):
        rerun.read_evidence(tmp_path)
    with pytest.raises(RequestError, match="nothing was run: the CPU lacks it"):
        rerun.read_evidence(written(tmp_path, replace(facts, skip="the CPU lacks it")))
    future = replace(facts, plan=replace(PLAN, scenario=scenario(checks=("pgd-survives", "telepathy"))))
    with pytest.raises(RequestError, match="this rig has no check telepathy"):
        rerun.read_evidence(written(tmp_path, future))


def result(verdict: Verdict, **checks: Verdict) -> RunResult:
    found = tuple(CheckResult(name, verdict, "") for name, verdict in checks.items())
    return RunResult("s@g/k", "s", "g", IDENTITY, IDENTITY, Verdict.PASS, verdict, found, (), {})


def test_verdicts_that_changed_are_named() -> None:
    before = result(Verdict.PASS, a=Verdict.PASS, b=Verdict.PASS)
    after = result(Verdict.FAIL, a=Verdict.PASS, c=Verdict.FAIL)
    changed = rerun.changes(before, after)
    assert [(c.name, c.before, c.after) for c in changed] == [
        ("the run", "pass", "fail"),
        ("b", "pass", ""),
        ("c", "", "fail"),
    ]
    about = {"of": "/there", "differences": ["QEMU is another"], "notes": []}
    assert rerun.lines(about, changed) == [
        "not the same run: QEMU is another",
        "verdicts that are not those of /there:",
        "  the run  pass -> fail",
        "  b        pass -> none",
        "  c        none -> fail",
    ]
    assert rerun.lines({**about, "differences": []}, []) == ["verdicts: the same as in /there"]


# ---------------------------------------------------------------- evidence of strangers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deadline": "soon"}, "Expected `float"),
        ({"deadline": -1.0}, "deadline"),
        ({"accel": "../kvm"}, "accel"),
        ({"sabotage_seed": "x"}, "sabotage_seed"),
        ({"argv": [["-cpu"]]}, "argv"),
        ({"qemu": 7}, "qemu"),
    ],
)
def test_an_environment_that_makes_no_sense(facts: Facts, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EvidenceError, match=f"run.json: environment: .*{said}"):
        rerun.options_of(write(tmp_path, told(facts, **changes)), Options())


def test_what_goes_into_a_command_line_is_held_to_the_catalogue(facts: Facts, tmp_path: Path) -> None:
    source = replace(KERNEL, package="", source="linux-source-6.1", config=("base",))
    for plan, said in (
        (
            replace(PLAN, guest=replace(GUEST, machine="pc,firmware=/etc/passwd")),
            "plan.guest.machine: .* is not a machine",
        ),
        (
            replace(PLAN, kernel=replace(source, patch="../../evil")),
            "patch: '../../evil' is not",
        ),
        (replace(PLAN, kernel=replace(source, config=("..",))), "config: '..' is not"),
        (replace(PLAN, kernel=replace(source, name="../x")), "'../x' can't be a name"),
    ):
        evidence = write(tmp_path, replace(facts, plan=plan))
        with pytest.raises(RequestError, match=rf"run\.json: .*{said}"):
            rerun.read_evidence(evidence.path)


def write(results: Path, facts: Facts) -> Evidence:
    writer = EvidenceWriter(results / "results", facts.plan.slug)
    writer.write("run.json", to_json(facts))
    return Evidence(writer.finish())
