"""A few hundred inputs for each target of text_targets.py, always the same ones; campaigns have the millions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import text_targets
from tests.fuzz.edits import EDIT, VALUES, edited

Target = tuple[Callable[[bytes], None], list[bytes]]
# How often each is tried: what judges a run takes milliseconds, what renders pages tens of them.
EXAMPLES = {
    **dict.fromkeys(("gdb_packets", "gdb_replies", "hello", "console", "words", "registers", "json", "batch"), 30),
    **dict.fromkeys(("trace", "timings", "catalogue", "history", "history_file", "ways", "gdb_session"), 8),
    **dict.fromkeys(("run_edits", "panic_registers", "handover_registers", "recorded", "qmp_session"), 4),
    **dict.fromkeys(("run_page", "result_edits", "kinds_edits", "directories"), 1),
}
PIECES = (b"9" * 5000, b"-1", b"1e999", b"nan", b"\x1b[2J", b"\xff", b"\xc2\x9b", b'"', b"[[", b"{", b"\n", b"=", b"\0")

CORPUS = Path(__file__).parent / "corpus"


def target(name: str) -> Target:
    """What is called, and what its inputs begin with."""
    return getattr(text_targets, f"fuzz_{name}"), getattr(text_targets, f"seeds_{name}")()


@st.composite
def inputs(draw: Any, seeds: list[bytes]) -> bytes:
    """A seed with a part replaced by a piece, by another part, or by anything."""
    seed = draw(st.sampled_from(seeds))
    start, size = draw(st.integers(0, len(seed))), draw(st.sampled_from((0, 1, 2, 8, 64)))
    at = draw(st.integers(0, len(seed)))
    new = draw(st.sampled_from((*PIECES, seed[at : at + 64])) | st.binary(max_size=2 * EDIT))
    return bytes(seed[:start] + new + seed[start + size :])


def test_every_target_is_tried() -> None:
    named = {name.removeprefix("fuzz_") for name in vars(text_targets) if name.startswith("fuzz_")}
    assert named == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_hostile_text(name: str) -> None:
    run, seeds = target(name)

    @settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(seeds))
    def attempt(data: bytes) -> None:
        run(data)

    attempt()


def test_sound_evidence_stays_sound() -> None:
    """Else the targets would show only that everything is refused."""
    for base in text_targets.bases():
        evidence = text_targets.Held(base)
        assert evidence.facts.rig == "forged"
        assert {check.verdict for check in evidence.result.checks} > {"error"}


def test_edits_keep_most_of_a_document() -> None:
    document = {"a": [1, 2, {"b": "c"}], "d": 4}
    swapped = bytes([0, 0, 7, VALUES.index("..")])
    assert edited(document, swapped) == {"a": "..", "d": 4}
    assert edited(document, b"\1\0\0\0") == {"a": [2, {"b": "c"}], "d": 4}
    assert edited(document, b"\1\0\2\4") == {"a": [17, 2, {"b": "c"}], "d": 4}
    assert json.dumps(document) == '{"a": [1, 2, {"b": "c"}], "d": 4}'
