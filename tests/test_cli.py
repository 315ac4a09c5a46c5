"""The command line against rooms that are only pretended: what matters here is words, exit codes and streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import rig
from rig import catalog, cli, commands
from rig.errors import Cancelled, MachineError, RequestError, UnsuitableKernel
from rig.model import CheckResult, Dump, KernelIdentity, LoadKind, Options, Phase, RunPlan, RunResult, Verdict
from rig.plan import plan

ROOT = Path(__file__).resolve().parent.parent
CHECKS = tuple(catalog.registries().checks)
TRIGGERS = tuple(catalog.registries().triggers)
ALL_THREE = ["panic@i386/debian-6.1", "panic@pae/debian-6.1", "panic@x86_64/debian-6.1"]


def result(plan: RunPlan, verdict: Verdict = Verdict.PASS, surprise: str = "") -> RunResult:
    kernel = KernelIdentity("debian-6.1", "6.1.0-1", "00")
    return RunResult(
        id=plan.id,
        scenario=plan.scenario.name,
        guest=plan.guest.name,
        kernel=kernel,
        crash_kernel=kernel,
        expect=Verdict.PASS,
        verdict=verdict,
        checks=(CheckResult("pgd-survives", verdict, "a summary"),),
        phases=(),
        environment={"initrd": Path("/initrd")},
        surprise=surprise,
    )


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """Put a module `name` in place that has only these attributes."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


Run = Callable[[RunPlan, Options, Callable[[str], None], threading.Event], tuple[RunResult, Path]]
Conductor = Callable[[Run], None]


