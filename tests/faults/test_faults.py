"""Every fault in every phase: no wrong verdict, the right exit status, a message that helps, nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.catalogue import Fault
from tests.faults.injection import all_faults, inject
from tests.faults.place import GUESTS

pytestmark = [
    pytest.mark.vm,
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other processes' descriptors are root's"),
]
CASES = [
    pytest.param(
        fault,
        phase,
        GUESTS[number % len(GUESTS)],
        id=f"{fault.name} @ {phase}",
        marks=[pytest.mark.quick] if phase in fault.quick else [],
    )
    for number, (fault, phase) in enumerate(all_faults())
]


@pytest.mark.parametrize(("fault", "phase", "guest"), CASES)
def test_fault(fault: Fault, phase: str, guest: str, tmp_path: Path, master: Path) -> None:
    outcome = inject(fault, phase, guest, tmp_path / "place", master)
    assert not outcome.wrong, outcome
    shutil.rmtree(tmp_path / "place")
