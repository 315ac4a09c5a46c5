"""`rig run`: what reaches the runs, what is refused before them, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rig import cli
from rig.errors import UnsuitableKernel
from rig.model import Options, RunPlan, RunResult, Verdict
from tests.cli.pretended import ALL_THREE, ROOT, Conductor, result, words


@pytest.mark.usefixtures("conductor")
def test_run_prints_a_verdict_per_guest_and_progress_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic")) == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("panic")] == [f"{one}: pass" for one in ALL_THREE]
    assert "in results/panic_pae_debian-6.1" in out
    assert "panic@pae/debian-6.1: started" in err
    assert Path("results").is_dir()


@pytest.mark.usefixtures("conductor")
def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic --guest pae --json --results out")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    (one,) = document["runs"]
    assert one["directory"] == "out/panic_pae_debian-6.1"
    assert one["result"]["verdict"] == "pass"
    assert one["result"]["environment"] == {"initrd": "/initrd"}


@pytest.mark.usefixtures("conductor")
def test_a_dump_can_be_kept_only_where_one_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("run panic --keep-dump")) == 2
    assert "there is no dump to keep" in capsys.readouterr().err
    assert cli.main(words("run dump-raw --keep-dump")) == 0


def test_options_reach_the_run(conductor: Conductor) -> None:
    seen: list[tuple[RunPlan, Options]] = []

    def run(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
        seen.append((plan, options))
        return result(plan), Path()

    conductor(run)
    Path("bzImage").write_bytes(b"")
    Path("vmlinux").write_bytes(b"")
    line = "run panic --guest pae --kernel ./bzImage --vmlinux vmlinux --crash-kernel debian-6.1 --results r --jobs 2"
    assert cli.main(words(f"{line} --keep-memory --accel tcg --deadline 30")) == 0
    ((plan, options),) = seen
    assert options == Options(results=Path("r"), jobs=2, accel="tcg", keep_memory=True, deadline=30.0)
    assert plan.kernel.image == Path.cwd() / "bzImage"
    assert plan.kernel.vmlinux == Path.cwd() / "vmlinux"
    assert plan.crash_kernel.name == "debian-6.1"


def test_a_users_own_catalogue(conductor: Conductor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids: list[str] = []

    def run(plan: RunPlan, *_: object) -> tuple[RunResult, Path]:
        ids.append(plan.id)
        return result(plan), Path()

    conductor(run)
    for name in ("by-option", "by-variable"):
        (tmp_path / name / "guests").mkdir(parents=True)
        text = (ROOT / "guests/pae.toml").read_text()
        (tmp_path / name / "guests" / f"{name}.toml").write_text(text)
    monkeypatch.setenv("RIG_CATALOGUE", "by-variable")
    line = "run panic --catalogue by-option --guest by-option --guest by-variable --jobs 1"
    assert cli.main(words(line)) == 0
    assert ids == ["panic@by-option/debian-6.1", "panic@by-variable/debian-6.1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run pnic", "unknown scenario 'pnic'; did you mean 'panic'?"),
        ("run panic --guest x86-64", "unknown guest 'x86-64'; did you mean 'x86_64'?"),
        ("run panic --kernel debain-6.1", "unknown kernel 'debain-6.1'; did you mean 'debian-6.1'?"),
        ("run panic --guest pae --kernel no/such", "no such file: no/such"),
        ("run panic --catalogue nowhere", "nowhere is not a catalogue directory"),
        ("run panic --results file/below", "the results directory file/below can't be written: Not a directory"),
        ("list guests --catalogue nowhere", "nowhere is not a catalogue directory"),
    ],
)
def test_wrong_requests_exit_with_2_before_anything_runs(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    conductor(lambda *_: pytest.fail("a guest was started"))
    Path("file").write_text("")
    assert cli.main(words(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rig: ")
    assert message in err
    assert cli.main([*words(line), "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "runn",
        "run",
        "run panic --jobs 0",
        "run panic --jobs two",
        "run panic --deadline 0",
        "run panic --deadline nan",
        "run panic --deadline inf",
        "run panic --accel xen",
        "list kernles",
        "check",
    ],
)
def test_what_argparse_refuses_exits_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(words(line))
    assert raised.value.code == 2
    assert "usage: rig" in capsys.readouterr().err


def test_errors_of_runs(conductor: Conductor, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: object) -> tuple[RunResult, Path]:
        raise UnsuitableKernel("bzImage lacks CONFIG_KEXEC", hint="switch it on")

    conductor(run)
    assert cli.main(words("run panic")) == 2
    assert capsys.readouterr().err.endswith("rig: bzImage lacks CONFIG_KEXEC\n  hint: switch it on\n")


@pytest.mark.usefixtures("conductor")
def test_too_little_memory_exits_with_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rig.pool.available_memory", lambda: 100)
    assert cli.main(words("run panic")) == 3
    assert "not enough memory" in capsys.readouterr().err


def test_repeated_runs_are_counted_and_told_in_full_when_they_surprise(
    conductor: Conductor, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def run(plan: RunPlan, *_: object) -> tuple[RunResult, Path]:
        nonlocal calls
        calls += 1
        came = (Verdict.FAIL, "pgd-survives failed") if calls == 2 else (Verdict.PASS, "")
        return result(plan, *came), Path("results/one")

    conductor(run)
    assert cli.main(words("run panic --guest pae --jobs 1 --repeat 3")) == 1
    out, err = capsys.readouterr()
    assert "panic@pae/debian-6.1: 2 PASS, 1 FAIL" in out.splitlines()
    assert out.count("in results/one") == 1
    assert "panic@pae/debian-6.1 #3: started" in err
    assert cli.main(words("run panic --guest pae --repeat 2 --stop-at panic")) == 2
    assert cli.main(words("run panic --guest pae --until handover")) == 0