@pytest.fixture
def conductor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Conductor]:
    """All rooms pretended, in an empty current directory; yields a function that sets what a run does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    entry = types.SimpleNamespace(description="described", dumps=tuple(Dump), kinds=tuple(LoadKind))
    pretend(monkeypatch, "rig.checks", REGISTRY=dict.fromkeys(CHECKS, entry))
    pretend(monkeypatch, "rig.triggers", TRIGGERS=dict.fromkeys(TRIGGERS, entry))
    pretend(monkeypatch, "rig.report.text", verdict_text=lambda r, where: Text(f"{r.id}: {r.verdict}\nin {where}"))
    monkeypatch.delenv("RIG_CATALOGUE", raising=False)
    monkeypatch.chdir(tmp_path)

    def set_run(run: Run) -> None:
        pretend(monkeypatch, "rig.conductor", run=run)

    set_run(lambda plan, options, _listener, _cancel: (result(plan), options.results / plan.slug))
    yield set_run
    for number, handler in handlers.items():  # a cancelled command leaves its own
        signal.signal(number, handler)


def words(text: str) -> list[str]:
    return text.split()


# ---------------------------------------------------------------- run


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
        "bench walk",
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


# ---------------------------------------------------------------- exit codes

PASS, FAIL, ERROR, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.SKIP


def judged(verdicts: str, expect_failed: str = "", surprise: str = "unexpected") -> RunResult:
    """A result whose checks a, b, ... have these verdicts: p, f, e, s."""
    meaning = {verdict.value[0]: verdict for verdict in Verdict}
    checks = [CheckResult(name, meaning[v], "") for name, v in zip("abcdef", verdicts, strict=False)]
    kernel = KernelIdentity("k", "6.1", "00")
    return RunResult(
        id="s@g/k",
        scenario="s",
        guest="g",
        kernel=kernel,
        crash_kernel=kernel,
        expect=FAIL if expect_failed else PASS,
        verdict=Verdict.worst(check.verdict for check in checks),
        checks=tuple(checks),
        phases=(),
        environment={},
        expect_failed=tuple(expect_failed),
        surprise=surprise,
    )


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (judged("pp", surprise=""), 0),
        (judged("fp", "a", surprise=""), 0),  # a sabotage that was noticed
        (judged("fp"), 1),
        (judged("pp", "a"), 1),  # a sabotage that went unnoticed
        (judged("ff", "a"), 1),  # noticed, but another check failed too
        (judged("fp", "a"), 1),  # noticed, but what was named is not what was done
        (judged("pe"), 3),
        (judged("fe"), 1),  # a failure is a failure, whatever else could not be judged
        (judged("fe", "a"), 3),  # what failed was to fail; the other check was not judged
        (judged("fs", "a"), 3),
        (judged("fpe", "ab"), 1),  # b went unnoticed
        (judged("ps"), 3),
    ],
)
def test_exit_code_of_one_run(one: RunResult, code: int) -> None:
    assert commands.exit_code([one]) == code


def test_exit_code_of_several_runs() -> None:
    good, bad, unknown = judged("p", surprise=""), judged("f"), judged("e")
    assert commands.exit_code([good, good]) == 0
    assert commands.exit_code([good, unknown]) == 3
    assert commands.exit_code([unknown, bad, good]) == 1


def test_what_was_skipped_is_no_verdict() -> None:
    good, skipped = judged("p", surprise=""), judged("s")
    assert commands.exit_code([skipped, good]) == 0
    assert commands.exit_code([skipped]) == 3


# ---------------------------------------------------------------- being stopped


def test_cancelled_before_anything_was_written(conductor: Conductor, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_plan: RunPlan, _options: Options, _listener: object, cancel: threading.Event) -> tuple[RunResult, Path]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert cancel.wait(20)
        raise Cancelled("stopped")

    conductor(run)
    assert cli.main(words("run panic")) == 130
    assert capsys.readouterr().err.endswith("rig: cancelled: nothing was written\n")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)  # a second one while the process ends: nothing


def test_cancelled_after_a_run_had_finished(conductor: Conductor, capsys: pytest.CaptureFixture[str]) -> None:
    def run(plan: RunPlan, _options: Options, _listener: object, cancel: threading.Event) -> tuple[RunResult, Path]:
        if plan.guest.name == "i386":
            return result(plan), Path("there")
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wait(20)
        raise Cancelled("stopped")

    conductor(run)
    assert cli.main(words("run panic --jobs 1")) == 130
    out, err = capsys.readouterr()
    assert out == "panic@i386/debian-6.1: pass\nin there\n"
    assert err.endswith("rig: cancelled: 2 of 3 runs; nothing was written for them\n")


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From outside: SIGINT while a run waits; the exit code, what is said, and no stack trace."""
    script = textwrap.dedent(
        f"""
        import sys, types, threading
        def put(name, **attributes):
            sys.modules[name] = module = types.ModuleType(name)
            vars(module).update(attributes)
        def run(plan, options, listener, cancel):
            listener("boot")
            print("READY", file=sys.stderr, flush=True)
            assert cancel.wait(20)
            from rig.errors import Cancelled
            raise Cancelled("stopped")
        from rig.model import Dump, LoadKind
        check = types.SimpleNamespace(dumps=tuple(Dump), kinds=tuple(LoadKind))
        put("rig.checks", REGISTRY=dict.fromkeys({CHECKS!r}, check))
        put("rig.triggers", TRIGGERS=dict.fromkeys({TRIGGERS!r}))
        put("rig.conductor", run=run)
        from rig.cli import main
        raise SystemExit(main(["run", "panic", "--guest", "pae"]))
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "READY" not in seen and (line := process.stderr.readline()):
            seen += line
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # as `timeout -s INT` does: to the process, then to its group
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, ""), seen + err
    assert "rig: SIGINT: ending the guests" in err
    assert "Traceback" not in seen + err


def test_ctrl_c_in_other_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "list_", interrupted)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "rig: cancelled\n"


# ---------------------------------------------------------------- the other commands


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


def test_report_writes_beside_the_evidence_or_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pretend(monkeypatch, "rig.judge", judge_dir=lambda path: f"result of {path.name}")
    pretend(monkeypatch, "rig.evidence", Evidence=lambda path: f"evidence in {path.name}")
    pretend(monkeypatch, "rig.report.listing", hand_over_listing=lambda evidence: f"way of {evidence}")
    pretend(monkeypatch, "rig.report.html", render_run=lambda r, *more: f"{r}, {', '.join(more)}")
    (tmp_path / "one").mkdir()
    assert cli.main(["report", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one/report.html").read_text() == "result of one, evidence in one, way of evidence in one"
    assert capsys.readouterr().out == f"{tmp_path}/one/report.html\n"
    assert cli.main(["report", str(tmp_path / "one"), "--html", str(tmp_path / "pages"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == [f"{tmp_path}/pages/one.html"]
    assert (tmp_path / "pages/one.html").exists()
    assert cli.main(["report", str(tmp_path / "one"), "--html", str(tmp_path / "pages/one.html")]) == 2


@pytest.mark.usefixtures("conductor")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "guests"]) == 0
    heading, *names = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    assert heading == "guests:"
    assert {"i386", "pae", "x86_64"} <= set(names)
    assert cli.main(["list"]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert headings == [f"{part}:" for part in commands.LISTS]
    assert cli.main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"schema", *commands.LISTS}
    assert {"name": "sysrq-c", "description": "described"} in document["triggers"]


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

        def package(self, name: str, arch: Any) -> Any:
            asked.append(f"source {name}")
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
    }
    out, err = capsys.readouterr()
    assert "debian-6.1 for pae: 6.1.0-1-686-pae\n" in out
    assert "built-6.1-overwrite-pgd for pae: to be built from linux-source-6.1 6.1.1-1\n" in out
    assert "downloading debian-6.1" in err


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


@pytest.mark.usefixtures("conductor")
@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], holds: bool, code: int) -> None:
    def measure(plan: RunPlan, options: Options, say: Callable[[str], None], _cancel: object) -> list[Any]:
        say("measuring")
        assert options == Options(accel="tcg")
        return [types.SimpleNamespace(name=plan.id, holds=holds)]

    pretend(monkeypatch, "rig.bench", measure=measure, lines=lambda figures: [figure.name for figure in figures])
    assert cli.main(words("bench run --guest pae --accel tcg")) == code
    assert capsys.readouterr() == ("panic@pae/debian-6.1\n", "measuring\n")


# ---------------------------------------------------------------- help


def test_help_is_quick_and_imports_no_room() -> None:
    code = "import sys; from rig.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0
    assert "exit codes:" in done.stdout
    assert "rig run panic --guest" in done.stdout
    assert not {"numpy", "msgspec", "rich", "paramiko", "jinja2"} & set(done.stderr.split())


def test_help_of_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("run", "check", "report", "list", "fetch", "selftest", "bench", "doctor"):
        with pytest.raises(SystemExit) as raised:
            cli.main([name, "--help"])
        assert raised.value.code == 0
        text = capsys.readouterr().out
        assert "exit codes:" in text
        assert "--json" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rig {rig.__version__}\n"


def test_a_matrix_is_planned_run_and_timed(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIG_CACHE", str(tmp_path / "cache"))
    asked = []

    def run(plan: RunPlan, options: Options, _listener: object, _cancel: object) -> tuple[RunResult, Path]:
        asked.append((plan.id, options.refused_is_error))
        return replace(judged("p", surprise=""), id=plan.id, phases=(Phase("boot", 7.0),)), tmp_path

    conductor(run)
    assert cli.main(["matrix", "quick", "--plan"]) == 0
    assert "is not known" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--jobs", "1"]) == 0
    assert asked == [(f"panic@{guest}/debian-6.1", True) for guest in ("i386", "pae", "x86_64")]
    assert "3 cells: 3 pass" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--plan", "--json"]) == 0
    assert [cell["seconds"] for cell in json.loads(capsys.readouterr().out)["cells"]] == [7.0, 7.0, 7.0]
