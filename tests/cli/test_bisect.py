"""`rig run --bisect`: each exit status as `git bisect run` understands it, and a kernel tree on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig import cli
from rig.errors import Cancelled, PackageError, RequestError, UnsuitableKernel
from rig.model import Arch, RunPlan, RunResult, Verdict
from tests.cli.pretended import Conductor, result, words
from tests.kernel.forge import bzimage

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 128
LINE = "run panic --guest pae --bisect"


def judged(verdict: Verdict, surprise: str) -> object:
    return lambda plan, *_: (result(plan, verdict, surprise), Path("there"))


def raising(error: BaseException) -> object:
    def run(*_: object) -> tuple[RunResult, Path]:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (judged(Verdict.PASS, ""), GOOD),
        (judged(Verdict.FAIL, "pgd-survives failed"), BAD),
        (judged(Verdict.ERROR, "could not judge"), SKIP),
        (judged(Verdict.SKIP, "skipped: no such thing"), SKIP),
        (raising(PackageError("no network")), SKIP),
        (raising(UnsuitableKernel("lacks CONFIG_KEXEC")), SKIP),
        (raising(RequestError("no such thing")), ABORT),
        (raising(ZeroDivisionError()), ABORT),
        (raising(Cancelled("cancelled")), 130),
    ],
)
def test_status(conductor: Conductor, run: object, status: int) -> None:
    conductor(run)  # type: ignore[arg-type]
    assert cli.main(words(LINE)) == status


@pytest.mark.parametrize("line", [f"{LINE} --gest pae", "run panic --bis --jobs none"])
def test_what_argparse_refuses_ends_the_bisection(line: str) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(words(line))
    assert raised.value.code == ABORT


@pytest.mark.usefixtures("conductor")
def test_help_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(words(f"{LINE} --help"))
    assert raised.value.code == 0
    assert "125  skip this commit" in capsys.readouterr().out


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build tree for amd64, of which it is taken for granted that bzImage and vmlinux are of one build."""
    monkeypatch.setattr("rig.kernel.tree._other_build", lambda *_: "")
    (tmp_path / "linux/arch/x86/boot").mkdir(parents=True)
    (tmp_path / "linux/arch/x86/boot/bzImage").write_bytes(bzimage("6.1.0 (me@here) #1", arch=Arch.AMD64))
    (tmp_path / "linux/vmlinux").touch()
    return tmp_path / "linux"


def test_both_files_of_a_tree_reach_the_run(conductor: Conductor, tree: Path) -> None:
    seen: list[RunPlan] = []

    def run(plan: RunPlan, *_: object) -> tuple[RunResult, Path]:
        seen.append(plan)
        return result(plan), Path()

    conductor(run)
    assert cli.main(words("run panic --guest x86_64 --kernel-tree linux")) == 0
    assert (seen[0].kernel.image, seen[0].kernel.vmlinux) == (tree / "arch/x86/boot/bzImage", tree / "vmlinux")


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run panic --kernel-tree linux", "not for the guest i386, pae\n  hint: --guest x86_64"),
        ("run panic --guest pae --kernel-tree linux", "not for the guest pae"),
        ("run panic --guest x86_64 --kernel-tree linux --vmlinux linux/vmlinux", "stands for --kernel and --vmlinux"),
        ("fetch --guest pae --kernel-tree linux", "not for the guest pae"),
    ],
)
def test_a_tree_that_is_asked_for_wrongly(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    conductor(lambda *_: pytest.fail("a guest was started"))
    assert cli.main(words(line)) == 2
    assert message in capsys.readouterr().err
