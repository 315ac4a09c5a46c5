"""Our page walk against volatility3's, on a memory image captured from a guest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from rig.bench import volatility
from rig.bench.walk import require_same
from rig.memory.image import FileMemory, FileRange
from rig.memory.paging import walk
from rig.model import PagingMode


class CapturedImage(Protocol):
    """path: RAM byte by byte from physical address 0, at most 4 GiB."""

    path: Path
    mode: PagingMode
    cr3: int


@pytest.mark.vm
def test_every_translation_is_volatilitys(captured_image: CapturedImage) -> None:
    path, mode, cr3 = captured_image.path, captured_image.mode, captured_image.cr3
    if mode not in volatility.LAYERS:
        pytest.skip(f"volatility3 has no layer for {mode}")
    fd = os.open(path, os.O_RDONLY)
    try:
        ours = walk(FileMemory(fd, [FileRange(0, path.stat().st_size, 0)]), mode, cr3)
    finally:
        os.close(fd)
    assert len(ours.virtual) == ours.count > 1000, ours.problems
    require_same(ours, np.array(list(volatility.mappings(volatility.layer(path, mode, cr3))), np.uint64))
