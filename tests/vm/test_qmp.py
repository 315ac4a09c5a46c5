"""What can't be had from a real QEMU at will: a reply that comes between two looks for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine

import pytest

from rig.errors import GuestHung
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
