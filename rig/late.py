"""Modules that are imported when something of them is first asked for.

What a run needs only once its guest boots must not hold up the boot: see rig/warmup.py, which imports it meanwhile. A
type checker is told the truth beside it:

    if TYPE_CHECKING:
        from rig.memory import levels
    else:
        levels = late("rig.memory.levels")
"""

from __future__ import annotations

import importlib
from typing import Any


class _Late:
    """Stands for a module. What the import raises, whoever first asks for something gets."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def late(name: str) -> Any:
    """The module of that absolute name, not imported yet."""
    return _Late(name)
