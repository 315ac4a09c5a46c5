"""What the rig costs, each time beside what a user would do instead, measured in the same run: ratios, with bounds.

A family of figures is a module here with `measure(bench)`. Nothing heavy is imported before one is measured.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rig.bench.figures import Figure
    from rig.bench.setting import Bench

# Name -> what it is about, in the order in which they are measured: the quick ones first.
FAMILIES = {
    "memory": "capture, comparison and hashing of memory images",
    "trace": "recording and reading the hand-over",
    "walk": "all translations of an address space, and volatility3's",
    "run": "a whole run, and its guest booted bare",
    "matrix": "many runs, one after the other and side by side",
}


def measure(family: str, bench: Bench) -> list[Figure]:
    """All figures of a family. KeyError for one that isn't in FAMILIES."""
    if family not in FAMILIES:
        raise KeyError(family)
    figures: list[Figure] = importlib.import_module(f"rig.bench.{family}").measure(bench)
    return figures
