"""Our page walk against volatility3's, on a memory image captured from a guest.

volatility3 has no 5-level layer, knows no PSE-36 and gives no permissions: compared is which addresses
are mapped, to what, in pages of which size, both ways round.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from rig.memory.image import FileMemory, FileRange
from rig.memory.paging import root, walk
from rig.model import PagingMode

LAYERS = {
    PagingMode.TWO_LEVEL: "Intel",
    PagingMode.PAE: "IntelPAE",
    PagingMode.FOUR_LEVEL: "Intel32e",
}


class CapturedImage(Protocol):
    """path: RAM byte by byte from physical address 0, at most 4 GiB."""

    path: Path
    mode: PagingMode
    cr3: int


def _volatility(module: str) -> Any:
    """Imported when the test runs, and untyped: unit tests and mypy do without volatility3."""
    return importlib.import_module(f"volatility3.framework.{module}")


def _layer(image: CapturedImage) -> Any:
    """volatility3's translation layer of the image's mode over its file."""

    contexts, physical = _volatility("contexts"), _volatility("layers.physical")
    tables: dict[int, bytes | None] = {}

    class EveryTable(getattr(_volatility("layers.intel"), LAYERS[image.mode])):  # type: ignore[misc]
        def _get_valid_table(self, base_address: int) -> bytes | None:
            """volatility3 drops tables whose entries are all equal, for Windows's sake. Linux has such tables
            (espfix repeats one PTE page through a whole PD), and the CPU follows them."""
            if base_address not in tables:
                try:
                    found = self._context.layers.read(self._base_layer, base_address, self.page_size)
                except _volatility("exceptions").InvalidAddressException:
                    found = None
                tables[base_address] = found
            return tables[base_address]

    context = contexts.Context()
    context.config["file.location"] = image.path.absolute().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["paging.memory_layer"] = "file"
    context.config["paging.page_map_offset"] = root(image.mode, image.cr3)
    layer = EveryTable(context, "paging", "paging")
    context.add_layer(layer)
    return layer


def _mappings(layer: Any) -> Iterator[tuple[int, int, int]]:
    """(virtual, physical, page size) of all that volatility3 maps, ascending."""
    fault_type = _volatility("exceptions").PagedInvalidAddressException
    virtual = 0
    while virtual <= layer.maximum_address:
        try:
            target, size, _ = layer._translate(virtual)
            yield virtual, target, size
        except fault_type as fault:
            size = 1 << fault.invalid_bits  # what the entry that ends the way would cover
        virtual += size


@pytest.mark.vm
def test_every_translation_is_volatilitys(captured_image: CapturedImage) -> None:
    if captured_image.mode not in LAYERS:
        pytest.skip(f"volatility3 has no layer for {captured_image.mode}")
    size = captured_image.path.stat().st_size
    fd = os.open(captured_image.path, os.O_RDONLY)
    try:
        ours = walk(FileMemory(fd, [FileRange(0, size, 0)]), captured_image.mode, captured_image.cr3)
    finally:
        os.close(fd)
    theirs = np.array(list(_mappings(_layer(captured_image))), np.uint64)
    assert len(ours.virtual) == ours.count > 1000, ours.problems
    # volatility3's addresses are not sign-extended.
    width = np.uint64((1 << 48) - 1)
    mine = np.column_stack([ours.virtual & width, ours.physical, ours.size])
    assert len(mine) == len(theirs)
    different = np.flatnonzero((mine != theirs).any(axis=1))
    assert not len(different), (mine[different[0]].tolist(), theirs[different[0]].tolist())
