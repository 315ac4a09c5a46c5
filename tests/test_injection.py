"""The flipped bit."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rig.injection import AD_BITS, choose_flip
from rig.memory.levels import root_size
from rig.memory.paging import entry_changes
from rig.model import PagingMode


@pytest.mark.parametrize("mode", [PagingMode.TWO_LEVEL, PagingMode.PAE, PagingMode.FOUR_LEVEL])
def test_any_flip_is_seen_and_named(mode: PagingMode) -> None:
    chance = random.Random(1)
    table = chance.randbytes(root_size(mode))
    for _ in range(200):
        flip = choose_flip(mode, table, chance)
        after = table[: flip.offset] + flip.blob + table[flip.offset + len(flip.blob) :]
        changes = entry_changes(mode, table, after)
        assert [(c.index, c.before, c.after) for c in changes.changed] == [(flip.index, flip.before, flip.after)]
        assert changes.ad_bits == 0


def test_every_entry_and_every_other_bit_can_be_hit() -> None:
    chance = random.Random(2)
    flips = [choose_flip(PagingMode.PAE, bytes(32), chance) for _ in range(4000)]
    assert set(Counter(f.index for f in flips)) == {0, 1, 2, 3}
    assert {f.after.bit_length() - 1 for f in flips} == set(range(64)) - set(AD_BITS)


def test_a_seed_repeats_the_choice() -> None:
    table = bytes(4096)
    assert choose_flip(PagingMode.FOUR_LEVEL, table, random.Random(7)) == choose_flip(
        PagingMode.FOUR_LEVEL, table, random.Random(7)
    )
