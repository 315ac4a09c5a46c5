"""JUnit XML, read back by others' readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from lxml import etree

from rig.model import RunResult
from rig.report.cases import Status, check_cases
from rig.report.junit import RUN, junit
from tests.report import forge, kinds

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
KINDS = {Failure: Status.FAILED, Error: Status.ERROR, Skipped: Status.SKIPPED}


def parse(*results: RunResult) -> Any:  # a JUnitXml, which is only half typed
    blob = junit([(result, Path("results/one")) for result in results])
    SCHEMA.assertValid(etree.fromstring(blob))
    return JUnitXml.fromstring(blob)


def test_every_kind_is_valid_and_says_what_the_checks_said() -> None:
    document = parse(*kinds.ALL)
    assert [suite.name for suite in document] == [r.id.replace("\x1b", "") for r in kinds.ALL]
    for suite, result in zip(document, kinds.ALL, strict=True):
        told = {case.name: KINDS[type(case.result[0])] if case.result else Status.PASSED for case in suite}
        own = told.pop(RUN, None)
        assert told == {case.name: case.status for case in check_cases(result)}
        assert (own is not None) == (result.error is not None or result is kinds.MISMATCH)
    before = (document.tests, document.failures, document.errors, document.skipped)
    document.update_statistics()  # counts again
    assert before == (document.tests, document.failures, document.errors, document.skipped)
    assert document.failures == 4  # FAILED, UNNOTICED, MISMATCH and NASTY; no sabotage that was noticed


def test_a_run_that_broke_off_carries_its_phase_hint_and_console() -> None:
    (suite,) = parse(forge.BROKEN_OFF)
    (case,) = suite
    assert case.result[0].message.startswith("In phase boot: the guest printed nothing")
    assert "CONFIG_SERIAL_8250_CONSOLE" in case.result[0].text
    assert "Unable to mount root" in junit([(forge.BROKEN_OFF, Path("one"))]).decode().split("<system-err>")[1]


def test_properties_and_times() -> None:
    (suite,) = parse(kinds.SKIPPED)
    assert "kernel.sha256" not in {p.name for p in suite.properties()}
    assert suite.timestamp == "2026-11-23T02:11:00"
    (suite,) = parse(forge.PASSED)
    found = {p.name: p.value for p in suite.properties()}
    assert found["kernel.sha256"] == "ab" * 32
    assert (found["accel"], found["phase.boot"], found["directory"]) == ("tcg", "6.510", "results/one")
    assert suite.time == pytest.approx(sum(phase.seconds for phase in forge.PASSED.phases))


def test_what_xml_has_no_place_for_is_shown() -> None:
    (suite,) = parse(kinds.NASTY)
    (case, _) = suite
    assert "<script>" in case.result[0].message
    assert "\\x1b[2J" in case.result[0].message
    assert "\\ud800 \\ufffe" in case.result[0].message
