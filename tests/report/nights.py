"""Forged runs of many cells over many nights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rig.evidence.writer import to_json
from rig.history import Record, record_of
from rig.model import CheckResult, KernelIdentity, Phase, RunResult, Verdict
from tests.report import forge

SAME = "ab" * 32


def night(id: str, date: str, verdict: Verdict = Verdict.PASS, *, sha256: str = SAME, **more: Any) -> RunResult:
    """One run of a cell, on 2026-11-DATE. A verdict that is not a pass comes with its check and its surprise."""
    scenario, _, rest = id.partition("@")
    guest, _, kernel = rest.partition("/")
    check = CheckResult("pgd-survives", verdict, f"said on {date}", {"bytes_changed": int(verdict is Verdict.FAIL)})
    values: dict[str, Any] = {
        "id": id,
        "scenario": scenario,
        "guest": guest,
        "kernel": KernelIdentity(kernel, "6.1.0-1", sha256),
        "started": f"2026-11-{date}T01:02:03+00:00",
        "surprise": "" if verdict is Verdict.PASS else f"pgd-survives: {verdict}",
        "phases": (Phase("boot", 7.5), Phase("dump", 1.25)),
    }
    return forge.result(verdict, [check], **values | more)


def record(id: str, date: str, verdict: Verdict = Verdict.PASS, **more: Any) -> Record:
    return record_of(night(id, date, verdict, **more), f"{id.replace('@', '_').replace('/', '_')}.{date}")


def leave(results: Path, name: str, result: RunResult) -> Path:
    """A run's directory as far as the pages over many runs need it. Given its name when it is whole, as a rig does:
    another may be looking for runs meanwhile."""
    unfinished = results / f".{name}"
    (unfinished / "memory").mkdir(parents=True)
    (unfinished / "result.json").write_bytes(to_json(result))
    (unfinished / "report.html").write_text(f"<!DOCTYPE html><title>page of {name}</title>")
    (unfinished / "console.log").write_text("Linux version 6.1\n")
    return unfinished.rename(results / name)
