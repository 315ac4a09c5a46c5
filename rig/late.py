"""What is imported when it is first used, not when the module that names it is.

What a run needs only once its guest boots must not hold up the boot: see rig/warmup.py, which imports it meanwhile. A
type checker is told the truth beside it:

    if TYPE_CHECKING:
        from rig.memory import levels
        from rig.survey import survey
    else:
        levels, survey = late("rig.memory.levels"), late("rig.survey:survey")
"""

from __future__ import annotations

import importlib
from typing import Any


class _LateModule:
    """Stands for a module. What the import raises, whoever first asks for something gets."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


class _LateCallable:
    """Stands for a function of a module, or for a class to make objects of: it can be called, and that is all."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, *args: object, **named: object) -> Any:
        return getattr(importlib.import_module(self._module), self._name)(*args, **named)


def late(what: str) -> Any:
    """A module by its absolute name, or MODULE:NAME, something to call."""
    module, _, name = what.partition(":")
    return _LateCallable(module, name) if name else _LateModule(module)
