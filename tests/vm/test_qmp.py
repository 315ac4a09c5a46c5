"""What can't be had from a real QEMU at will: a reply that comes between two looks for it, a greeting that does not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path

import pytest

from rig.errors import Cancelled, GuestHung
from rig.vm.deadline import Watch
from rig.vm.qmp import Qmp


class Late(concurrent.futures.Future[str]):
    """Comes to its end just after the first wait for it has."""

    def __init__(self, end: BaseException | None) -> None:
        super().__init__()
        self._end = end

    def result(self, timeout: float | None = None) -> str:
        if self.done():
            return super().result(timeout)
        if self._end is None:
            self.set_result("greeting")
        else:
            self.set_exception(self._end)
        raise TimeoutError


async def _work() -> str:
    return ""


@pytest.mark.parametrize("end", [None, TimeoutError()])
def test_a_reply_that_comes_between_two_looks_is_a_reply(
    end: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(limited: Coroutine[object, object, str], _loop: object) -> Late:
        limited.close()
        return Late(end)

    work = _work()
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit)
    qmp = Qmp.__new__(Qmp)
    qmp._watch = Watch(None, str)
    qmp._loop = asyncio.new_event_loop()
    try:
        if end is None:
            assert qmp._await(work, 10.0, "greeting") == "greeting"
        else:
            with pytest.raises(GuestHung, match="within 10 s"):
                qmp._await(work, 10.0, "greeting")
    finally:
        work.close()
        qmp._loop.close()


def test_who_cancels_before_the_greeting_came_is_told_so_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """qemu.qmp disconnects by itself then; a second disconnect beside that one ended in an AssertionError."""
    cancel = threading.Event()
    cancel.set()
    ours, theirs = socket.socketpair()
    with theirs, caplog.at_level(logging.ERROR, "asyncio"), pytest.raises(Cancelled):
        Qmp(ours, tmp_path / "qmp.jsonl", Watch(cancel), on_event=lambda *_: None, on_lost=lambda: None)
    assert not [record for record in caplog.records if record.name == "asyncio"]
