"""KCIDB, by its own schema."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import ValidationError
from kcidb_io.schema import LATEST, V5_0

from rig.errors import RequestError
from rig.model import Arch, RunResult
from rig.report.kcidb import kcidb, left_out
from tests.report import forge, kinds


def document(*results: RunResult) -> dict[str, Any]:
    made = kcidb([(result, Arch.AMD64) for result in results], "rig")
    V5_0.validate_exactly(made)
    LATEST.validate(LATEST.upgrade(copy.deepcopy(made)))
    return made


def statuses(result: RunResult) -> dict[str, str]:
    return {test["path"]: test["status"] for test in document(result)["tests"]}


def test_every_kind_is_valid_and_hangs_together() -> None:
    whole = document(*kinds.ALL)
    assert {build["checkout_id"] for build in whole["builds"]} == {checkout["id"] for checkout in whole["checkouts"]}
    assert {test["build_id"] for test in whole["tests"]} == {build["id"] for build in whole["builds"]}
    assert [build["architecture"] for build in whole["builds"]] == ["x86_64", "x86_64"]
    whole["tests"][0]["status"] = "BROKEN"
    with pytest.raises(ValidationError):
        V5_0.validate_exactly(whole)


def test_a_sabotage_is_no_regression_of_the_kernel() -> None:
    told = {test["path"].split(".")[1] for test in document(*kinds.ALL)["tests"]}
    assert told == {"panic"}
    for result in (forge.SABOTAGED, forge.UNNOTICED, kinds.DIED, kinds.MISMATCH):
        assert "tests the rig" in left_out(result)
        assert document(result)["tests"] == []
    assert "before it had a kernel" in left_out(kinds.SKIPPED)


def test_statuses() -> None:
    assert statuses(forge.FAILED) == {
        "kexec.panic": "FAIL",
        "kexec.panic.pgd-survives": "FAIL",
        "kexec.panic.crash-kernel-boots": "PASS",
        "kexec.panic.memory-accounted": "PASS",
        "kexec.panic.vmcore-registers": "PASS",
    }
    assert statuses(kinds.HALF_JUDGED) == {
        "kexec.panic": "MISS",
        "kexec.panic.pgd-survives": "PASS",
        "kexec.panic.vmcore-registers": "MISS",
    }
    unjudged = replace(kinds.HALF_JUDGED, error=None)  # a check could not judge, though the run went through
    assert statuses(unjudged)["kexec.panic.vmcore-registers"] == "ERROR"


def test_a_run_told_twice_has_the_same_ids_and_another_run_others() -> None:
    def ids(result: RunResult) -> list[str]:
        return [test["id"] for test in document(result)["tests"]]

    assert ids(forge.PASSED) == ids(forge.PASSED)
    assert not set(ids(forge.PASSED)) & set(ids(replace(forge.PASSED, started="2026-11-23T02:11:00+00:00")))


@pytest.mark.parametrize("origin", ["", "Rig", "a:b", "rig\n"])
def test_origin(origin: str) -> None:
    with pytest.raises(RequestError, match="no KCIDB origin"):
        kcidb([], origin)
