from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from rig import catalog, hold
from rig.errors import RequestError
from rig.model import Checkpoint, LoadKind
from rig.plan import plan


@pytest.mark.parametrize(
    ("scenario", "guests", "checkpoint", "message"),
    [
        ("panic", ["i386", "pae"], Checkpoint.PANIC, "holds one guest, but 2 runs are selected"),
        ("panic", ["pae"], Checkpoint.SECOND_KERNEL, "panic has no checkpoint second-kernel"),
        ("plain-kexec", ["pae"], Checkpoint.PANIC, "plain-kexec has no checkpoint panic"),
        ("load-none", ["pae"], Checkpoint.HANDOVER, "load-none has no checkpoint handover"),
    ],
)
def test_what_can_not_be_held(scenario: str, guests: list[str], checkpoint: Checkpoint, message: str) -> None:
    plans = plan(catalog.load(), [scenario], guests)
    read, write = os.pipe()
    try:
        with pytest.raises(RequestError, match=message):
            hold.require_possible(plans, checkpoint, read)
        hold.require_possible(plans[:1], hold.ORDER[LoadKind.NONE][0], read)
    finally:
        os.close(read)
        os.close(write)


def test_somebody_must_be_able_to_let_it_go_on() -> None:
    plans = plan(catalog.load(), ["panic"], ["pae"])
    with open(os.devnull) as nobody, pytest.raises(RequestError, match="stdin is /dev/null"):
        hold.require_possible(plans, Checkpoint.PANIC, nobody.fileno())
    with pytest.raises(RequestError, match="stdin is closed"):
        hold.require_possible(plans, Checkpoint.PANIC, -1)


def test_sockets_lie_where_nobody_else_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold.private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    long = tmp_path / ("n" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(RequestError, match="too long a name"), hold.private_folder():
        pass
    assert not list(long.iterdir())
