"""A pass over the faults succeeds only when each was injected and none came out wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults import injection
from tests.faults.catalogue import Fault
from tests.faults.injection import Outcome
from tests.faults.subject import NotReached

CHOSEN = "QEMU: kill -9@boot"


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [((), 0, "1 faults: 1 error; 0 wrong"), (("fail",), 1, "1 wrong"), (None, 1, f"not injected: {CHOSEN}")],
)
def test_what_a_pass_comes_to(
    wrong: tuple[str, ...] | None,
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """wrong: None when the phase is never reached."""

    def inject(fault: Fault, phase: str, guest: str, _root: Path, _master: Path) -> Outcome:
        if wrong is None:
            raise NotReached("it ended before")
        return Outcome(fault.name, phase, guest, "error", 3, phase, "QEMU ended", "look", 1.5, wrong)

    monkeypatch.setattr(command, "make_master", lambda _target: None)
    monkeypatch.setattr(injection, "inject", inject)
    into = tmp_path / "faults.json"
    assert command.main([CHOSEN, "--into", str(into)]) == status
    assert words in capsys.readouterr().out
    assert into.exists() == (wrong is not None)
