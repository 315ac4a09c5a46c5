from __future__ import annotations

import signal
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

from rig.model import Dump, LoadKind
from tests.cli.pretended import CHECKS, Conductor, Run, pretend, result


@pytest.fixture
def conductor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Conductor]:
    """All rooms pretended, in an empty current directory; yields a function that sets what a run does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    entry = types.SimpleNamespace(
        description="described", dumps=tuple(Dump), kinds=tuple(LoadKind), own_task=False, by_handover=True
    )
    pretend(monkeypatch, "rig.checks", REGISTRY=dict.fromkeys(CHECKS, entry))
    pretend(monkeypatch, "rig.report.text", verdict_text=lambda r, where: Text(f"{r.id}: {r.verdict}\nin {where}"))
    pretend(monkeypatch, "rig.report.site", update=lambda results, finished, tell: None)
    monkeypatch.delenv("RIG_CATALOGUE", raising=False)
    monkeypatch.chdir(tmp_path)

    def set_run(run: Run) -> None:
        pretend(monkeypatch, "rig.conductor", run=run)

    set_run(lambda plan, options, _listener, _cancel: (result(plan), options.results / plan.slug))
    yield set_run
    for number, handler in handlers.items():  # a cancelled command leaves its own
        signal.signal(number, handler)
