"""What can't be true of a machine, and what can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.facts import Damage, Jump, Kimage, Manifest, Pattern, PerCpu
from rig.model import PAGE_SIZE, Phase, Range, Symbol
from rig.rules.numbers import complaints
from tests import forge
from tests.report.forge import PASSED
from tests.test_ingredients import made

FACTS = forge.Machine().facts


def test_sound_ones_are() -> None:
    assert list(complaints(FACTS)) == []
    assert list(complaints([forge.cpu(0)])) == []
    assert list(complaints(PASSED)) == []
    whole = Damage(0x5000, PAGE_SIZE, 0, (1 << 8 * PAGE_SIZE) - 1)  # a number far beyond 64 bits
    assert list(complaints(replace(FACTS, damage=(whole,)))) == []


@pytest.mark.parametrize(
    ("news", "key"),
    [
        ({"ram": ((0, 1 << 60, 0),)}, "ram[0]"),
        ({"ram": ((0, 0x2000, 0), (0x1000, 0x1000, 0x2000))}, "ram: ranges overlap"),
        ({"iomem": (Range(5, 3, "System RAM"),)}, "iomem"),
        ({"kimage": Kimage(0, 0, "", segments=((0, 1 << 60),))}, "kimage.segments"),
        ({"tables": (1 << 52,)}, "tables"),
        ({"cr3": -1}, "cr3"),
        ({"crash_notes": ((0, -1),)}, "crash_notes"),
        ({"pattern": Pattern("rig\u202e", 0, 0, 0)}, "pattern.token"),
        ({"per_cpu": PerCpu(1, 3, 2)}, "per_cpu"),
        ({"plan": replace(FACTS.plan, scenario=forge.scenario(load="other"))}, "plan.scenario.load"),
        ({"crashing_cpu": -1}, "crashing_cpu"),
        ({"damage": (Damage(0, 1, 0, 256),)}, "damage[0]"),
        ({"damage": (Damage(0, 1 << 40, 0, 0),)}, "damage[0]: of 1099511627776 bytes"),
        ({"phases": (Phase("boot", -1.0),)}, "phases[0].seconds"),
        ({"phases": (Phase("\x1b[2J", 1.0),)}, "phases[0].name"),
        ({"phases": (Phase("", 1.0),)}, "phases[0].name"),
        ({"plan": replace(FACTS.plan, scenario=forge.scenario(load=""))}, "plan.scenario.load"),
        ({"phases": (Phase("boot", 1.0, -5),)}, "phases[0].console"),
        ({"jump_ended": Jump(1 << 64, None, ("", ""))}, "jump_ended.status"),
        ({"environment": {"a": {"b": [float("inf")]}}}, "environment.a.b[0]"),
    ],
)
def test_what_no_machine_says(news: Mapping[str, Any], key: str) -> None:
    (complaint, *_) = complaints(replace(FACTS, **news))
    assert complaint.startswith(key)


def test_nothing_is_nested_without_end() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    (complaint,) = complaints({"deep": deep})
    assert "nested deeper than 32" in complaint
    assert len(complaint) < 200


def test_every_file_of_the_ingredients_has_its_hash(tmp_path: Path) -> None:
    ingredients = made(tmp_path / "cache", tmp_path / "bzImage")
    (complaint, *_) = complaints(replace(FACTS, manifest=Manifest(ingredients, {}, {}, "")))
    assert complaint.startswith("manifest: ingredients")
    for name in ("cache/../../etc/shadow", "elsewhere/x", "cache", ""):
        manifest = Manifest(ingredients, {name: "00"}, {}, "")
        assert any(c.startswith("manifest: sha256") for c in complaints(replace(FACTS, manifest=manifest))), name


def test_registers_and_symbols() -> None:
    cpu = forge.cpu(0)
    assert next(complaints([replace(cpu, general={"rip": 1})])).startswith("[0]: lacks rax, rbx")
    for cr3 in (-1, 1 << 64):
        assert list(complaints([cpu, replace(cpu, cr3=cr3)])) == ["[1]: a register holds no number of 64 bits"]
    assert list(complaints([Symbol("f", 5, 3)])) == ["[0]: Symbol(name='f', start=5, end=3) is not anywhere"]
