"""The table of checks against the functions that there are."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import rig.checks
from rig.checks import REGISTRY, run_check
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.model import Verdict

PARTS = {"hypervisor-registers"}  # what a check of another family calls


def names_of_functions() -> set[str]:
    """Public functions Evidence -> CheckResult of all modules of rig.checks, as names of checks."""
    modules = [importlib.import_module(f"rig.checks.{one.name}") for one in pkgutil.iter_modules(rig.checks.__path__)]
    return {
        name.replace("_", "-")
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if list(inspect.signature(function).parameters.values())
        == [inspect.Parameter("evidence", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Evidence")]
        and inspect.signature(function).return_annotation == "CheckResult"
    }


def test_every_check_is_entered_and_every_entry_is_one() -> None:
    assert names_of_functions() - PARTS == set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_the_entry_leads_to_the_function(name: str, tmp_path: Path) -> None:
    """Without any evidence each of them says by itself that it can't judge: it was found, and called."""
    with pytest.raises(EvidenceError, match="is missing"):
        REGISTRY[name].judge(Evidence(tmp_path))
    assert run_check(name, Evidence(tmp_path)).verdict is Verdict.ERROR
