"""volatility3's page walk: what a user would take for an image's translations, and what ours is held against.

volatility3 has no 5-level layer, knows no PSE-36 and gives no permissions.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.errors import MachineError
from rig.memory.paging import root
from rig.model import PagingMode

LAYERS = {
    PagingMode.TWO_LEVEL: "Intel",
    PagingMode.PAE: "IntelPAE",
    PagingMode.FOUR_LEVEL: "Intel32e",
}


def _module(name: str) -> Any:
    """Imported only when it is used, and untyped: the rig does without volatility3."""
    try:
        return importlib.import_module(f"volatility3.framework.{name}")
    except ModuleNotFoundError as problem:
        raise MachineError(f"{problem.name} is not installed", hint="pip install 'rig[bench]'") from problem


def layer(path: Path, mode: PagingMode, cr3: int) -> Any:
    """The translation layer of a mode over a file: RAM byte by byte from physical address 0, at most 4 GiB.

    KeyError for a mode that volatility3 has no layer for.
    """
    contexts, physical = _module("contexts"), _module("layers.physical")
    tables: dict[int, bytes | None] = {}

    class EveryTable(getattr(_module("layers.intel"), LAYERS[mode])):  # type: ignore[misc]
        def _get_valid_table(self, base_address: int) -> bytes | None:
            """volatility3 drops tables whose entries are all equal, for Windows's sake. Linux has such tables
            (espfix repeats one PTE page through a whole PD), and the CPU follows them."""
            if base_address not in tables:
                try:
                    found = self._context.layers.read(self._base_layer, base_address, self.page_size)
                except _module("exceptions").InvalidAddressException:
                    found = None
                tables[base_address] = found
            return tables[base_address]

    context = contexts.Context()
    context.config["file.location"] = path.absolute().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["paging.memory_layer"] = "file"
    context.config["paging.page_map_offset"] = root(mode, cr3)
    found = EveryTable(context, "paging", "paging")
    context.add_layer(found)
    return found


def mappings(layer: Any) -> Iterator[tuple[int, int, int]]:
    """(virtual, physical, page size) of all that a layer maps, ascending. Addresses are not sign-extended."""
    fault_type = _module("exceptions").PagedInvalidAddressException
    virtual = 0
    while virtual <= layer.maximum_address:
        try:
            target, size, _ = layer._translate(virtual)
            yield virtual, target, size
        except fault_type as fault:
            size = 1 << fault.invalid_bits  # what the entry that ends the way would cover
        virtual += size
