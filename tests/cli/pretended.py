"""Rooms that are only pretended, for the command line to drive."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rig import catalog
from rig.model import CheckResult, KernelIdentity, Options, RunPlan, RunResult, Verdict

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKS = tuple(catalog.registries().checks)
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


def words(text: str) -> list[str]:
    return text.split()
