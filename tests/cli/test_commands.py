"""The commands beside `rig run`, against rooms that are only pretended."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig import cli
from rig.commands import stock
from rig.errors import MachineError, RequestError
from rig.model import Options, RunPlan, RunResult, Verdict
from rig.plan import plan
from tests.cli.pretended import Conductor, pretend, result, words


def test_check_prints_what_run_prints(
    conductor: Conductor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: dict[Path, RunResult] = {}

    def run(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
        where = options.results / plan.slug
        kept[where] = replace(result(plan), verdict=Verdict.FAIL, surprise="pgd-survives failed")
        return kept[where], where

    conductor(run)
    pretend(monkeypatch, "rig.judge", judge_dir=lambda path: kept[path])
    for extra in ([], ["--json"]):
        assert cli.main([*words("run panic --jobs 1"), *extra]) == 1
        ran = capsys.readouterr().out
        assert cli.main(["check", *map(str, kept), *extra]) == 1
        assert capsys.readouterr().out == ran


def test_check_of_what_is_no_evidence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def judge_dir(path: Path) -> RunResult:
        raise RequestError(f"{path} is not an evidence directory")

    pretend(monkeypatch, "rig.judge", judge_dir=judge_dir)
    assert cli.main(["check", "nowhere"]) == 2
    assert capsys.readouterr().err == "rig: nowhere is not an evidence directory\n"


@pytest.mark.usefixtures("conductor")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "guests"]) == 0
    heading, *names = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    assert heading == "guests:"
    assert {"i386", "pae", "x86_64"} <= set(names)
    assert cli.main(["list"]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert headings == [f"{part}:" for part in stock.LISTS]
    assert cli.main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"schema", *stock.LISTS}
    assert {"name": "pgd-survives", "description": "described"} in document["checks"]


@pytest.mark.usefixtures("conductor")
def test_fetch_gets_what_the_selected_runs_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    class Cache:
        def __init__(self, progress: Callable[[str], None], *, refresh: bool) -> None:
            assert refresh
            self.progress = progress
            self.cache = types.SimpleNamespace(root=Path("/cache"))

        def kernel(self, kernel: Any, guest: Any) -> Any:
            self.progress(f"downloading {kernel.name}")
            asked.append(f"kernel {guest.flavour}")
            return types.SimpleNamespace(name=kernel.name, release=f"6.1.0-1-{guest.flavour}")

        def package(self, name: str, arch: Any, suite: str) -> Any:
            asked.append(f"source {name} {suite}".strip())
            return types.SimpleNamespace(version="6.1.1-1")

        def userland(self, arch: Any, dump: Any) -> None:
            asked.append(f"userland {arch}{' and makedumpfile' * (dump == 'makedumpfile')}")

        def headers(self, kernel: Any, package: str) -> None:
            asked.append(f"headers {kernel.release}")

    pretend(monkeypatch, "rig.guest.packages", PackageCache=Cache)
    assert cli.main(words("fetch --guest pae")) == 0
    assert set(asked) == {
        "kernel 686-pae",
        "userland i386",
        "userland i386 and makedumpfile",
        "headers 6.1.0-1-686-pae",
        "source linux-source-6.1",
        "source linux-source-7.2 sid",
        # of the scenarios that kexec into another architecture
        "kernel 686",
        "kernel amd64",
        "userland amd64",
    }
    out, err = capsys.readouterr()
    assert "debian-6.1 for pae: 6.1.0-1-686-pae\n" in out
    assert "built-6.1-overwrite-pgd for pae: to be built from linux-source-6.1 6.1.1-1\n" in out
    assert "downloading debian-6.1" in err

    asked.clear()
    assert cli.main(words("fetch --guest i386 --kernel debian-sid --crash-kernel debian-sid")) == 0
    assert asked == []  # there is no such kernel for it
    assert capsys.readouterr().out == "debian-sid for i386: nothing: debian-sid has no flavour 686; it has amd64\n"
    assert cli.main(words("fetch --guest i386 --kernel built-7.2 --crash-kernel built-7.2")) == 0
    assert "source linux-source-7.2 sid" in asked


@pytest.mark.usefixtures("conductor")
def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def choose(_wanted: str) -> Any:
        raise MachineError("no accelerator at all", hint="buy one")

    pretend(monkeypatch, "rig.guest.cache", default_root=lambda: tmp_path)
    pretend(monkeypatch, "rig.vm.accel", choose=choose)
    monkeypatch.setattr("rig.doctor.probe_version", lambda _program: (7, 2))
    assert cli.main(["doctor", "--json"]) == 3
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["accelerator"] == {
        "name": "accelerator",
        "state": "missing",
        "found": "no accelerator at all",
        "remedy": "buy one",
    }
    good = types.SimpleNamespace(name="tcg", reason="KVM crawls")
    pretend(monkeypatch, "rig.vm.accel", choose=lambda _wanted: good)
    monkeypatch.setattr("rig.doctor.CACHE_SPACE", 0)
    monkeypatch.setattr("rig.doctor.RESULTS_SPACE", 0)
    monkeypatch.setattr("rig.doctor.available_memory", lambda: 100_000)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert cli.main(["doctor"]) == 0
    assert "tcg (KVM crawls)" in capsys.readouterr().out


@pytest.mark.usefixtures("conductor")
@pytest.mark.parametrize(
    ("line", "unproved", "code"),
    [
        ("selftest --quick", ["some-check"], 0),  # not everything was run
        ("selftest", ["some-check"], 1),
        ("selftest --all", [], 0),
    ],
)
def test_selftest_fails_for_a_check_that_no_sabotage_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    unproved: list[str],
    code: int,
) -> None:
    pretend(
        monkeypatch,
        "rig.selftest",
        plans=lambda catalogue, _guests, _quick: plan(catalogue, ["overwritten-pgd"], ["pae"]),
        rows=lambda results: [one.id for one in results],
        unproved=lambda _table, _registry: unproved,
        lines=lambda table, _registry: [f"caught {row}" for row in table],
    )
    assert cli.main(words(line)) == code
    assert "caught overwritten-pgd@pae/debian-6.1\n" in capsys.readouterr().out
    assert cli.main(words(f"{line} --json")) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["sabotages"], document["unproved"]) == (["overwritten-pgd@pae/debian-6.1"], unproved)


@pytest.mark.parametrize(
    ("kernel", "guest", "told"),
    [
        ("debian-6.1", "pae", "debian-6.1 is not built from source"),
        ("built-6.1-2g", "x86_64", "built-6.1-2g exists for 686, 686-pae only"),
    ],
)
def test_what_can_not_be_built(kernel: str, guest: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", kernel, "--guest", guest]) == 2
    assert told in capsys.readouterr().err
