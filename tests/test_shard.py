from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from rig import catalog, shard
from rig.errors import CatalogueError, RequestError
from rig.model import Kernel, RunPlan, Scenario
from rig.plan import matrix
from tests.forge import GUEST

SOURCE = Kernel("built", "", source="linux-source-6.1", config=("base", "{flavour}"))
STOCK = Kernel("stock", "", package="p")


def cell(name: str, kernel: Kernel = STOCK, crash: Kernel | None = None, flavour: str = "686") -> RunPlan:
    scenario = Scenario(name=name, description="", trigger="t", guests=(GUEST.name,))
    return RunPlan(scenario, replace(GUEST, flavour=flavour), kernel, crash or kernel)


def names(shards: list[list[RunPlan]]) -> list[list[str]]:
    return [[plan.scenario.name for plan in plans] for plans in shards]


def test_longest_first_each_to_the_least_burdened() -> None:
    plans = [cell(name) for name in "abcde"]
    seconds = dict(zip((plan.id for plan in plans), (2.0, 9.0, 4.0, 5.0, 3.0), strict=True))
    # 9 | 5, 4 | then 3 to either (9 = 9: the first), 2 to the other
    assert names(shard.split(plans, 2, seconds)) == [["b", "e"], ["a", "c", "d"]]
    assert names(shard.split(plans, 1, seconds)) == [list("abcde")]


def test_kernels_of_one_build_stay_together() -> None:
    patched, other = replace(SOURCE, name="patched", patch="p"), replace(SOURCE, name="split", config=("base", "2g"))
    plans = [
        cell("plain", SOURCE),
        cell("stock"),
        cell("patched", patched),
        cell("another-flavour", SOURCE, flavour="amd64"),
        cell("another-config", other),
        cell("both", other, crash=SOURCE),  # binds the builds of its two kernels together
    ]
    groups = names(shard.split(plans, 3, {}))
    assert sorted(groups) == [["another-flavour"], ["plain", "patched", "another-config", "both"], ["stock"]]
    with pytest.raises(RequestError, match=r"4 shards are more than there is to split: 6 cells, 3 of them") as raised:
        shard.split(plans, 4, {})
    assert raised.value.hint == "choose at most 3 shards"


@pytest.mark.parametrize("seed", range(8))
def test_every_cell_is_in_exactly_one_shard_and_the_shards_are_even(seed: int) -> None:
    rng = random.Random(seed)
    plans = [
        cell(f"s{number}", rng.choice([STOCK, STOCK, STOCK, SOURCE]), flavour=rng.choice(["686", "amd64"]))
        for number in range(rng.randint(20, 60))
    ]
    seconds = {plan.id: rng.uniform(5, 120) for plan in plans}
    count = rng.randint(1, 8)
    shards = shard.split(plans, count, seconds)
    assert len(shards) == count
    assert sorted(plan.id for plans in shards for plan in plans) == sorted(plan.id for plan in plans)
    assert all(shards)
    for plans_of in shards:
        assert plans_of == [plan for plan in plans if plan in plans_of]  # in the order of the whole
    # No shard is longer than an even share and one unit more: at its last addition it was the least burdened.
    lengths = [sum(seconds[plan.id] for plan in part) for part in shards]
    built = [sum(seconds[p.id] for p in plans if p.kernel == SOURCE and p.guest.flavour == f) for f in ("686", "amd64")]
    assert max(lengths) <= sum(lengths) / count + max(*seconds.values(), *built)
    assert shard.split(plans, count, seconds) == shards
    stay = [{number for number, part in enumerate(shards) for p in part if p.kernel == SOURCE and p.guest.flavour == f}
            for f in ("686", "amd64")]  # fmt: skip
    assert all(len(where) <= 1 for where in stay)


def test_the_nightly_matrix_is_split_evenly_by_the_times_that_are_shipped() -> None:
    plans = matrix(catalog.load(), ["nightly"])
    seconds = shard.shipped()
    measured = [plan for plan in plans if plan.id in seconds and not plan.skip]
    assert len(measured) > sum(not plan.skip for plan in plans) / 2  # else: make timings.json anew
    for count in (2, 4, 8):
        lengths = [sum(seconds.get(p.id, 0.0) for p in part) for part in shard.split(plans, count, seconds)]
        assert max(lengths) < 1.25 * sum(lengths) / count
        assert len(set(itertools.chain.from_iterable(shard.split(plans, count, seconds)))) == len(plans)


@pytest.mark.parametrize("text", [None, "{", '{"cells": [{"id": 3}]}'])
def test_timings_that_are_none(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CatalogueError, match=r"timings\.json") as raised:
        shard.shipped(path)
    assert "make it anew" in raised.value.hint


def test_guessed_timings_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.write_text('{"cells": [{"id": "a", "seconds": 3.5, "measured": true, "skip": ""}, '
                    '{"id": "b", "seconds": 4.0, "measured": false, "skip": ""}]}')  # fmt: skip
    assert shard.shipped(path) == {"a": 3.5}
