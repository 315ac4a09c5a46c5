from __future__ import annotations

import threading
import time

import pytest

from rig.errors import Cancelled, GuestDied, GuestHung
from rig.vm.deadline import Deadline, Ending, Watch


def test_deadline_passes() -> None:
    assert 59 < Deadline.after(60, "x").left <= 60
    Deadline.after(60, "x").check()
    passed = Deadline.after(0, "the shell")
    assert passed.left == 0
    with pytest.raises(GuestHung, match="in vain for the shell") as caught:
        passed.check(tail=lambda: "last words")
    assert caught.value.console == "last words"


def test_watch_of_a_living_guest_says_nothing() -> None:
    watch = Watch()
    watch.check()
    assert not watch.broken
    assert watch.wait_for_end(0.01) is None


def test_first_ending_counts() -> None:
    watch = Watch(tail=lambda: "last words")
    watch.end(Ending("triple-fault", "a triple fault"))
    watch.end(Ending("qemu-gone", "QEMU ended"))
    assert watch.broken
    with pytest.raises(GuestDied, match="a triple fault") as caught:
        watch.check()
    assert caught.value.console == "last words"
    assert caught.value.hint.startswith("the guest did it")


def test_whether_the_guest_ended_itself_is_not_claimed_of_qemu() -> None:
    watch = Watch()
    watch.end(Ending("qemu-gone", "QEMU ended with status -9"))
    with pytest.raises(GuestDied) as caught:
        watch.check()
    assert not caught.value.hint


def test_wait_for_end_wakes_at_once() -> None:
    watch = Watch()
    timer = threading.Timer(0.05, watch.end, [Ending("x", "the end")])
    timer.start()
    started = time.monotonic()
    assert watch.wait_for_end(10) == Ending("x", "the end")
    assert time.monotonic() - started < 1


def test_cancellation_beats_everything() -> None:
    cancel = threading.Event()
    watch = Watch(cancel)
    watch.end(Ending("x", "the end"))
    cancel.set()
    with pytest.raises(Cancelled):
        watch.check()
    with pytest.raises(Cancelled):
        Watch(cancel).wait_for_end(10)
