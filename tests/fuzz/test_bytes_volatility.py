"""Single translations through hostile page tables, against volatility3's. It has no 5-level layer, knows no PSE-36, and
looks neither at reserved bits nor at CR4.PSE and EFER.NXE: compared is what those leave."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rig.memory.image import PagesMemory
from rig.memory.levels import MODES, root
from rig.memory.paging import NotMapped, translate
from rig.model import PAGE_SIZE, PagingMode
from tests.fuzz.tables import PAGES, Tables
from tests.fuzz.test_bytes_generated import few

LAYERS = {PagingMode.TWO_LEVEL: "Intel", PagingMode.PAE: "IntelPAE", PagingMode.FOUR_LEVEL: "Intel32e"}


def _module(name: str) -> Any:
    """Untyped: mypy does without volatility3."""
    return importlib.import_module(f"volatility3.framework.{name}")


def _translated(memory: PagesMemory, mode: PagingMode, table: int, virtual: int) -> tuple[int, int] | str:
    """(physical, page size), or why not, by volatility3."""
    contexts, physical, exceptions = _module("contexts"), _module("layers.physical"), _module("exceptions")
    blob = bytes(PAGE_SIZE) + b"".join(memory.read(pfn * PAGE_SIZE, PAGE_SIZE) for pfn in range(1, PAGES + 1))

    class EveryTable(getattr(_module("layers.intel"), LAYERS[mode])):  # type: ignore[misc]
        def _get_valid_table(self, base_address: int) -> bytes | None:
            """volatility3 drops tables whose entries are all equal, for Windows's sake."""
            try:
                found: bytes = self._context.layers.read(self._base_layer, base_address, self.page_size)
            except exceptions.InvalidAddressException:
                return None
            return found

    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "file", "file", blob))
    context.config["paging.memory_layer"] = "file"
    context.config["paging.page_map_offset"] = table
    layer = EveryTable(context, "paging", "paging")
    context.add_layer(layer)
    try:
        target, size, _ = layer._translate(virtual)
    except exceptions.PagedInvalidAddressException as fault:
        return str(fault)
    return target, size


def _expected(tables: Tables, virtual: int) -> tuple[int, int] | str:
    """The same by the rig, without PSE-36 in 2-level paging: its bits are reserved then."""
    try:
        width = 32 if tables.mode is PagingMode.TWO_LEVEL else 52
        found = translate(tables.memory, tables.mode, tables.cr3, virtual, maxphyaddr=width)
    except NotMapped as fault:
        return fault.reason
    return found.physical, found.page_size


@pytest.mark.parametrize("mode", LAYERS)
@few
@given(where=st.binary(min_size=1, max_size=1), entries=st.lists(st.binary(min_size=6, max_size=6), max_size=12))
def test_both_say_the_same(mode: PagingMode, where: bytes, entries: list[bytes]) -> None:
    tables = Tables.of(bytes([0x80 | list(PagingMode).index(mode)]) + where + b"".join(entries))
    width = (1 << MODES[mode].virtual_bits) - 1
    for virtual in dict.fromkeys(tables.addresses):
        ours = _expected(tables, virtual)
        theirs = _translated(tables.memory, mode, root(mode, tables.cr3), virtual & width)
        if not isinstance(ours, str):
            assert theirs == ours
        elif ours.startswith("not present"):
            assert isinstance(theirs, str)
