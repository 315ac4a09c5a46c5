"""`pytest scenarios/` on real guests, side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rig.evidence.reader import Evidence
from rig.model import Verdict
from tests.runs.conftest import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]


def test_two_guests_side_by_side(tmp_path: Path) -> None:
    words = ["scenarios/panic.toml", "scenarios/flipped-bit.toml", "-n", "2", "--guest", "x86_64", "--junitxml"]
    places = (str(tmp_path / "junit.xml"), "--results", str(tmp_path / "results"))
    command = [sys.executable, "-m", "pytest", *words, *places]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    verdicts = {}
    for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase"):
        properties = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        found = Evidence(Path(properties["rig-evidence"])).result
        assert found.verdict == properties["rig-verdict"]
        verdicts[case.attrib["name"]] = found.verdict
    # the second one expects to fail, and so has passed
    expected = {"panic@x86_64/debian-6.1": Verdict.PASS, "flipped-bit@x86_64/debian-6.1": Verdict.FAIL}
    assert verdicts == expected
