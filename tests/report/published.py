"""The schema of result.json that the rig publishes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

import rig.report

SCHEMA = json.loads((Path(rig.report.__file__).parent / "result.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
