"""The published schema of result.json: it holds for all that the rig writes, and can't drift from the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.evidence.writer import to_json
from rig.model import RunResult
from tests.report import forge, kinds
from tests.report.published import SCHEMA, VALIDATOR


def document(result: RunResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_json(result))
    return found


NEWER = {"RunResult": {"started"}, "Phase": {"console"}}


@pytest.mark.parametrize("result", [r for r in kinds.ALL if r is not kinds.NASTY])  # whose text is no UTF-8
def test_every_kind_is_valid(result: RunResult) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(document(result))


def test_it_says_what_the_code_says() -> None:
    """Same objects, same keys, same types; what the code lets out, the schema demands, but for newer keys."""
    _, generated = msgspec.json.schema_components((RunResult,), ref_template="#/$defs/{name}")
    assert set(SCHEMA["$defs"]) == set(generated)
    for name, own in SCHEMA["$defs"].items():
        if "properties" not in generated[name]:
            assert own == {"enum": generated[name]["enum"]}
            continue
        assert own["additionalProperties"] is False
        assert set(own["required"]) == set(own["properties"]) - NEWER.get(name, set())
        assert {key: kind(value) for key, value in own["properties"].items()} == {
            key: kind(value) for key, value in generated[name]["properties"].items()
        }


def kind(schema: Mapping[str, Any]) -> object:
    """What a value is, without what is demanded of it beyond that."""
    if "$ref" in schema:
        return schema["$ref"]
    if "anyOf" in schema:
        return [kind(one) for one in schema["anyOf"]]
    if schema.get("type") == "array":
        return [kind(schema["items"])]
    return schema.get("type") or schema["enum"]


@pytest.mark.parametrize(
    ("result", "changes", "where"),
    [
        (forge.PASSED, {"verdict": "fail"}, "$.checks"),  # and no check that failed
        (forge.FAILED, {"verdict": "pass"}, "$.checks[0].verdict"),
        (forge.FAILED, {"verdict": "error"}, "$.checks"),  # a failure outweighs it
        (forge.PASSED, {"checks": []}, "$.checks"),
        (forge.BROKEN_OFF, {"verdict": "pass"}, "$.checks"),
        (kinds.SKIPPED, {"surprise": ""}, "$.surprise"),
        (forge.PASSED, {"expect": "fail"}, "$.expect_failed"),
        (forge.PASSED, {"expect": "skip"}, "$.expect"),
        (forge.PASSED, {"id": "panic"}, "$.id"),
        (forge.PASSED, {"started": "yesterday"}, "$.started"),
        (forge.PASSED, {"extra": 1}, "$"),
        (forge.PASSED, {"phases": [{"name": "boot", "seconds": -1}]}, "$.phases[0].seconds"),
    ],
)
def test_what_contradicts_itself_is_invalid(result: RunResult, changes: dict[str, Any], where: str) -> None:
    broken = document(result) | changes
    assert where in {error.json_path for error in VALIDATOR.iter_errors(broken)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "`$.schema`"),
        ({"verdict": "passed"}, "`$.verdict`"),
        ({"checks": [{"name": "a", "verdict": "pass"}]}, "required field `summary` - at `$.checks[0]`"),
        ({"phases": [{"name": "boot", "seconds": "7"}]}, "`$.phases[0].seconds`"),
        ({"kernel": None}, "`$.kernel`"),
    ],
)
def test_a_strangers_result_is_refused_by_file_and_key(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(document(forge.PASSED) | changes))
    with pytest.raises(EvidenceError) as caught:
        _ = Evidence(tmp_path).result
    assert said in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path}/result.json: ")


def test_an_older_rig_did_not_say_when(tmp_path: Path) -> None:
    old = document(forge.PASSED)
    del old["started"]
    VALIDATOR.validate(old)
    (tmp_path / "result.json").write_text(json.dumps(old))
    assert Evidence(tmp_path).result.started == ""
