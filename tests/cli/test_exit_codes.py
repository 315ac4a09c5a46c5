"""What a command exits with, from the results of its runs."""

from __future__ import annotations

import pytest

from rig.cli import main
from rig.commands import stock
from rig.commands.common import exit_code
from rig.model import CheckResult, KernelIdentity, RunResult, Verdict

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
    assert exit_code([one]) == code


def test_exit_code_of_several_runs() -> None:
    good, bad, unknown = judged("p", surprise=""), judged("f"), judged("e")
    assert exit_code([good, good]) == 0
    assert exit_code([good, unknown]) == 3
    assert exit_code([unknown, bad, good]) == 1


def test_what_was_skipped_is_no_verdict() -> None:
    good, skipped = judged("p", surprise=""), judged("s")
    assert exit_code([skipped, good]) == 0
    assert exit_code([skipped]) == 3


def test_what_nobody_foresaw_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own status for it is 1, which says that a check failed."""

    def act(_args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(stock, "list_", act)
    assert main(["list"]) == 3
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "a bug of the rig" in said
